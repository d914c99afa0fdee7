"""What compressors of updates share: checks, error feedback and packing of bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.api import Payload, PluginError, UpdateCompressor

if TYPE_CHECKING:
    from torch import Tensor


def check_update(compressor: UpdateCompressor, update: Tensor) -> None:
    """Raises PluginError for an update that is not (d,) of floats with d >= 1."""
    if update.ndim != 1 or not len(update) or not update.is_floating_point():
        raise PluginError(
            f"{compressor.name} needs an update (d,) of floats, d >= 1, not {tuple(update.shape)} {update.dtype}"
        )


def raw_update(update: Tensor) -> Payload | None:
    """An update that is not finite is sent as such, for the server to see and drop."""
    return None if bool(update.isfinite().all()) else Payload({"raw": update.detach().float()})


def with_residual(update: Tensor, state: dict[str, Any], wanted: bool) -> Tensor:
    """update plus what was not sent before, where error feedback is wanted. Raises PluginError for another d."""
    residual = state.get("residual") if wanted else None
    if residual is None:
        return update.detach()
    if residual.shape != update.shape:
        raise PluginError(f"the update has {len(update)} coordinates, the residual {len(residual)}")
    return update.detach() + residual.to(update)


def keep_residual(carried: Tensor, sent: Tensor, state: dict[str, Any], wanted: bool) -> None:
    """What was not sent is kept for the next update; what is not finite, on the wire either, leaves it as it was."""
    if wanted and bool(carried.isfinite().all()) and bool(sent.isfinite().all()):
        state["residual"] = carried - sent.to(carried)


def add_to_residual(lost: Tensor, state: dict[str, Any]) -> None:
    """What following links lost is kept too. An update that is not finite has left no residual in its first round."""
    if "residual" in state:
        state["residual"] = state["residual"] + lost.to(state["residual"])


def pack(values: Tensor, width: int) -> Tensor:
    """values (d,) in [0, 2^width), width 1, 2, 4 or 8 -> uint8, 8 / width of them to a byte, the first lowest."""
    import torch

    per_byte = 8 // width
    missing = -len(values) % per_byte
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, missing)).view(-1, per_byte)
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=values.device)
    return (padded << shifts).sum(1, dtype=torch.int32).to(torch.uint8)


def unpack(packed: Tensor, width: int, d: int) -> Tensor:
    """The first d values of `pack`, uint8."""
    import torch

    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & (2**width - 1)).flatten()[:d]


def width_for(levels: int) -> int:
    """The least of 1, 2, 4, 8 bits that holds `levels` different values."""
    return next(w for w in (1, 2, 4, 8) if 2**w >= levels)
