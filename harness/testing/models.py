"""Models: pixels in [0, 1] in, logits out, normalisation inside."""

from __future__ import annotations

from typing import Any

from harness.contracts.model import Model, Normalization
from harness.errors import PluginError
from harness.testing.core import FAMILIES, CheckFailed, Family, Setting, Subject, Trial, check, require

SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224))
CLASSES = 4


def _build(
    model: Model,
    shape: tuple[int, int, int],
    normalization: Normalization | None = None,
    seed: int = 0,
    classes: int = CLASSES,
) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return model.build(shape, classes, normalization)


def _images(shape: tuple[int, int, int], setting: Setting, count: int = 4) -> Any:
    import torch

    draw = torch.Generator().manual_seed(1)
    return torch.rand((count, *shape), generator=draw).to(setting.device, getattr(torch, setting.dtype))


def _trial(model: Model, setting: Setting) -> Trial:
    import torch

    shape = SHAPES[setting.scene]
    module = _build(model, shape).to(setting.device, getattr(torch, setting.dtype)).eval()
    images = _images(shape, setting)

    def call() -> dict[str, Any]:
        fresh = _build(model, shape)
        with torch.no_grad():
            return {"logits": module(images), "weights": dict(fresh.state_dict())}

    return Trial({"images": images, "the network in eval mode": module}, call, ("logits",))


FAMILIES["model"] = Family("model", _trial, scenes=len(SHAPES))


@check("model")
def logits_well_formed(subject: Subject) -> None:
    """Images (b, c, h, w) in [0, 1] become finite logits (b, classes), for any number of classes."""
    import torch

    outcome = subject.outcome()
    shape = SHAPES[outcome.setting.scene]
    for classes in (CLASSES, 2):
        module = _build(subject.plugin, shape, classes=classes).eval()
        with torch.no_grad():
            logits = module(_images(shape, outcome.setting))
        require(
            tuple(logits.shape) == (4, classes),
            f"{subject.name} returns {tuple(logits.shape)} for 4 images and {classes} classes, not logits (4, "
            f"{classes})",
        )
        require(bool(logits.isfinite().all()), f"{subject.name} returns logits that are not finite")
        sums = logits.exp().sum(1)
        require(
            not bool(((sums - 1).abs() < 1e-4).all()) and not bool(((logits.sum(1) - 1).abs() < 1e-4).all()),
            f"{subject.name} returns probabilities: return logits, without softmax or log-softmax",
        )


@check("model")
def normalises_inside(subject: Subject) -> None:
    """With declared constants, pixels x give what (x - mean) / std give without."""
    import torch

    outcome = subject.outcome()
    shape = SHAPES[outcome.setting.scene]
    constants = Normalization(mean=0.4, std=0.25)
    plain = _build(subject.plugin, shape).double().eval()
    normalised = _build(subject.plugin, shape, constants).double().eval()
    images = _images(shape, Setting(dtype="float64"))
    with torch.no_grad():
        given, wanted = normalised(images), plain((images - 0.4) / 0.25)
    require(
        torch.allclose(given, wanted, rtol=1e-4, atol=1e-6),
        f"{subject.name} does not normalise as it is told: put harness.nn.normalization_layer(normalization, channels) "
        "first into the network",
    )


@check("model")
def records_independent(subject: Subject) -> None:
    """In eval mode the logits of an image do not depend on the rest of its batch."""
    import torch

    outcome = subject.outcome()
    shape = SHAPES[outcome.setting.scene]
    module = _build(subject.plugin, shape).double().eval()
    images = _images(shape, Setting(dtype="float64"))
    with torch.no_grad():
        together, alone = module(images)[:2], module(images[:2])
    require(
        torch.allclose(together, alone, rtol=1e-6, atol=1e-9),
        f"the logits of {subject.name} for one image change with the other images of the batch, in eval mode: "
        "statistics of a batch may be used in training alone",
    )


@check("model")
def weights_follow_seed(subject: Subject) -> None:
    """The same seed gives the same weights, another seed others; no other generator is used."""
    from harness.testing.watch import same

    outcome = subject.outcome()
    shape = SHAPES[outcome.setting.scene]
    first, other = (dict(_build(subject.plugin, shape, seed=s).state_dict()) for s in (0, 1))
    require(
        same(first, dict(outcome.output["weights"])),
        f"the initial weights of {subject.name} differ for one seed: draw them from torch's generator, which the "
        "engine seeds around `build`",
    )
    trained = [p for p in _build(subject.plugin, shape).parameters() if p.numel() > 1]
    require(
        not trained or not same(first, other),
        f"the initial weights of {subject.name} are the same for every seed: do not seed inside `build`",
    )


@check("model")
def trains(subject: Subject) -> None:
    """In training mode every parameter that requires a gradient gets a finite one."""
    import torch

    outcome = subject.outcome()
    shape = SHAPES[outcome.setting.scene]
    module = _build(subject.plugin, shape).train()
    labels = torch.arange(4) % CLASSES
    torch.nn.functional.cross_entropy(module(_images(shape, outcome.setting)), labels).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            require(
                parameter.grad is not None and bool(parameter.grad.isfinite().all()),
                f"parameter {name!r} of {subject.name} gets no finite gradient: it is not used in `forward`, "
                "or cut off",
            )


@check("model")
def weights_are_all(subject: Subject) -> None:
    """A saved state dict, loaded into another build, gives the same logits."""
    import torch

    outcome = subject.outcome()
    shape = SHAPES[outcome.setting.scene]
    saved, other = (_build(subject.plugin, shape, seed=s).eval() for s in (0, 1))
    other.load_state_dict(saved.state_dict())
    images = _images(shape, outcome.setting)
    with torch.no_grad():
        require(
            torch.equal(saved(images), other(images)),
            f"{subject.name} holds numbers that are not in its state dict: register them as parameters or buffers",
        )


@check("model")
def unfit_shapes_refused(subject: Subject) -> None:
    """Images of one pixel work, or are refused by `build` with a PluginError."""
    import torch

    subject.outcome()
    for shape in ((1, 1, 1), (2, 5, 7)):
        try:
            module = _build(subject.plugin, shape).eval()
        except PluginError:
            continue
        except Exception as error:
            raise CheckFailed(
                f"{subject.name} breaks on images {shape} in `build`: {type(error).__name__}: {error}. Raise "
                "PluginError "
                "with the smallest shape it takes"
            ) from error
        try:
            with torch.no_grad():
                module(_images(shape, Setting()))
        except Exception as error:
            raise CheckFailed(
                f"{subject.name} builds a network for images {shape} that then fails on them: {error}. Raise "
                "PluginError "
                "in `build`"
            ) from error


def answers(subject: Subject, module: Any, world: Any) -> None:
    """Raises CheckFailed unless the module gives finite logits for the toy images, in eval mode."""
    import torch

    with torch.no_grad():
        logits = module.eval()(world.images[:5])
    shape = tuple(getattr(logits, "shape", ()))
    require(
        shape == (5, 3) and bool(logits.isfinite().all()),
        f"the model that {subject.name} deploys returns {shape} for 5 images and 3 classes, or values that are not "
        "finite: it must take pixels (b, c, h, w) in [0, 1] and return logits (b, 3)",
    )
