"""Seeds and keys, from which every random number of a run comes; the engine itself uses no global generator.

There are two kinds. Names and numbers are hashed into the seed of a torch or NumPy generator: (seed, purpose, client,
round) always gives the same stream. Keys are int64 scalar tensors for counter-based numbers inside training
losses: stateless, so they work under vmap and give the same numbers on every device. The counter-based numbers
are for attacks and coins, never for privacy noise.

Simulated noise is reproducible, and hides nothing from anyone who knows the seed. In a deployment, where it has to
hide something, noise comes from `secret_generator`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


def derive(*parts: object) -> int:
    """A seed in [0, 2**63) from any names and numbers; each tuple of parts is an independent stream."""
    return int.from_bytes(hashlib.sha256(_text(parts)).digest()[:8], "big") >> 1


def _text(parts: Sequence[object]) -> bytes:
    return "\0".join(f"{type(p).__name__}:{p}" for p in parts).encode()


def torch_generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by any names and numbers; each tuple of parts is an independent stream."""
    import torch

    return seeded(torch.Generator(device), *parts)


# The 32-bit words in the state of a CPU generator (Mersenne twister): their offset in bytes, and their number.
TWISTER = (24, 624)


def seeded(generator: torch.Generator, *parts: object) -> torch.Generator:
    """Seeds a given generator as `torch_generator` seeds its own, and returns it.

    PyTorch's CPU generator, a Mersenne twister, uses only 32 bits of a seed, so that some of the streams of a large
    simulation would be the same: here all 19,937 bits of its state are hashed from the parts. On CUDA a seed will do:
    Philox has a key of 64 bits.
    """
    import numpy as np

    if generator.device.type != "cpu":
        return generator.manual_seed(derive(*parts))
    start, count = TWISTER
    state = generator.manual_seed(0).get_state()
    _check_size(state, 5056)
    words = state.numpy()[start:].view(np.uint64)[:count]
    words[:] = np.frombuffer(hashlib.shake_256(_text(parts)).digest(4 * count), np.uint32)
    generator.set_state(state)
    return generator


def secret_generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """`torch_generator` for parts that hold a secret of at least 256 bits: its noise cannot be found by trying seeds.

    On CUDA, 60 bits of the place in Philox's stream are hashed from the parts too, beside its key. Neither generator
    is cryptographically secure: anyone who sees enough of its raw numbers, about 20,000 bits of the twister's, can work
    out its state, and with it all its other numbers.
    """
    import numpy as np

    generator = torch_generator(*parts, device=device)
    if generator.device.type == "cpu":
        return generator
    state = generator.get_state()
    _check_size(state, 16)
    words = state.numpy().view(np.uint64)
    # The place is a multiple of 4, far from where it would wrap around.
    words[:] = np.frombuffer(hashlib.shake_256(_text(parts)).digest(16), np.uint64) >> np.array(
        [0, 4], np.uint64
    )
    words[1] <<= np.uint64(2)
    generator.set_state(state)
    return generator


def _check_size(state: Tensor, size: int) -> None:
    if len(state) != size:
        raise HarnessError(f"the state of PyTorch's generators has {len(state)} bytes, not {size}")


def numpy_generator(*parts: object) -> np.random.Generator:
    """A NumPy generator seeded by `derive(*parts)`."""
    import numpy as np

    return np.random.default_rng(derive(*parts))


@contextmanager
def global_generators(seed: int, device: torch.device | str) -> Iterator[None]:
    """Seeds every global generator that a plugin or its libraries may use or reseed, and restores it afterwards.

    These are torch's, on the CPU and on `device`, NumPy's and Python's.
    """
    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    cuda = [device] if str(device).startswith("cuda") else []
    try:
        with torch.random.fork_rng(cuda):
            # Not torch.manual_seed: it also reseeds, at once or later, devices not restored here.
            seeded(torch.default_generator, "global", seed)
            if cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            reseed_plain(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def reseed_plain(seed: int) -> None:
    """Seeds NumPy's and Python's global generators, and does not restore them. seed: in [0, 2**63)."""
    import numpy as np

    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])


GeneratorStates = tuple[bytes, tuple[Any, ...], tuple[Any, ...]]


def generator_states() -> GeneratorStates:
    """The states of the global generators of torch on the CPU, NumPy and Python; they can be compared by ==."""
    import numpy as np
    import torch

    kind, words, *rest = np.random.get_state()
    return (
        torch.default_generator.get_state().numpy().tobytes(),
        (kind, np.asarray(words).tobytes(), *rest),
        random.getstate(),
    )


def restore_generators(states: GeneratorStates) -> None:
    """Sets the global generators to states that `generator_states` returned."""
    import numpy as np
    import torch

    own, (kind, words, *rest), python = states
    torch.default_generator.set_state(torch.frombuffer(bytearray(own), dtype=torch.uint8))
    np.random.set_state((kind, np.frombuffer(words, np.uint32), *rest))  # type: ignore[arg-type]
    random.setstate(python)


def make_key(*parts: object, device: torch.device | str = "cpu") -> Tensor:
    """A key for the counter-based functions below: int64 scalar."""
    import torch

    return torch.tensor(derive(*parts), dtype=torch.int64, device=device)


# SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), constants as signed 64-bit integers.
_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift: int64's own repeats the sign


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def split(key: Tensor, number: int | Tensor) -> Tensor:
    """An independent key for each number (an int or an int64 tensor of any shape)."""
    step = (number + 1) * _GAMMA
    if isinstance(step, int):  # Python's integers do not wrap around at 64 bits by themselves
        step = (step + 2**63) % 2**64 - 2**63
    return _mix(_mix(key + _GAMMA) ^ step)


def bits(key: Tensor, shape: Sequence[int]) -> Tensor:
    """int64 numbers of a given shape, uniform over all 2**64 values.

    key: a scalar, or (b,) for a shape (b, ...): row i then depends on key i alone.
    """
    import math

    import torch

    rows = bool(key.ndim and shape and key.shape[0] == shape[0])
    numbers = math.prod(shape[1:] if rows else shape)
    counter = torch.arange(1, numbers + 1, dtype=torch.int64, device=key.device) * _GAMMA
    return _mix((key.unsqueeze(-1) if rows else key) + counter).reshape(tuple(shape))


def record_keys(key: Tensor, x: Tensor) -> Tensor:
    """(b,) keys, one per record, from a key and the records' content x (b, ...), whatever their positions.

    A guarantee for single records needs randomness of each record that the others of its batch cannot
    change. Equal records share a key. A (b,) key is returned as it is.
    """
    import torch

    if key.ndim:
        return key
    values = (x.detach().flatten(1).to(torch.float32) * 2.0**24).to(torch.int64)
    factors = bits(torch.zeros_like(key), values.shape[1:]) | 1
    return split(key, (values * factors).sum(1))


def uniform(key: Tensor, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
    """float32 numbers, uniform in [low, high)."""
    import torch

    unit = _shift(bits(key, shape), 40).to(torch.float32) * 2.0**-24
    return low + (high - low) * unit
