"""Pure attacks and losses for use inside training: they work under vmap and touch no global state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.random import uniform

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contracts.defence import Batch, GradientFn, LossFn, Params


SURE = 14.0  # logits; e^-14 is well above 6e-8, the spacing of float32 numbers just below 1


def detached(params: Params) -> Params:
    """The same values, cut off from the graph: the parameters that an attack inside a loss computes gradients with."""
    return {name: value.detach() for name, value in params.items()}


def in_place_of(moved: Tensor, x: Tensor) -> Tensor:
    """The values of `moved` with the gradient of x, for examples that a loss makes from its records.

    What was added to x counts as a constant, so that a loss built on such a loss can be differentiated with respect to
    the images. Where the addition maximises the loss, that is the gradient of the maximum (Danskin's theorem).
    """
    return moved.detach() + (x - x.detach())


class CrossEntropy:
    """The base loss: per-sample cross-entropy of `apply(params, x)` logits."""

    def __init__(self, apply: Callable[[Params, Tensor], Tensor]) -> None:
        self.apply = apply

    def __call__(self, params: Params, batch: Batch, key: Tensor) -> Tensor:
        from torch.nn import functional

        x, y = batch
        return functional.cross_entropy(self.apply(params, x), y, reduction="none")


def cross_entropy(apply: Callable[[Params, Tensor], Tensor]) -> LossFn:
    """The base loss: per-sample cross-entropy of `apply(params, x)` logits."""
    return CrossEntropy(apply)


def held_back(logits: Tensor, y: Tensor, like: Tensor | None = None) -> Tensor:
    """logits (b, k) with class y lowered to lead by at most 14, for losses that an attack inside training climbs.

    like: logits (b, k) whose leads say by how much class y is lowered; None: the given ones. The lead of class y, its
    logit minus the largest other one, decides only the length of the cross-entropy's gradient. But in float32, p_y - 1
    rounds to 0 from a lead of 17 on, and the p of the other classes from 104 on: the gradient of a sure model then has
    another direction, and in the end none.
    """
    import torch

    own = torch.arange(logits.shape[1], device=y.device) == y[:, None]
    leads = (logits if like is None else like).detach()
    lead = leads.masked_fill(~own, -torch.inf).amax(1) - leads.masked_fill(own, -torch.inf).amax(1)
    beyond = (lead - SURE).clamp(min=0).nan_to_num(nan=0.0, posinf=0.0)
    return logits - own * beyond[:, None]


def to_climb(loss: LossFn) -> LossFn:
    """The loss that an attack inside training climbs: the base loss with logits `held_back`, any other as it is."""
    if not isinstance(loss, CrossEntropy):
        return loss

    apply = loss.apply

    def climbed(params: Params, batch: Batch, key: Tensor) -> Tensor:
        from torch.nn import functional

        x, y = batch
        return functional.cross_entropy(held_back(apply(params, x), y), y, reduction="none")

    return climbed


def masked_mean(losses: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of losses (b,) over the real records: those in mask (b,) bool, 0 if there are none; None: all."""
    if mask is None:
        return losses.mean()
    return losses.where(mask, 0).sum() / mask.sum().clamp(min=1)


def mean_gradient(loss: LossFn, mask: Tensor | None = None) -> GradientFn:
    """The gradient of the mean loss over the batch; zero for an empty one (as Poisson sampling may draw).

    mask (b,) bool: the records that are real; None: all.
    """
    import torch

    def mean(params: Params, batch: Batch, key: Tensor) -> Tensor:
        return masked_mean(loss(params, batch, key), mask)

    def gradient(params: Params, batch: Batch, key: Tensor) -> Params:
        if not len(batch[1]):
            return {name: torch.zeros_like(p) for name, p in params.items()}
        if transformed():
            return torch.func.grad(mean)(params, batch, key)
        params = {n: p if p.requires_grad else p.detach().requires_grad_() for n, p in params.items()}
        # autograd.grad costs 1.03 to 1.05 of a bare backward pass on a CPU; torch.func.grad 1.3 to 1.6.
        with torch.enable_grad():
            value = mean(params, batch, key)
        grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        return {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(params.items(), grads, strict=True)
        }

    return gradient


def input_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d sum(loss(x)) / dx for a per-sample loss (b,): row i is the gradient of record i's own loss.

    It can itself be differentiated with respect to all that the loss depends on and is not `detached`, as training with
    a penalty on this gradient needs.
    """
    import torch

    if transformed():
        return torch.func.grad(lambda images: loss(images).sum())(x)
    # Outside vmap and grad, plain autograd does the same in about two thirds of the time on a CPU.
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        images = x.view_as(x) if further and x.requires_grad else x.detach().requires_grad_()
        value = loss(images).sum()
        graph = further and (x.requires_grad or _depends_on_more(value, images))
        return torch.autograd.grad(value, images, create_graph=graph)[0]


def _depends_on_more(value: Tensor, leaf: Tensor) -> bool:
    """Whether a value can be differentiated by more than this leaf; only then is its graph worth keeping."""
    ahead, seen = [value.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", leaf) is not leaf:
            return True
        ahead.extend(following for following, _ in node.next_functions)
    return False


def _steepest(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The signs of the input gradient; nothing is differentiated through them."""
    import torch

    with torch.no_grad():
        return input_gradient(loss, x).sign()


def transformed() -> bool:
    """Whether this runs inside a torch.func transform, where only torch.func.grad composes."""
    import torch

    level = getattr(torch._C._functorch, "maybe_current_level", None)
    return level is None or level() is not None


def kept_in_range(x: Tensor, images: Tensor) -> Tensor:
    """x clipped to [0, 1], or to as far outside as `images`, which x was made from, already are.

    Images with noise on them (randomised smoothing) leave the range on purpose, and an attack of radius 0 must not
    move them.
    """
    return x.minimum(images.clamp(min=1)).maximum(images.clamp(max=0))


def fgsm(loss: Callable[[Tensor], Tensor], x: Tensor, eps: float) -> Tensor:
    """One signed step: clip(x + eps sign(grad), 0, 1) (Goodfellow, Shlens, Szegedy 2015, arXiv 1412.6572)."""
    return kept_in_range(x + eps * _steepest(loss, x), x).detach()


def pgd(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    key: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    random_start: bool = True,
) -> Tensor:
    """Projected gradient ascent in the L-inf ball (Madry et al. 2018, arXiv 1706.06083).

    loss: images (b, c, h, w) -> (b,). Returns x_adv, within eps of x and inside [0, 1] wherever x is.
    """
    adversarial = kept_in_range(x + uniform(key, x.shape, -eps, eps), x) if random_start else x
    for _ in range(steps):
        stepped = adversarial + alpha * _steepest(loss, adversarial)
        adversarial = kept_in_range(x + (stepped - x).clamp(-eps, eps), x).detach()
    return adversarial


def batch_norms(module: nn.Module) -> list[str]:
    """Names of the batch-normalisation layers: they couple the records of a batch."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [name for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)]


def freeze_batch_norms(module: nn.Module) -> None:
    """Puts only the batch-normalisation layers in eval mode: they use their running statistics and leave them as is."""
    for name in batch_norms(module):
        module.get_submodule(name).eval()
