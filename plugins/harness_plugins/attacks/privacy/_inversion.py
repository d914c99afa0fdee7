"""What attacks on updates share: clients' training as a differentiable function of their records, and the labels
that the last layer gives away. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from harness.api import NotApplicable, ObservedUpdate, PluginError
from harness_plugins.classifier import last_linear


def simulate(observed: ObservedUpdate, x: Tensor, targets: Tensor) -> Tensor:
    """(d,) update that undefended clients would send after training on x, differentiable in x and targets.

    x (b, c, h, w) in [0, 1]; targets (b,) int64 classes, or (b, k) probabilities of them. Where the server sees the
    mean over several clients, x holds the records of one after another, and the result is the mean of what each would
    send. The network, in the mode it is in and with its buffers left alone, takes `epochs` passes over a client's
    records from the global weights; each pass goes through consecutive batches of `batch_size` in the order of x, as
    the attacker does not know the client's order. Each step is torch.optim.SGD's, on the mean cross-entropy (g:
    gradient + weight_decay w + proximal (w - w_global); v <- momentum v + g, v = g in the first step; w <- w - lr v,
    with Nesterov w - lr (g + momentum v)).
    Time and memory: `epochs` times as much as a gradient of the batch, twice that to differentiate.
    Raises NotApplicable where the client's optimiser is not SGD.
    """
    if len(observed.sizes) < 2:
        return _of_one_client(observed, x, targets)
    parts = zip(x.split(observed.sizes), targets.split(observed.sizes), observed.shares, strict=True)
    sent = [share * _of_one_client(observed, own, labels) for own, labels, share in parts]
    return torch.stack(sent).sum(0)


def _of_one_client(observed: ObservedUpdate, x: Tensor, targets: Tensor) -> Tensor:
    lr, momentum, decay, nesterov = sgd_settings(observed)
    differentiable = x.requires_grad or targets.requires_grad
    start = observed.weights.detach().clone().requires_grad_()
    weights: Tensor = start
    velocity: Tensor | None = None
    for _ in range(observed.epochs):
        for batch, target in zip(
            x.split(observed.batch_size), targets.split(observed.batch_size), strict=True
        ):
            loss = functional.cross_entropy(_logits(observed, weights, batch), target)
            (step,) = torch.autograd.grad(loss, weights, create_graph=differentiable)
            if decay:
                step = step + decay * weights
            if observed.proximal:
                step = step + observed.proximal * (weights - start.detach())
            if momentum:
                velocity = step if velocity is None else momentum * velocity + step
                step = step + momentum * velocity if nesterov else velocity
            weights = weights - lr * step
            if not differentiable:
                weights = weights.detach().requires_grad_()
    return (weights - start.detach()) if differentiable else (weights - start).detach()


def sgd_settings(observed: ObservedUpdate) -> tuple[float, float, float, bool]:
    """(lr, momentum, weight_decay, nesterov) of the client. Raises NotApplicable where it does not use SGD."""
    settings = observed.optimizer
    if settings["name"] != "sgd":
        raise NotApplicable(
            f"updates can be inverted only where clients step with sgd, not {settings['name']}: "
            "its steps do not tell the gradient"
        )
    return (
        float(settings["lr"]),
        float(settings.get("momentum", 0.0)),
        float(settings.get("weight_decay", 0.0)),
        bool(settings.get("nesterov", False)),
    )


def _logits(observed: ObservedUpdate, weights: Tensor, x: Tensor) -> Tensor:
    shapes = dict(observed.module.named_parameters())
    # One split, not a slice a parameter: its backward pass is one concatenation.
    pieces = weights.split([part.stop - part.start for part in observed.layout.values()])
    values: dict[str, Tensor] = {
        name: piece.view_as(shapes[name]) for name, piece in zip(observed.layout, pieces, strict=True)
    }
    values |= {name: buffer.clone() for name, buffer in observed.module.named_buffers()}
    return torch.func.functional_call(observed.module, values, (x,))


def class_gradients(observed: ObservedUpdate) -> Tensor:
    """(k,) one number a class from the classifier's gradient, negative only for classes among the labels.

    With a bias, its gradient: the sum over steps of mean(p_c - 1[label = c]), p the predicted probabilities; of
    several clients the mean.
    Without, the sum over each row of the weights' gradient, whose sign is the same where all features are
    positive (after ReLU, say). The gradient is -update / lr less what the weight decay adds to it, at the
    global weights; with momentum it is a weighted sum over the steps, of positive weights.
    Raises NotApplicable as `sgd_settings` and `last_linear` do, or where the classifier is not trained.
    """
    _, momentum, decay, nesterov = sgd_settings(observed)
    name = last_linear(observed.module, observed.num_classes)
    part = next(
        (observed.layout[p] for p in (f"{name}.bias", f"{name}.weight") if p in observed.layout), None
    )
    if part is None:
        raise NotApplicable(f"the classifier {name} is not trained, so updates do not tell labels")
    gradient = observed.gradient()[part]
    if decay:
        gradient = gradient - decay * _share(observed, momentum, nesterov) * observed.weights[part]
    return gradient.reshape(observed.num_classes, -1).sum(1)


def _share(observed: ObservedUpdate, momentum: float, nesterov: bool) -> float:
    """How often -update / lr holds a gradient that is the same in every step; of several clients the mean."""
    mean = 0.0
    for size, share in zip(observed.sizes or (observed.records,), observed.shares or (1.0,), strict=True):
        steps = observed.epochs * -(-size // observed.batch_size)
        total = velocity = 0.0
        for _ in range(steps):
            velocity = momentum * velocity + 1.0
            total += 1.0 + momentum * velocity if nesterov else velocity
        mean += share * total
    return mean


def idlg_label(observed: ObservedUpdate) -> Tensor:
    """(1,) int64: the label of the one record behind the update, the class whose gradient is negative.

    Exact for an undefended update of one record, as p_c - 1[label = c] < 0 for the label alone. The smallest
    is taken where several are negative, as noise makes them. Source: Zhao, Mopuri and Bilen (2020),
    section 3.1. Raises PluginError for more than one record, and what `class_gradients` raises.
    """
    if observed.records != 1:
        raise PluginError(f"iDLG's label recovery is for one record, not {observed.records}")
    return class_gradients(observed).argmin().reshape(1)


def llg(observed: ObservedUpdate, knowledge: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(b,) int64, sorted: the labels of all b records behind the update, by LLG.

    With g (k,) the class gradients, m < 0 the impact of one record and s (k,) the offset: every class with g_c < 0
    is taken once, and g_c <- g_c - m; then g <- g - s, and until there are b labels the class of the smallest g is
    taken and its g lessened by m likewise. knowledge: (m, s), as `llg_knowledge` gives it; None: s = 0 and
    m = (1 + 1/k) / b sum of the negative g_c, which is too small where records are many and classes few. Where
    noise makes more than b classes negative, the b smallest are taken. Source: Wainakh et al. (2022),
    section 4, algorithm 1. Raises what `class_gradients` raises. O(b k).
    """
    gradients = class_gradients(observed).double().nan_to_num()
    count = observed.records
    found = gradients.argsort(stable=True)[: min(count, int((gradients < 0).sum()))].tolist()
    if knowledge is None:
        impact = gradients.clamp(max=0).sum() / count * (1 + 1 / len(gradients))
    else:
        impact = knowledge[0].double()
        gradients = gradients - knowledge[1].double()
    gradients[found] -= impact
    while len(found) < count:
        nearest = int(gradients.argmin())
        gradients[nearest] -= impact
        found.append(nearest)
    return torch.tensor(sorted(found), device=observed.update.device)


