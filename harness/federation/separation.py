"""What a guarantee needs of the network: nothing leaves past the defence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from harness.errors import NotApplicable
from harness.evaluation.predict import modes_restored
from harness.federation.dropout import Masks, dropouts, masked
from harness.federation.vector import buffer_names
from harness.random import derive, global_generators, torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contracts.defence import Defence


def check_separation(defences: Sequence[Defence], module: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Raises NotApplicable where a defence that protects records or clients does not, by the network.

    The network is asked itself, as third parties' layers may do anything: a pass in training mode over four
    made-up records. It stays as it is, and so do the global generators.
    """
    if not (guards := [defence for defence in defences if defence.protects]):
        return
    moved = _moved(module, input_shape)
    for guard in guards:
        if moved:
            raise NotApplicable(
                f"{guard.name} does not protect {', '.join(moved)}, which the network changes in training beside "
                "what the optimiser does: use a model without running statistics"
            )


def _moved(module: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    """Parameters and persistent float buffers that a forward pass changes."""
    first = next(module.parameters(), torch.empty(0))
    device, draw = str(first.device), torch_generator("separation")
    rows = torch.rand((4, *input_shape), generator=draw)
    parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    start = parameters | {name: b.detach().clone() for name, b in module.named_buffers()}
    values = {name: value.clone() for name, value in start.items()}
    for name, parameter in module.named_parameters():
        values[name].requires_grad_(parameter.requires_grad)
    masks = Masks([torch_generator("separation", device=device)])
    with modes_restored(module), torch.enable_grad(), global_generators(derive("separation"), device):
        module.train()
        with masked(dropouts(module), masks):
            torch.func.functional_call(module, values, (rows.to(first),))
    kept = {*parameters, *buffer_names(module)}
    return [n for n in start if n in kept and not _same(values[n].detach(), start[n])]


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
