"""What a guarantee needs of the network and of other hooks: nothing leaves past the defence, records stay apart."""

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

    from harness.contracts.defence import ClientHooks, Defence


def couples(hook: ClientHooks) -> bool:
    """Whether what becomes of a record may depend on others of its batch; a hook that does not say might."""
    return hook.couples_samples and any(map(hook.overrides, ("batch", "loss", "gradient")))


def check_separation(
    defences: Sequence[Defence],
    module: nn.Module,
    input_shape: tuple[int, ...],
    hooks: Sequence[ClientHooks] = (),
) -> None:
    """Raises NotApplicable where a defence that protects records or clients does not, by the network or the hooks.

    The network is asked itself, as third parties' layers may do anything: two passes in training mode over four
    made-up records. It stays as it is, and so do the global generators.
    """
    if not (guards := [defence for defence in defences if defence.protects]):
        return
    moved, together = _tried(module, input_shape)
    for guard in guards:
        if moved:
            raise NotApplicable(
                f"{guard.name} does not protect {', '.join(moved)}, which the network changes in training beside "
                "what the optimiser does: use a model without running statistics"
            )
        if guard.protects != "record":
            continue
        if together:
            raise NotApplicable(
                f"{guard.name} needs records kept apart, but what the network makes of a record depends on the "
                "others of its batch"
            )
        for hook in filter(couples, hooks):
            raise NotApplicable(
                f"{getattr(hook, 'name', type(hook).__name__)} does not say that it keeps the records of a batch "
                f"apart (couples_samples = False), so {guard.name} cannot bound one's part"
            )


def _tried(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[list[str], bool]:
    """Parameters and persistent float buffers that a forward pass changes, and whether the records meet there."""
    first = next(module.parameters(), torch.empty(0))
    device, draw = str(first.device), torch_generator("separation")
    rows = torch.rand((4, *input_shape), generator=draw)
    others = torch.cat([rows[:1], torch.rand((3, *input_shape), generator=draw)])
    parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    for value in parameters.values():
        if not value.any():  # a layer that starts at zero would hide what lies before it
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    start = parameters | {name: b.detach().clone() for name, b in module.named_buffers()}

    def passed(batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        values = {name: value.clone() for name, value in start.items()}
        for name, parameter in module.named_parameters():
            values[name].requires_grad_(parameter.requires_grad)
        masks = Masks([torch_generator("separation", device=device)])
        with global_generators(derive("separation"), device), masked(dropouts(module), masks):
            output = torch.func.functional_call(module, values, (batch.to(first),))
        return output.detach(), values

    with modes_restored(module), torch.enable_grad():
        module.train()
        (output, values), (beside, _) = passed(rows), passed(others)
    kept = {*parameters, *buffer_names(module)}
    moved = [n for n in start if n in kept and not _close(values[n].detach(), start[n])]
    return moved, not _close(output[0], beside[0], rtol=1e-4, atol=1e-5)


def _close(a: Tensor, b: Tensor, rtol: float = 0.0, atol: float = 0.0) -> bool:
    return torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
