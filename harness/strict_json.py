"""JSON that is valid everywhere, and yet holds NaN and infinities."""

from __future__ import annotations

import json
from typing import Any


def dumps(value: Any) -> str:
    """Strict JSON: NaN and infinities are written as {"$float": "nan"} and the like."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:  # rare: looking for them first would cost more than all the rest of writing a record
        return json.dumps(_encode(value), allow_nan=False, separators=(",", ":"))


def loads(text: str) -> Any:
    """The inverse of `dumps`."""
    return json.loads(text, object_hook=_decode if '"$float"' in text else None)


def _encode(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"$float": repr(value)}
    if isinstance(value, dict):
        return {str(k): _encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    return value


def _decode(value: dict[str, Any]) -> Any:
    return float(value["$float"]) if value.keys() == {"$float"} else value
