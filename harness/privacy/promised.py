"""Checks a defence's guarantee where it enters the engine, because tables show it as stated."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from harness.contracts.defence import Defence, Guarantee
from harness.errors import PluginError, blamed


def promised(defence: Defence, history: list[dict[str, Any]]) -> Guarantee | None:
    """`defence.guarantee(history)`. Raises PluginError, naming the defence, if that is no valid guarantee or None."""
    try:
        with blamed(defence):
            found: Any = defence.guarantee(history)
        if found is None:
            return None
        if not isinstance(found, Guarantee):
            raise PluginError(
                f"defence {defence.name}: guarantee returned {type(found).__name__}, not a Guarantee or None"
            )
        # Validated again: `model_copy` makes a copy with other values without validating them.
        return Guarantee.model_validate(found.model_dump(warnings=False))
    except ValidationError as error:
        if error.title != Guarantee.__name__:
            raise
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))} = {item['input']!r:.60}: {item['msg'][0].lower()}{item['msg'][1:]}"
            if item["loc"]
            else item["msg"].removeprefix("Value error, ")
            for item in error.errors()
        )
        raise PluginError(f"defence {defence.name}: its guarantee is not one: {wrong}") from None
