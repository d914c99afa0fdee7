"""Evasion: adversarial examples, each checked against its budget, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.contracts.attack import EvasionAttack, EvasionContext
from harness.errors import HarnessError, PluginError, blamed
from harness.evaluation.predict import gather, modes_restored, predict, unless_too_large
from harness.evaluation.untouched import Untouched
from harness.random import derive, global_generators, torch_generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TOLERANCE = 1e-6  # for rounding, in [0, 1] pixels; lower precisions than float32 get 4 of their epsilons


class BudgetExceeded(HarnessError):
    """An attack left the norm ball or the pixel range that it was given."""


def attack_batch(
    attack: EvasionAttack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    seed: int = 0,
    budget: float | None = None,
    num_classes: int | None = None,
    verify: bool = True,
) -> Tensor:
    """Adversarial examples for one batch, x (b, c, h, w) in [0, 1] and y (b,) int64 on the model's device.

    budget: the threat's radius, used where the attack has none of its own. num_classes: found by asking the model
    where it is not given. The model is attacked in eval mode; its modes, gradient flags and gradients, and every
    global random generator, are restored afterwards. Returns x_adv like x, detached. Unless `verify` is off, raises
    BudgetExceeded where the result leaves the budget, and PluginError where the attack did not leave the model as it
    was, since what follows would be scored on another model. Raises PluginError on bad input.
    """
    import torch

    _check_input(x, y)
    eps = attack.radius(budget)
    if attack.norm is not None and eps is None:
        raise PluginError(f"{attack.name} needs eps: set the attack's own, or the threat's budget")
    if eps is not None and not eps >= 0:
        raise PluginError(f"{attack.name}: eps must be 0 or more, not {eps}")
    if not len(x):
        return x.clone()
    with _frozen(model), global_generators(derive("evasion", seed), x.device), torch.inference_mode(False):
        model.eval()
        if num_classes is None:
            with torch.no_grad():
                num_classes = model(x[:1]).shape[1]
        generator = torch_generator("evasion-context", seed, device=x.device)
        context = EvasionContext(num_classes, generator, eps, attack.norm, budget)
        before = Untouched(model) if verify else None
        # Cloned, as an inference tensor or part of a graph cannot be attacked.
        with blamed(attack), torch.enable_grad():
            found = attack.perturb(model, x.detach().clone(), y.detach().clone(), context)
        changed = None if before is None else before.changed()
    if changed is not None:
        raise PluginError(
            f"{attack.name} {changed}: later attacks and scores would be of another model. Work on a copy "
            "(copy.deepcopy), and put modes and hooks back"
        )
    if not isinstance(found, torch.Tensor):
        raise PluginError(
            f"{attack.name} returned {type(found).__name__}, not images like those it was given"
        )
    adversarial = found.detach()
    if verify:
        check_budget(x, adversarial, attack.norm, eps, name=attack.name)
    return adversarial


def check_budget(
    x: Tensor, adversarial: Tensor, norm: str | None, eps: float | None, *, name: str = "the attack"
) -> None:
    """Raises BudgetExceeded, with the sample and by how much, where adversarial examples break their budget.

    They need x's shape and dtype, finite values in [0, 1], and a distance of at most eps to x: linf and l2 up
    to rounding; l0 is the number of pixels (positions, all channels together) that differ. norm None: not
    bounded. eps = 0 must move nothing, exactly.
    """
    import torch

    if adversarial.shape != x.shape or adversarial.dtype != x.dtype:
        raise BudgetExceeded(
            f"{name} returned {tuple(adversarial.shape)} {adversarial.dtype} for {tuple(x.shape)} {x.dtype}"
        )
    if adversarial.device != x.device:
        raise BudgetExceeded(f"{name} returned images on {adversarial.device} for images on {x.device}")
    if norm is not None and eps is None:
        raise PluginError(f"{name}: the {norm} norm needs a radius")
    if not len(x):
        return
    rounding = max(TOLERANCE, 4 * torch.finfo(x.dtype).eps)
    least, greatest = torch.aminmax(adversarial.detach().flatten(1), dim=1)
    finite = least.isfinite() & greatest.isfinite()  # a NaN is both the least and the greatest
    if not finite.all():
        raise BudgetExceeded(f"{name}: sample {int((~finite).nonzero()[0])} is not finite")
    outside = torch.maximum(-least.double(), greatest.double() - 1)
    worst = int(outside.argmax())
    if float(outside[worst]) > rounding:
        raise BudgetExceeded(f"{name}: sample {worst} leaves [0, 1] by {float(outside[worst]):.3g}")
    if norm is None or eps is None:
        return
    distance = distances(x, adversarial, norm)
    # l0 counts, so nothing is rounded; where eps = 0 an untouched image is bit for bit the same.
    allowed = eps if eps == 0 or norm == "l0" else eps + rounding * max(1.0, eps)
    worst = int(distance.argmax())
    if float(distance[worst]) > allowed:
        raise BudgetExceeded(
            f"{name}: sample {worst} moves {float(distance[worst]):.6g} in {norm}, "
            f"{float(distance[worst]) - eps:.3g} more than eps = {eps:.6g}"
        )


def distances(x: Tensor, adversarial: Tensor, norm: str) -> Tensor:
    """How far each sample moved, (b,) float64. norm: linf, l2, or l0 (pixels that differ in any channel).

    x, adversarial (b, c, h, w). Raises PluginError for another norm.
    """
    import torch

    wide = torch.promote_types(x.dtype, torch.float32)
    difference = adversarial.detach().to(wide) - x.detach().to(wide)
    if norm == "linf":
        return torch.linalg.vector_norm(difference.flatten(1), torch.inf, dim=1).double()
    if norm == "l2":
        return torch.linalg.vector_norm(difference.flatten(1), dim=1, dtype=torch.float64)
    if norm == "l0":
        return (difference != 0).any(1).flatten(1).sum(1).double()
    raise PluginError(f"unknown norm {norm!r}; valid: l0, l2, linf")


def right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which rows predict their label, (n,) bool; logits (n, k). A row with a NaN predicts no class, and is wrong."""
    found: np.ndarray = (logits.argmax(1) == labels) & ~np.isnan(logits).any(1)
    return found


