"""(epsilon, delta) of subsampled Gaussian mechanisms, composed over segments, on Opacus' accountants.

A history is a list of segments (noise_multiplier, sample_rate, steps): each step includes each record
independently with probability sample_rate (Poisson sampling), sums vectors of L2 norm at most C, and
adds N(0, (noise_multiplier C)^2) noise. Neighbours differ by one record added or removed.

    rdp   Renyi DP of the sampled Gaussian mechanism (Mironov, Talwar, Zhang 2019, arXiv 1908.10530), turned
          into epsilon by Balle et al. 2020 (arXiv 1905.09982, theorem 21): an upper bound
    prv   numerical composition of privacy loss variables (Gopi, Lee, Wutschitz 2021, arXiv 2106.02848):
          a tighter bound; its grid adds up to 0.01 to epsilon, so rdp is taken where it gives less, which is at
          small epsilons
    pld   privacy loss distributions, discretised so that epsilon is never understated (Doroshenko et al. 2022,
          arXiv 2207.04380), by dp-accounting: usually the tightest; rdp is taken where it gives less, which is
          where very many steps of small loss make the grid too coarse; needs `pip install dp-accounting`
    gdp   central limit theorem (Bu et al. 2020, arXiv 1911.11607): an approximation that can understate epsilon,
          by far where noise is small or steps are few, and so no guarantee
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from harness.errors import PluginError

Segment = tuple[float, float, int]  # noise multiplier, sample rate, steps
History = tuple[Segment, ...]

ACCOUNTANTS = ("rdp", "prv", "pld", "gdp")
APPROXIMATE = ("gdp",)  # not upper bounds
_EXTRAS = {"pld": {"dp_accounting": "psr-harness[pld]"}}
# Below this delta, rdp (also an upper bound) replaces prv and pld: the rounding error of prv's Fourier transform is no
# longer small beside delta, and pld's truncated tails, which count as infinite losses, come near delta.
MIN_DELTA = 1e-10
# Above this epsilon, rdp (also an upper bound) replaces prv, as exp(epsilon) nears the largest float64, and pld, whose
# arrays grow with the losses until they fit no memory.
MAX_EPSILON = 500.0
MAX_NOISE = 1e7

# Opacus' own orders, and more at both ends. (order - 1) times the RDP is convex in the order, so the bound has one
# minimum over orders: where Opacus finds it inside its own range, the result is the same; where Opacus warns that
# the best order lies at the end of its range, the added orders reach it.
_ORDERS = (
    *(1.001, 1.002, 1.005, 1.01, 1.02, 1.03, 1.05, 1.07),
    *(1 + x / 10.0 for x in range(1, 100)),
    *range(12, 64),
    *(64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024),
)


def accountant_extras(accountant: object) -> Mapping[str, str]:
    """The libraries that an accountant needs and a plain installation lacks, in the form of `Plugin.extras`."""
    return _EXTRAS.get(str(accountant), {})


def epsilon(history: Iterable[Sequence[float]], delta: float, accountant: str = "rdp") -> float:
    """The epsilon that the segments spend together at this delta, in [0, inf].

    inf if a segment with steps has no noise; 0 if there are no steps. Cached. Raises PluginError if a segment, delta
    or the accountant's name is not valid. Warns for gdp, whose epsilon may be too small.
    """
    segments = _segments(history)
    _check(delta, accountant)
    if accountant == "gdp":
        warnings.warn("gdp accounting is an approximation that can understate epsilon", stacklevel=2)
    return _epsilon(segments, math.log(delta), accountant)


def noise_multiplier(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str = "rdp"
) -> float:
    """The noise multiplier with which `steps` steps spend at most target_epsilon, and at least 99.9 % of it.

    Less is spent at large targets: no multiplier below about 1e-3 is tried, and an accountant's epsilon jumps where
    another bound replaces it. 0 if steps or sample_rate is 0. Cached. Raises PluginError if no noise multiplier up to
    1e7 is enough.
    """
    _segments([(1.0, sample_rate, steps)])
    _check(delta, accountant)
    if not 0 < target_epsilon < math.inf:
        raise PluginError(f"the target epsilon must be positive and finite, not {target_epsilon}")
    if accountant == "gdp":
        warnings.warn("gdp accounting is an approximation that can understate epsilon", stacklevel=2)
    if not steps or not sample_rate:
        return 0.0
    return _noise_multiplier(float(target_epsilon), float(delta), float(sample_rate), int(steps), accountant)


def caveats(mechanism: str, epsilon: float, accountant: str) -> list[str]:
    """Why an epsilon that this accountant computed for a mechanism is not a guarantee; empty if it is one."""
    if not math.isfinite(epsilon):
        return [f"{mechanism} adds no noise"]
    if accountant in APPROXIMATE:
        return [
            f"{mechanism} is accounted by {accountant}, an approximation that can fall short: take rdp, prv or pld"
        ]
    return []


def group_epsilon(
    histories: Iterable[Iterable[Sequence[float]]], delta: float, k: int, accountant: str = "rdp"
) -> float:
    """The epsilon, at the same delta, for groups of k records added or removed together.

    histories: one per client. A group's records may be spread over several clients: they are changed one at a
    time, each at one client, so each change costs at most e(d), the largest epsilon of a client at delta d.
    Record-level (e, d)-DP gives (k e, k exp((k - 1) e) d)-DP for k records (Vadhan 2017, The Complexity of
    Differential Privacy, lemma 2.2). Returns k e(d) for the largest d with k exp((k - 1) e(d)) d <= delta, found by
    bisection on log d; inf if there is no such d. Below d = 1e-10, rdp (also an upper bound) replaces prv and pld.
    Raises PluginError for k < 1, a delta outside (0, 1) and an unknown accountant.
    """
    clients = tuple(_segments(history) for history in histories)
    _check(delta, accountant)
    if k < 1:
        raise PluginError(f"a group has at least one record, not {k}")
    if k == 1:
        return max((epsilon(client, delta, accountant) for client in clients), default=0.0)
    return _group_epsilon(clients, math.log(delta), int(k), accountant)


# record level -----------------------------------------------------------------------------------


def _segments(history: Iterable[Sequence[float]]) -> History:
    segments = []
    for sigma, rate, steps in history:
        if not (sigma >= 0 and 0 <= rate <= 1 and steps >= 0 and int(steps) == steps):
            raise PluginError(
                "a segment is (noise multiplier >= 0, sample rate in [0, 1], whole steps >= 0), "
                f"not {(sigma, rate, steps)}"
            )
        if rate and steps:
            segments.append((float(sigma), float(rate), int(steps)))
    return tuple(segments)


def _check(delta: float, accountant: str) -> None:
    if not 0 < delta < 1:
        raise PluginError(f"delta must lie in (0, 1), not {delta}")
    if accountant not in ACCOUNTANTS:
        raise PluginError(f"unknown accountant {accountant!r}; valid: {', '.join(ACCOUNTANTS)}")


@lru_cache(maxsize=4096)
def _epsilon(history: History, log_delta: float, accountant: str) -> float:
    if not history:
        return 0.0
    if any(sigma == 0 for sigma, _, _ in history):
        return math.inf
    if accountant == "gdp":
        return _gdp_epsilon(_gdp_mu(history), log_delta)
    if accountant == "rdp" or log_delta < math.log(MIN_DELTA):
        return _rdp_epsilon(history, log_delta)
    if accountant == "prv":
        return _prv_epsilon(history, math.exp(log_delta))
    return _pld_epsilon(history, math.exp(log_delta))


def _rdp_epsilon(history: History, log_delta: float) -> float:
    @cache
    def bound(i: int) -> float:
        order = float(_ORDERS[i])
        rdp = sum(steps * _rdp(sigma, rate, order) for sigma, rate, steps in history)
        value = rdp - (log_delta + math.log(order)) / (order - 1) + math.log((order - 1) / order)
        return math.inf if math.isnan(value) else value

    # One minimum, and infinite values only at the right end: bisect on the sign of the slope.
    low, high = 0, len(_ORDERS) - 1
    while low < high:
        middle = (low + high) // 2
        if bound(middle) <= bound(middle + 1):
            high = middle
        else:
            low = middle + 1
    return max(0.0, bound(low))


@lru_cache(maxsize=1 << 16)
def _rdp(sigma: float, rate: float, order: float) -> float:
    from opacus.accountants.analysis.rdp import compute_rdp

    return float(compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=order))


def _prv_epsilon(history: History, delta: float) -> float:
    import numpy as np
    from opacus.accountants import PRVAccountant

    bound = _rdp_epsilon(history, math.log(delta))
    if bound > MAX_EPSILON:
        return bound
    accountant = PRVAccountant()
    accountant.history = list(history)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return max(0.0, min(float(accountant.get_epsilon(delta=delta)), bound))


def _pld_epsilon(history: History, delta: float) -> float:
    bound = _rdp_epsilon(history, math.log(delta))
    if bound > MAX_EPSILON:
        return bound
    return max(0.0, min(float(_pld(history).get_epsilon(delta)), bound))


@lru_cache(maxsize=16)
def _pld(history: History) -> Any:
    """The composed privacy loss distribution. Cached: composing it takes long, reading an epsilon from it does not."""
    try:
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise PluginError(
            "the accountant pld needs dp-accounting: pip install 'psr-harness[pld]', or take prv"
        ) from None
    accountant = PLDAccountant()
    for sigma, rate, steps in history:
        step = GaussianDpEvent(sigma)
        accountant.compose(
            SelfComposedDpEvent(step if rate == 1 else PoissonSampledDpEvent(rate, step), steps)
        )
    return accountant


def _gdp_mu(history: History) -> float:
    """The mu of all segments: the root of the sum of their squares. Opacus' GaussianAccountant counts only the last."""
    from opacus.accountants.analysis.gdp import compute_mu_poisson

    if any(sigma < 0.04 for sigma, _, _ in history):
        return math.inf  # exp(1 / sigma^2) leaves the range of float64
    return math.hypot(
        *(
            float(compute_mu_poisson(steps=steps, noise_multiplier=sigma, sample_rate=rate))
            for sigma, rate, steps in history
        )
    )


