"""JSON objects stored with a hash of themselves: a score with an altered digit is still JSON, and would be believed."""

from __future__ import annotations

import hashlib
from typing import Any

from harness.strict_json import dumps, loads

_BEFORE = b'{"sealed":"'
_DIGITS = 32  # of the SHA-256, in hexadecimal
_AFTER = len(_BEFORE) + _DIGITS + 2  # after the closing quote and the comma


def seal(value: dict[str, Any]) -> str:
    """`value` as JSON whose first key, "sealed", is a hash of all that follows."""
    if not value:
        return "{}"
    rest = dumps(value)[1:]
    return f'{_BEFORE.decode()}{_hash(rest.encode())}",{rest}'


def intact(data: bytes) -> bool:
    """Whether nothing was altered since `seal`. True for data without a seal, which older versions wrote."""
    if not data.startswith(_BEFORE):
        return True
    return data[len(_BEFORE) : _AFTER] == f'{_hash(data[_AFTER:])}",'.encode()


def unseal(text: str) -> Any:
    """The value that was sealed. Raises ValueError where the text was altered or is not JSON."""
    data = text.encode()
    if not intact(data):
        raise ValueError("its content is not what its hash says")
    return loads("{" + data[_AFTER:].decode() if data.startswith(_BEFORE) else text)


def _hash(rest: bytes) -> str:
    return hashlib.sha256(rest).hexdigest()[:_DIGITS]
