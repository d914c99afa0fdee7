"""Soteria: what the classifier's gradient tells of the representation is thinned out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Defence, Field, Local, NotApplicable, PluginError, Reference, StackContext
from harness_plugins.classifier import last_linear

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api import Batch, GradientFn, Params


class Soteria(Defence):
    """Hides the features that carry most of an image from the gradient of the last linear layer.

    With r (m,) the layer's input for an image x, feature i scores |r_i| / |d r_i / d x|_2, averaged over the
    batch; in the gradient of the layer's weights (k, m), the columns of the round(ratio m) features with the
    largest scores are set to 0. That is the paper's approximate solution for the perturbation of r that, at a bounded
    number of changed features, moves what is reconstructed from r the furthest. A feature that is 0 and
    constant in x (a dead ReLU) scores 0, any other constant one infinity. Bias and other layers stay as they are.

    It gives no guarantee: the other layers' gradients still tell of the images, and attacks that leave the
    thinned layer out, or mask it too, are hardly hindered. Under batch normalisation in training mode d r_i / d x
    is that of the batch's sum of r_i. The examples of the authors' code take a ratio of 0.01 against dlg and 0.6
    against inverting-gradients; that code hides the smallest |d r_i / d x|_2 / (r_i + 0.1), summed over the records.
    Cost: m backward passes more a step, measured at 0.4 m to 1 m times undefended training: 64 features of
    small-cnn, 45 times; 1024 of resnet9, hundreds of times. Source: Sun et al. (2021), section 4.
    Raises NotApplicable for a model without a linear layer, or where a record's guarantee stands in the same
    stack, as the choice of features reads the records again; PluginError where clients are vectorised.
    """

    name = "soteria"
    reference = Reference(
        title="Provable defense against privacy leakage in federated learning from representation perspective",
        authors="Sun, Li, Wang, Yang, Li, Chen",
        venue="CVPR 2021",
        year=2021,
        url="https://arxiv.org/abs/2012.06043",
    )

    ratio: float = Field(
        0.1, ge=0, le=1, description="share of the features of the last linear layer's input to hide"
    )

    def cost(self) -> float:
        return 50.0 if self.ratio else 1.0

    def check(self, context: StackContext) -> None:
        for other in context.defences:
            if other.protects == "record":
                raise NotApplicable(
                    f"soteria reads the records to choose features, which {other.name} does not account for"
                )
        if context.module is not None:
            trained_weight(context.module, last_linear(context.module))

    def gradient(self, local: Local) -> GradientFn:
        import torch

        if local.module is None:
            raise PluginError("soteria needs the client's own network, which vectorised clients do not have")
        inner, module = local.gradient, local.module
        layer = last_linear(module)
        name = trained_weight(module, layer)

        def gradient(params: Params, batch: Batch, key: Tensor) -> Params:
            grads = inner(params, batch, key)
            weight = grads[name]
            hidden = round(self.ratio * weight.shape[1])
            if not hidden or not len(batch[1]):
                return grads
            chosen = scores(module, layer, params, batch[0]).topk(hidden).indices
            kept = torch.ones(weight.shape[1], dtype=weight.dtype, device=weight.device)
            kept[chosen] = 0
            # Not a product: 0 times an overflown gradient would not be 0.
            return grads | {name: weight.where(kept.bool(), torch.zeros_like(weight))}

        return gradient


def trained_weight(module: nn.Module, layer: str) -> str:
    """The parameter (k, m) that a linear layer's weight is trained as, with one column a feature.

    While a compressor trains on, that may be one that is masked or rounded. Raises NotApplicable where it is another.
    """
    own = dict(module.named_parameters())
    for name in (f"{layer}.weight", f"{layer}.parametrizations.weight.original"):
        if name in own and own[name].ndim == 2:
            return name
    raise NotApplicable(
        f"soteria hides features in the gradient of {layer}.weight, which is not trained itself here"
    )


def scores(module: nn.Module, layer: str, params: Params, x: Tensor) -> Tensor:
    """(m,) mean over images x (b, c, h, w) of |r_i| / |d r_i / d x|_2, r (b, m) the input of a linear layer.

    The module's buffers stay as they are. Raises PluginError where the layer's input is not (b, m).
    """
    import torch

    inputs: list[Tensor] = []
    values = {name: value.detach() for name, value in params.items()}
    values |= {name: buffer.clone() for name, buffer in module.named_buffers()}
    images = x.detach().clone().requires_grad_()
    handle = module.get_submodule(layer).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        with torch.enable_grad():
            torch.func.functional_call(module, values, (images,))
    finally:
        handle.remove()
    if len(inputs) != 1 or inputs[0].ndim != 2:
        raise PluginError(f"soteria needs {layer} to be called once, on features (batch, features)")
    (features,) = inputs
    slopes = []
    # One backward pass a feature; batched ones (is_grads_batched) take longer on a CPU.
    for column in features.unbind(1):
        (gradient,) = torch.autograd.grad(column.sum(), images, retain_graph=True)
        slopes.append(gradient.flatten(1).norm(dim=1))
    size, slope = features.detach().abs(), torch.stack(slopes, 1)
    return (size / slope).where(size > 0, torch.zeros_like(size)).mean(0)


PLUGINS = (Soteria,)
