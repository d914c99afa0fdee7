"""What a poisoning attack may return, and how it is told what it may not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness.api import ClientData, PluginError, PoisonContext, PoisoningAttack
from harness.federation.data import Part
from harness.federation.poison import poison
from harness.stages.score import triggered_records

IMAGES = torch.linspace(0, 1, 4 * 9).reshape(4, 1, 3, 3)
LABELS = torch.tensor([0, 1, 2, 1])


def poisoned(change, images=IMAGES):
    class Attack(PoisoningAttack):
        """Returns what the test asks for."""

        name = "wrong"

        def poison(self, data, context):
            return change(data)

    context = PoisonContext(client=0, num_classes=3, generator=torch.Generator())
    return poison(Attack(), images, LABELS, context)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: None, "returned NoneType, not ClientData"),
        (lambda data: (data.images, data.labels), "returned tuple, not ClientData"),
        (lambda data: ClientData(data.images.numpy(), data.labels), "images as ndarray"),
        (lambda data: ClientData(data.images, data.labels.tolist()), "labels as list"),
        (lambda data: ClientData(data.images.to("meta"), data.labels), "images on meta, not on cpu"),
        (lambda data: ClientData(data.images, data.labels.float()), r"labels \(4,\) torch\.float32"),
        (lambda data: ClientData(data.images, torch.eye(4)[:, :3]), r"labels \(4, 3\) torch\.float32"),
        (lambda data: ClientData(data.images[:2], data.labels), r"images \(2, 1, 3, 3\) for 4 labels"),
        (lambda data: ClientData(data.images[:0], data.labels[:0]), "for 0 labels"),
        (lambda data: ClientData(data.images, data.labels + 1), r"labels in \[0, 3\)"),
        (lambda data: ClientData(data.images.double(), data.labels), "keep the image type"),
        (lambda data: ClientData(-3 * data.images, data.labels), "pixels from -3 to"),
        (lambda data: ClientData(data.images + 1e-3, data.labels), "pixels from 0.001 to 1"),
        (lambda data: ClientData(data.images / 0, data.labels), "pixels from nan to nan"),
    ],
)
def test_what_is_no_data_of_a_client_is_refused_by_name(change, words):
    with pytest.raises(PluginError, match=f"^wrong .*{words}"):
        poisoned(change)


def test_records_in_range_are_taken_as_they_are():
    images, labels = poisoned(lambda data: ClientData(1 - data.images[:3], data.labels[:3] * 0))
    torch.testing.assert_close(images, 1 - IMAGES[:3])
    assert labels.tolist() == [0, 0, 0]
    stored = (255 * IMAGES).to(torch.uint8)
    assert torch.equal(poisoned(lambda data: data, stored)[0], stored)


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (lambda x: None, r"^wrong\.trigger returned NoneType, not a tensor \(3, 1, 3, 3\)"),
        (lambda x: x[:1], r"^wrong\.trigger returned \(1, 1, 3, 3\), not \(3, 1, 3, 3\)"),
        (lambda x: x + 3, "^wrong: a triggered image leaves"),
        (lambda x: 1 / 0, "division by zero"),
    ],
)
def test_a_trigger_that_gives_other_images_is_refused_by_name(trigger, words):
    class Attack(PoisoningAttack):
        """A backdoor that the test makes."""

        name = "wrong"

        def trigger(self, x):
            return trigger(x)

    data = SimpleNamespace(input_shape=(1, 3, 3))
    training = SimpleNamespace(data=data, spec=SimpleNamespace(root=None), device="cpu")
    with pytest.raises((PluginError, ZeroDivisionError), match=words) as caught:
        triggered_records(Attack(), Part(IMAGES, LABELS, None), training, batch_size=3)
    if caught.type is ZeroDivisionError:
        assert caught.value.raised_by == ("attack", "wrong")
