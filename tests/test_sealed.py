"""What is stored with a hash of itself: it comes back as it was, and with no byte altered."""

from __future__ import annotations

import math

import pytest

from harness.sealed import intact, seal, unseal
from harness.strict_json import dumps


@pytest.mark.parametrize("value", [{}, {"a": 1}, {"sealed": "x", "b": [1.5, math.inf]}, {"é": {"a": None}}])
def test_the_value_comes_back_with_a_seal_and_without(value):
    assert unseal(seal(value)) == value
    assert unseal(dumps({"first": value})) == {"first": value}


def test_every_altered_bit_of_the_content_is_noticed():
    data = bytearray(seal({"scores": {"accuracy": 0.912}}).encode())
    assert intact(bytes(data))
    for place in range(data.index(b'"scores"'), len(data)):
        for bit in range(7):
            data[place] ^= 1 << bit
            assert not intact(bytes(data))
            with pytest.raises(ValueError, match="hash"):
                unseal(data.decode())
            data[place] ^= 1 << bit
