"""The reference has what an author needs to fill in: fields, what they may be, and what they are if nothing is said."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from harness.api import (
    Defence,
    EvasionAttack,
    Guarantee,
    Payload,
    PoisoningAttack,
    PrepareContext,
    PrivacyAttack,
)
from harness.errors import PluginError
from harness.plugin_kit.reference import data, declared, members, type_name


def test_fields_have_their_type_bounds_and_default():
    rows = list(data(Guarantee))
    assert any(
        row.startswith(r'| `against` | `"server" \| "recipients"` | `"server"` | server: even')
        for row in rows
    )
    assert "| `delta` | `float, >= 0, < 1` | required | |" in rows
    assert "| `client_epsilon` | `dict[str, float, >= 0]` | `{}` | |" in rows
    assert list(data(Payload))[3:] == [
        "| `tensors` | `dict[str, Tensor]` | required | |",
        "| `facts` | `dict[str, Any]` | `{}` | |",
    ]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int | None, "int | None"),
        (Literal["a", 1], '"a" | 1'),
        (dict[str, list[float]], "dict[str, list[float]]"),
        (Annotated[float, Field(gt=0)], "float, > 0"),
    ],
)
def test_types_are_written_as_in_code(annotation, text):
    assert type_name(annotation) == text


def test_a_backdoor_is_told_which_property_to_override():
    assert "`backdoor_target`" in PoisoningAttack.__doc__
    assert any(row.startswith("| `backdoor_target` |") for row in members(PoisoningAttack))


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        (
            "backdoor_target",
            "'backdoor_target' is a property of PoisoningAttack: write `@property def backdoor_target",
        ),
        ("strength", "the attribute 'strength' has no annotation; annotate it: `strength: ClassVar = ...`"),
    ],
)
def test_an_attribute_without_annotation_is_named_with_its_class(attribute, words):
    with pytest.raises(PluginError) as error:
        type("Mine", (PoisoningAttack,), {"__doc__": "x", "name": "mine", "__module__": "m", attribute: 1})
    assert str(error.value).startswith("Mine: ")
    assert words in str(error.value)
    assert "https" not in str(error.value)


def test_every_class_variable_that_a_plugin_may_declare_is_listed_with_its_choices_and_comment():
    (access,) = [row for row in declared(EvasionAttack) if row.startswith("| `access` |")]
    assert access.startswith(
        "| `access` | `Literal['gradients', 'logits', 'labels', 'none']` | `\"gradients\"` | "
    )
    assert access.endswith("| What it asks of the model. This and `norm` may be a property instead, where they follow "
                           "from a parameter. |")  # fmt: skip
    assert (
        "| `protects` | `Literal['record', 'client', None]` | `None` | the unit of its guarantee |"
        in list(declared(Defence))
    )
    assert [row for row in declared(PrivacyAttack) if row.startswith("| `knowledge` |")]
    assert not [row for row in declared(EvasionAttack) if "family" in row or "__" in row]


def test_a_field_has_the_comment_that_stands_beside_it():
    (row,) = [row for row in data(PrepareContext) if row.startswith("| `records` |")]
    assert row == "| `records` | `int` | required | training records in all |"
