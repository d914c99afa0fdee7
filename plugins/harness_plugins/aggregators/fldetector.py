"""FLDetector: clients whose updates do not follow from their past."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import AggregationContext, Aggregator, Field, PluginError, Reference
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import combine

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class FLDetector(Aggregator):
    """Predicts each client's update from its last one, and removes for good those it predicts badly.

    The prediction is g_i(t-1) + H (w_t - w_(t-1)), H the L-BFGS approximation of the Hessian from the last `window`
    differences of global weights and of aggregates. A client's score is its prediction error over the round's mean
    one, averaged over its last `window` rounds: the paper's share of the round's sum, times how many there are, so
    that rounds of few clients do not count for more. Once there are `window` of them, the gap statistic decides
    whether the scores form more than one group; if so, 2-means tells the group with the larger scores: malicious
    (Algorithms 1 and 2). They are excluded from then on, training starts again from the initial weights
    (`restart`), and detection is over, as published; in the second half of the rounds nothing starts again, as the
    paper restarts with all its rounds and here they are given. Until then all updates are averaged by weight, as
    the paper's server averages with FedAvg. A client that was absent has no prediction in its next round. f is not
    used.

    updates (n, d) -> (d,). Needs the global weights and a single client behind each row, else PluginError; with
    `restart`, the server optimiser fedavg with lr 1, which alone carries it out. Costs O((n + window) d) and keeps
    n + 2 window + 3 vectors (d,). The gap statistic draws from the context's generator. Reports the rows
    kept.
    """

    name: ClassVar[str] = "fldetector"
    follows_clients: ClassVar[bool] = True
    remembers_clients: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("sklearn.cluster",)
    reference: ClassVar[Reference | None] = Reference(
        title="FLDetector: Defending Federated Learning Against Model Poisoning Attacks via Detecting Malicious "
        "Clients",
        authors="Zhang, Cao, Jia, Gong",
        venue="KDD",
        year=2022,
        url="https://arxiv.org/abs/2207.09209",
    )

    window: int = Field(10, ge=2, description="rounds looked back on (N)")
    start: int = Field(0, ge=0, description="rounds before the first score; the authors' code waits for 50")
    groups: int = Field(7, ge=2, description="most groups that the gap statistic tries")
    references: int = Field(20, ge=1, description="uniform samples the gap statistic compares with")
    restart: bool = Field(
        True,
        description="go back to the initial weights when clients were found in the first half of the rounds",
    )

    @property
    def sets_weights(self) -> bool:  # type: ignore[override]
        return self.restart

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        if context.global_weights is None:
            raise PluginError("fldetector follows the global weights: it needs them in the context")
        state, now, ids = context.state, context.global_weights, context.client_ids
        state.setdefault("initial", now.clone())
        excluded: set[int] = state.setdefault("excluded", set())
        if not state.get("done"):
            self._score(updates, context)
            found = self._malicious(context)
            if found:
                state["done"] = True
                excluded |= found
                for name in ("last", "weights", "aggregate", "moves", "changes", "errors"):
                    state.pop(name, None)
                if self.restart and not 0 < context.rounds < 2 * (context.round + 1):
                    context.report(kept=[i for i, c in enumerate(ids) if c not in excluded])
                    return state["initial"].to(updates) - now
        kept = [i for i, c in enumerate(ids) if c not in excluded]
        context.report(kept=kept)
        if not kept:
            return torch.zeros_like(updates[0])
        weights = torch.zeros(len(ids), dtype=torch.float64)
        weights[kept] = context.weights.cpu().double()[kept]
        result = combine((weights / weights.sum())[None], updates)[0]
        if not state.get("done"):
            self._remember(updates, result, context)
        return result

    def _score(self, updates: Tensor, context: AggregationContext) -> None:
        """Adds this round's prediction errors, over their mean, to the clients' scores."""
        state = context.state
        moves, changes = state.get("moves", []), state.get("changes", [])
        if "last" not in state or not changes or context.round < self.start:
            return
        assert context.global_weights is not None
        curvature = hessian_product(moves, changes, context.global_weights - state["weights"])
        last: dict[int, Tensor] = state["last"]
        known = [i for i, c in enumerate(context.client_ids) if c in last]
        errors = {
            context.client_ids[i]: float(
                (last[context.client_ids[i]] + curvature - updates[i]).double().norm()
            )
            for i in known
        }
        mean = sum(errors.values()) / len(errors) if errors else 0.0
        scores: dict[int, list[float]] = state.setdefault("errors", {})
        for client, error in errors.items():
            scores.setdefault(client, []).append(error / mean if mean else 0.0)
            del scores[client][: -self.window]

    def _remember(self, updates: Tensor, result: Tensor, context: AggregationContext) -> None:
        state = context.state
        assert context.global_weights is not None
        if "weights" in state:
            state.setdefault("moves", []).append(context.global_weights - state["weights"])
            state.setdefault("changes", []).append(result - state["aggregate"])
            del state["moves"][: -self.window]
            del state["changes"][: -self.window]
        state["weights"], state["aggregate"] = context.global_weights.clone(), result.clone()
        last: dict[int, Tensor] = {}
        for client, update in zip(context.client_ids, updates, strict=True):
            last[client] = update.clone()
        state["last"] = last

    def _malicious(self, context: AggregationContext) -> set[int]:
        """The clients found, if any: those of the group with the larger scores."""
        import numpy as np
        import torch

        errors: dict[int, list[float]] = context.state.get("errors", {})
        judged = {c: float(np.mean(e)) for c, e in errors.items() if len(e) >= self.window}
        if len(judged) < 3:
            return set()
        scores = np.array(list(judged.values()))
        spread = scores.max() - scores.min()
        if spread <= 0:
            return set()
        scores = (scores - scores.min()) / spread
        generator = context.generator
        drawn = torch.rand((self.references, len(scores)), generator=generator, device=generator.device)
        if number_of_groups(scores, drawn.cpu().double().numpy(), self.groups) == 1:
            return set()
        labels = _kmeans(scores, 2)[0]
        larger = int(scores[labels == 1].mean() > scores[labels == 0].mean())
        return {c for c, label in zip(judged, labels, strict=True) if label == larger}


def hessian_product(moves: list[Any], changes: list[Any], v: Tensor) -> Tensor:
    """B v (d,), B the compact L-BFGS approximation (Byrd, Nocedal, Schnabel 1994, equation 2.17).

    moves: differences s of the point; changes: differences y of the gradient; oldest first. B satisfies the
    secant equation B s = y for the newest pair. Where the small system is singular, its least-squares
    solution.
    """
    import torch

    s = torch.stack(moves).double()  # (m, d)
    y = torch.stack(changes).double()
    sy = s @ y.T
    lower = sy.tril(-1)
    diagonal = sy.diagonal().diag()
    newest = s[-1] @ s[-1]
    sigma = (y[-1] @ s[-1]) / newest if newest > 0 else torch.zeros((), dtype=torch.float64)
    middle = torch.cat([torch.cat([sigma * (s @ s.T), lower], 1), torch.cat([lower.T, -diagonal], 1)], 0)
    exact = v.double()
    right = torch.cat([sigma * (s @ exact), y @ exact])
    solved = torch.linalg.lstsq(middle.cpu(), right.cpu()[:, None], driver="gelsd").solution[:, 0].to(s)
    m = len(s)
    return (sigma * exact - (sigma * solved[:m]) @ s - solved[m:] @ y).to(v)


def _kmeans(values: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Labels (n,) and the sum of squared distances to the centres, values (n,)."""
    from sklearn.cluster import KMeans

    fitted = KMeans(n_clusters=k, n_init=10, random_state=0).fit(values.reshape(-1, 1))
    return fitted.labels_, float(fitted.inertia_)


def number_of_groups(values: np.ndarray, references: np.ndarray, most: int) -> int:
    """The gap statistic's number of groups in values (n,) in [0, 1] (Tibshirani, Walther, Hastie 2001).

    references (b, n): uniform samples. The least k with gap(k) >= gap(k + 1) - s(k + 1); `most` where there
    is none.
    """
    import numpy as np

    most = min(most, len(np.unique(values)))
    gaps, deviations = [], []
    for k in range(1, most + 1):
        logs = np.log([max(_kmeans(sample, k)[1], 1e-300) for sample in references])
        gaps.append(logs.mean() - np.log(max(_kmeans(values, k)[1], 1e-300)))
        deviations.append(logs.std() * np.sqrt(1 + 1 / len(references)))
        if k > 1 and gaps[-2] >= gaps[-1] - deviations[-1]:
            return k - 1
    return most


PLUGINS = (FLDetector,)