def evade(
    attack: EvasionAttack,
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    batch_size: int,
    seed: int,
    budget: float | None,
    num_classes: int,
    device: torch.device | str,
    source: nn.Module | None = None,
    judge: nn.Module | None = None,
    asked: nn.Module | None = None,
    clean: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The model's logits under attack, (n, k) float32, row by row over all images, and facts for the record.

    images (n, c, h, w) uint8 or float in [0, 1]; labels (n,). source: the network that examples are made on (a
    surrogate, a straight-through twin, an expectation), by default `model`, on which they are scored; both are on
    `device`. judge: where an attack has several parts, each is run on the samples that the judge still answers
    correctly after the parts before; by default `model`. For a model that answers at random it must be its
    expectation, or trying again would itself be an attack. asked: the network that parts which need no gradients are
    run on, by default the source; pass the judge where the source only stands in for the model's gradients, as a twin
    does. clean (n, k): the model's clean logits, where they are known. progress(done, total): counts attacked samples.

    Robust accuracy counts what is right on the clean *and* the adversarial input, so samples that are wrong already,
    and samples that did not move, keep their clean logits. A batch that does not fit the device's memory is attacked
    in halves, which draw other random numbers.

    facts: attacked (how many samples), and over these the mean distances mean_linf and mean_l2, in [0, 1] pixels (left
    out where none was attacked); batch_size, where batches had to be halved: the smallest tried. Raises HarnessError
    for labels that are not (n,).
    """
    import torch

    source = model if source is None else source
    judge = model if judge is None else judge
    asked = source if asked is None else asked
    parts = attack.parts(num_classes)
    truth = torch.as_tensor(labels).to("cpu", torch.int64).numpy()
    if truth.shape != (len(images),):
        raise HarnessError(f"{len(images)} images need labels ({len(images)},), not {truth.shape}")
    clean = predict(model, images, batch_size, device) if clean is None else clean
    targets = np.flatnonzero(right(clean, truth))
    adversarial = clean.copy()
    moved = {"linf": 0.0, "l2": 0.0}
    waiting: list[tuple[np.ndarray, tuple[int, ...]]] = [
        (targets[start : start + batch_size], (number,))
        for number, start in enumerate(range(0, len(targets), batch_size))
    ]

    def attacked(batch: np.ndarray, place: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The images and their adversarial examples."""
        x, y = gather(images, batch, device), torch.from_numpy(truth[batch]).to(device)
        own = derive(seed, "evasion-batch", *place)
        return x, _worst(parts, source, judge, asked, x, y, seed=own, budget=budget, num_classes=num_classes)

    done, smallest = 0, None
    while waiting:
        batch, place = waiting.pop(0)
        run = partial(attacked, batch, place)
        found = unless_too_large(run, device) if len(batch) > 1 else run()
        if found is None:
            half = (len(batch) + 1) // 2
            waiting[:0] = [(batch[:half], (*place, 0)), (batch[half:], (*place, 1))]
            smallest = half if smallest is None else min(smallest, half)
            continue
        x, x_adv = found
        for norm in moved:
            moved[norm] += float(distances(x, x_adv, norm).sum())
        changed = (x_adv != x).flatten(1).any(1).cpu().numpy()
        if changed.any():
            # Seeded, as a model may answer at random.
            with global_generators(derive("evasion-answer", seed, *place), x.device):
                adversarial[batch[changed]] = predict(model, x_adv, batch_size, device)[changed]
        done += len(batch)
        if progress is not None:
            progress(done, len(targets))
    facts: dict[str, Any] = {"attacked": len(targets)}
    if smallest is not None:
        facts["batch_size"] = smallest
    if len(targets):
        facts |= {f"mean_{norm}": total / len(targets) for norm, total in moved.items()}
    return adversarial, facts


def _worst(
    parts: Sequence[EvasionAttack],
    source: nn.Module,
    judge: nn.Module,
    asked: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    **settings: Any,
) -> Tensor:
    """Adversarial examples by each part in turn, run on the samples that the judge still answers correctly.

    They are made on the source, or on `asked` where a part needs no gradients. A sample that the judge answers
    correctly after all parts keeps the last change that was tried. The first part draws the same random numbers as it
    would alone.
    """
    import torch

    found = x.clone()
    left = torch.arange(len(x), device=x.device)
    for number, part in enumerate(parts):
        own = seed if number == 0 else derive(seed, "part", number)
        model = source if part.access == "gradients" else asked
        tried = attack_batch(part, model, x[left], y[left], seed=own, **settings)
        changed = (tried != x[left]).flatten(1).any(1)
        found[left[changed]] = tried[changed]
        if number + 1 == len(parts) or not bool(changed.any()):
            continue
        with global_generators(derive(own, "verdict"), x.device):
            answers = predict(judge, tried[changed], len(x), x.device)
        held = torch.ones_like(changed)
        held[changed] = torch.from_numpy(right(answers, y[left[changed]].cpu().numpy())).to(y.device)
        left = left[held]
        if not len(left):
            break
    return found


def _check_input(x: Tensor, y: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise PluginError(f"x must be (b, c, h, w) float in [0, 1], not {tuple(x.shape)} {x.dtype}")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise PluginError(f"y must be ({len(x)},) integer classes, not {tuple(y.shape)} {y.dtype}")
    if len(x) and not bool(((x >= 0) & (x <= 1)).all()):
        raise PluginError("x must lie in [0, 1]: attacks see pixels, normalisation is a layer of the model")


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter gradients within the block (attacks need the input's only); restores the model afterwards."""
    from harness.pooling import cheap_pooling

    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with modes_restored(model), cheap_pooling(model):
        try:
            for parameter, _, _ in before:
                parameter.requires_grad_(False)
                parameter.grad = None
            yield
        finally:
            for parameter, requires_grad, gradient in before:
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