def _gdp_epsilon(mu: float, log_delta: float) -> float:
    """The root of delta(epsilon) = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2)."""
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    if math.isinf(mu):
        return math.inf

    def excess(epsilon: float) -> float:
        first = float(log_ndtr(-epsilon / mu + mu / 2))
        second = epsilon + float(log_ndtr(-epsilon / mu - mu / 2))
        return first + math.log(max(-math.expm1(second - first), 1e-300)) - log_delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-13, rtol=1e-14))


# calibration and groups -------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _noise_multiplier(target: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    def spent(sigma: float) -> float:
        return _epsilon(((sigma, rate, steps),), math.log(delta), accountant)

    low, high = 0.5, 1.0
    while spent(high) > target:
        low, high = high, 2 * high
        if high > MAX_NOISE:
            raise PluginError(
                f"no noise multiplier up to {MAX_NOISE:g} reaches epsilon {target:g} at delta {delta:g}: "
                "allow a larger epsilon, fewer steps or a smaller sample rate"
            )
    while spent(low) <= target and low > 1e-3:
        low, high = low / 2, low
    # Bisect on log sigma; `high` always meets the target, so the result does too.
    while target - spent(high) > 1e-3 * target and high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        if spent(middle) <= target:
            high = middle
        else:
            low = middle
    return high


@lru_cache(maxsize=1024)
def _group_epsilon(clients: tuple[History, ...], log_delta: float, k: int, accountant: str) -> float:
    def largest(log_d: float) -> float:
        return max((_epsilon(history, log_d, accountant) for history in clients), default=0.0)

    def excess(log_d: float) -> float:
        return math.log(k) + (k - 1) * largest(log_d) + log_d - log_delta

    feasible, infeasible = log_delta - math.log(k), 0.0
    # As d falls, log 1/d outgrows (k - 1) e(d) from some d on, or never.
    while excess(feasible) > 0:
        infeasible, feasible = feasible, 2 * feasible
        if feasible < -1e9:
            return math.inf
    while infeasible - feasible > 1e-6 * abs(feasible) and infeasible < 0:
        middle = (feasible + infeasible) / 2
        if excess(middle) <= 0:
            feasible = middle
        else:
            infeasible = middle
    return k * largest(feasible)
