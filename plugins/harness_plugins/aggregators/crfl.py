"""CRFL: clipped and smoothed parameters."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import AggregationContext, Aggregator, Field, PluginError, Reference, torch_generator
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import combine, squared_norms

if TYPE_CHECKING:
    from torch import Tensor, nn


class CRFL(Aggregator):
    """Clips the global model to a norm and adds noise in every round; at test time noisy copies vote.

    Training (Algorithm 1): w' = w + sum_i weights_i x_i; w' <- w' min(1, rho_t / ||w'||) with rho_t = min(cap, rho +
    growth t), t from 0, by default the authors' for MNIST, whose model is a logistic regression: a larger network's
    weights start at a larger norm, and all of its coordinates get noise; plus N(0, sigma^2) on each coordinate,
    except in the last round. Testing (Algorithm 2): `copies` models with noise N(0, sigma_test^2) each cast one
    vote. The deployed model answers log((votes + 1) / (copies + k)) for k classes, the same copies for every input;
    in its gradient the copies' mean probabilities stand for these shares of votes (straight-through), so that attacks
    which ascend the cross-entropy go where that of the mean probabilities grows. The certificate against a stated
    poisoning budget, which needs constants of the clients' training, is not computed: what is scored is the accuracy.

    It sets the weights themselves, which the server optimiser fedavg with lr 1 carries out; cells with another one
    are not applicable, nor are those with int8 networks that compute in integers, to which noise cannot be added. f is
    not used.

    updates (n, d) -> (d,). Needs the global weights, else PluginError. Costs O(n d); a prediction `copies`
    forward passes (the paper takes 1,000). Noise comes from the context's generator.
    """

    name: ClassVar[str] = "crfl"
    sets_weights: ClassVar[bool] = True
    perturbs_weights: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = Reference(
        title="CRFL: Certifiably Robust Federated Learning against Backdoor Attacks",
        authors="Xie, Chen, Chen, Li",
        venue="ICML",
        year=2021,
        url="https://arxiv.org/abs/2106.08283",
    )

    rho: float = Field(
        2.1, gt=0, allow_inf_nan=False, description="largest norm of the global weights, first round"
    )
    growth: float = Field(0.1, ge=0, allow_inf_nan=False, description="what is added to rho in each round")
    cap: float = Field(15.0, gt=0, allow_inf_nan=False, description="largest norm in any round")
    sigma: float = Field(0.01, ge=0, allow_inf_nan=False, description="noise on a weight in training")
    sigma_test: float = Field(0.01, ge=0, allow_inf_nan=False, description="noise on a weight at test time")
    copies: int = Field(100, ge=1, description="noisy models that vote at test time")

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        if context.global_weights is None:
            raise PluginError("crfl clips the global weights: it needs them in the context")
        aim = context.global_weights + combine(context.weights.cpu().double()[None], updates)[0]
        norm = float(squared_norms(aim[None]).sqrt()[0])
        radius = min(self.cap, self.rho + self.growth * context.round)
        if norm > radius:
            aim = aim * (radius / norm)
        if self.sigma and context.round + 1 != context.rounds:
            drawn = torch.randn(aim.shape, generator=context.generator, device=context.generator.device)
            aim = aim + self.sigma * drawn.to(aim)
        return aim - context.global_weights

    def inference(self, model: nn.Module) -> nn.Module:
        return _vote_class()(model, self.sigma_test, self.copies)


@cache
def _vote_class() -> type[nn.Module]:
    """Made at the first use: the module must load without torch."""
    import torch

    class ParameterVote(torch.nn.Module):
        """Noisy copies of a network vote; see CRFL."""

        def __init__(self, model: nn.Module, sigma: float, copies: int) -> None:
            super().__init__()
            self.model = model
            self.sigma = sigma
            self.copies = copies
            self.training = model.training

        def forward(self, x: Tensor) -> Tensor:
            generator = torch_generator("crfl", "vote")
            parameters: dict[str, Any] = dict(self.model.named_parameters())
            if not parameters:
                raise PluginError("crfl adds noise to parameters, and this network has none")
            probabilities: Tensor | None = None
            votes: Tensor | None = None
            for _ in range(self.copies):
                noisy = {
                    name: p.detach() + self.sigma * torch.randn(p.shape, generator=generator).to(p)
                    for name, p in parameters.items()
                }
                answer = torch.func.functional_call(self.model, noisy, (x,))
                vote = torch.nn.functional.one_hot(answer.detach().argmax(1), answer.shape[1]).to(answer)
                # The likeliest class's is what the others leave: by itself its gradient, p (1 - p), is rounded away.
                others = answer.softmax(1) * (1 - vote)
                probability = others + vote * (1 - others.sum(1, keepdim=True))
                probabilities = probability if probabilities is None else probabilities + probability
                votes = vote if votes is None else votes + vote
            assert probabilities is not None
            assert votes is not None
            share = (votes + 1) / (self.copies + votes.shape[1])
            mean = probabilities / self.copies
            # Inside the log: outside, each class without a vote would weigh the same, the second likeliest no more.
            return (share + (mean - mean.detach())).log()

    return ParameterVote


PLUGINS = (CRFL,)