def llg_knowledge(
    observed: ObservedUpdate, draw: Callable[[int, int], Tensor | None], draws: int
) -> tuple[Tensor, Tensor]:
    """(m, s) of `llg`: impact of a record and offsets (k,), from the model's answer to records of the attacker's.

    draw(label, b): b images (b, c, h, w) to pass off as records of a class, or None where it has none. For each of
    `draws` repetitions and each class i the client's training is simulated on b records of class i alone; with
    g the class gradients of the result, m = (1 + 1/k) / b mean of g_i, and s_j the mean of g_j over all i != j.
    (On an untrained network g_i is about -(1 - 1/k), so that m is about -1 / b, and too small by 1 / k^2.)
    Source: Wainakh et al. (2022), section 4: LLG* with dummy records, LLG+ with auxiliary ones.
    Cost: draws k simulated trainings. Raises what `class_gradients` raises.
    """
    classes, count = observed.num_classes, observed.records
    impacts, offsets = [], []
    for _ in range(draws):
        for label in range(classes):
            images = draw(label, count)
            if images is None:
                continue
            targets = torch.full((count,), label, device=images.device)
            update = simulate(observed, images, targets).detach()
            gradient = class_gradients(replace(observed, update=update))
            impacts.append(gradient[label])
            others = gradient.clone()
            others[label] = torch.nan
            offsets.append(others)
    if not impacts:
        raise PluginError("label inference with auxiliary records needs some of at least one class")
    impact = torch.stack(impacts).mean() / count * (1 + 1 / classes)
    return impact, torch.stack(offsets).nanmean(0).nan_to_num()


def recover_labels(observed: ObservedUpdate, generator: torch.Generator) -> Tensor:
    """(b,) int64: iDLG for one record, LLG* with uniformly random dummy images for several."""
    if observed.records == 1:
        return idlg_label(observed)
    return llg(observed, llg_knowledge(observed, dummies(observed, generator), DRAWS))


DRAWS = 10  # as in the paper's experiments


def dummies(observed: ObservedUpdate, generator: torch.Generator) -> Callable[[int, int], Tensor]:
    """For `llg_knowledge`: images of uniform noise, whatever the class."""

    def draw(label: int, count: int) -> Tensor:
        shape = (count, *observed.input_shape)
        return torch.rand(shape, generator=generator, device=observed.weights.device)

    return draw


def total_variation(x: Tensor) -> Tensor:
    """Anisotropic, of images (b, c, h, w): mean |x[i + 1, j] - x[i, j]| + mean |x[i, j + 1] - x[i, j]|.

    A direction of one pixel counts as 0.
    """
    total = x.new_zeros(())
    for dim in (-2, -1):
        if x.shape[dim] > 1:
            total = total + x.diff(dim=dim).abs().mean()
    return total
