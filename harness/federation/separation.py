"""What a guarantee needs of the network and of other hooks: nothing bypasses the defence, and records stay apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from harness.errors import NotApplicable
from harness.evaluation.predict import modes_restored
from harness.federation.apply import Apply
from harness.federation.compose import composed_batch, composed_loss
from harness.federation.dropout import Masks, dropouts, masked
from harness.federation.vector import buffer_names
from harness.random import derive, global_generators, make_key, torch_generator
from harness.stacks import hook_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contracts.defence import ClientHooks, Defence

RECORDS = 4
LARGEST_GAIN = 1e3  # by which answers are scaled at most: beyond it rounding would be seen
SMALL = 1e-3  # a parameter with no larger element is replaced: it would hide the layers before it


def couples(hook: ClientHooks) -> bool:
    """Whether a hook could let the records of a batch depend on each other and does not declare otherwise."""
    return hook.couples_samples and any(map(hook.overrides, ("batch", "loss", "gradient")))


def check_separation(
    defences: Sequence[Defence],
    module: nn.Module,
    input_shape: tuple[int, ...],
    hooks: Sequence[ClientHooks] = (),
) -> None:
    """Raises NotApplicable where the network or the hooks undo a defence's protection of records or clients.

    Network and hooks may be third parties' and do anything, so they are tried in a few passes over made-up records.
    They stay as they are, and so do the global generators.
    """
    if not (guards := [defence for defence in defences if defence.protects]):
        return
    trial = _Trial(module, input_shape)
    moved, together = trial.passes()
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
                f"{hook_name(hook)} does not say that it keeps the records of a batch "
                f"apart (couples_samples = False), so {guard.name} cannot bound one's part"
            )
        for hook in (*hooks, *defences):
            if couples(hook) or not (hook.overrides("batch") or hook.overrides("loss")):
                continue
            if (wrong := trial.wrong(hook)) is not None:
                raise NotApplicable(f"{guard.name} needs records kept apart, but {wrong}")


class _Trial:
    """A network on made-up records; parameters so small that they would hide the layers before them are replaced."""

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...]) -> None:
        first = next(module.parameters(), torch.empty(0))
        draw = torch_generator("separation")
        self.module, self.device = module, str(first.device)
        self.rows = torch.rand((RECORDS, *input_shape), generator=draw).to(first)
        self.others = torch.rand((RECORDS, *input_shape), generator=draw).to(first)
        self.parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
        for value in self.parameters.values():
            if value.numel() and float(value.abs().max()) < SMALL:
                value.copy_(0.1 * torch.randn(value.shape, generator=draw))

    def passes(self) -> tuple[list[str], bool]:
        """What a forward pass in training mode changes, and whether records meet in it.

        Returns the names of the parameters and persistent float buffers that it changes, and whether the output for a
        record, at the same place in the batch, depends on the other records.
        """
        start = self.parameters | {name: b.detach().clone() for name, b in self.module.named_buffers()}

        def passed(batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            values = {name: value.clone() for name, value in start.items()}
            for name, parameter in self.module.named_parameters():
                values[name].requires_grad_(parameter.requires_grad)
            masks = Masks([torch_generator("separation", device=self.device)])
            with global_generators(derive("separation"), self.device), masked(dropouts(self.module), masks):
                output = torch.func.functional_call(self.module, values, (batch,))
            return output.detach(), values

        with modes_restored(self.module), torch.enable_grad():
            self.module.train()
            output, values = passed(self.rows)
            beside = []
            for i in range(RECORDS):
                batch = self.others.clone()
                batch[i] = self.rows[i]
                beside.append(passed(batch)[0][i])
        kept = {*self.parameters, *buffer_names(self.module)}
        moved = [n for n in start if n in kept and not _close(values[n].detach(), start[n])]
        return moved, not _close(output, torch.stack(beside), rtol=1e-4, atol=1e-5)

    def wrong(self, hook: ClientHooks) -> str | None:
        """What is wrong with a hook, in words, if it makes several records of one or lets records meet; else None.

        Records meet in a hook's batch or losses if, for any record, the hook makes something else of it among copies of
        it, or if, for every record, it makes something else of it alone.

        The network is in eval mode: `passes` tries it by itself. An untrained network answers all records nearly
        alike, which would hide that records meet: its answers are shifted and scaled, all by the same numbers, until
        they differ. Every record has to come out differently alone, because batches of two sizes are computed with
        different last digits, which may flip signs in an attack inside a loss for some records. A dependence on the
        size of the batch shows in all of them.
        """
        own = (hook.at(0, 1),)
        changed, key = composed_batch(own), make_key("separation", device=self.device)
        apply = Apply(self.module, {}, {name: b.clone() for name, b in self.module.named_buffers()})
        with modes_restored(self.module), global_generators(derive("separation"), self.device):
            self.module.eval()
            with torch.no_grad():
                answers = apply(self.parameters, self.rows)
                middle = answers.mean(0)
                gain = (1 / (answers - middle).std().clamp(min=1 / LARGEST_GAIN)).clamp(min=1.0)
            labels = torch.arange(RECORDS, device=self.rows.device) % answers.shape[1]

            def spread(params: dict[str, Tensor], x: Tensor) -> Tensor:
                return (apply(params, x) - middle) * gain

            loss = composed_loss(own, spread)

            def made(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                batch = changed((x, y), key)
                return *batch, loss(self.parameters, batch, key).detach()

            together = made(self.rows, labels)
            if len(together[1]) > RECORDS:
                return f"{hook_name(hook)} makes several of one, each of which is clipped by itself"

            def among_copies(i: int) -> bool:
                return _same(made(self.rows[[i] * RECORDS], labels[[i] * RECORDS]), together, i, i)

            def alone(i: int) -> bool:
                return _same(made(self.rows[i : i + 1], labels[i : i + 1]), together, 0, i)

            places = range(RECORDS)
            if all(map(among_copies, places)) and any(map(alone, places)):
                return None
        return (
            f"what {hook_name(hook)} makes of a record depends on the others of its batch, though it says "
            "couples_samples = False"
        )


def _same(found: Sequence[Tensor], expected: Sequence[Tensor], place: int, other: int) -> bool:
    """Whether the images, labels and losses found at `place` are those expected at the place `other`."""
    if len({len(part) for part in found}) > 1 or len(expected[0]) != RECORDS:
        return False
    *batch, losses = [(a[place], b[other]) for a, b in zip(found, expected, strict=True)]
    if not _close(*losses, rtol=1e-2, atol=1e-3):
        return False
    return all(_close(*pair, rtol=1e-4, atol=1e-5) for pair in batch)


def _close(a: Tensor, b: Tensor, rtol: float = 0.0, atol: float = 0.0) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
