"""What rules cost: the work grows as their docstrings say."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

from harness.contracts.aggregator import AggregationContext, Aggregator
from harness.errors import NotApplicable, PluginError
from harness.testing.aggregators import BOTH, apply, tolerance
from harness.testing.core import CheckSkipped, Subject, check, require


@check(*BOTH)
def cost_as_documented(subject: Subject) -> None:
    """The work grows with n and d no faster than the O(...) in the docstring says.

    It counts the elements that torch's operations read and write; work in NumPy is not seen.
    """
    cost = documented_cost(inspect.getdoc(subject.cls) or "")
    if cost is None:
        raise CheckSkipped("its docstring states no cost in n and d alone, such as `Costs O(n d)`")
    subject.outcome()
    small = _work(subject.plugin, 16, 4096)
    for n, d in ((48, 4096), (16, 16384)):
        grown, allowed = _work(subject.plugin, n, d) / small, cost(n, d) / cost(16, 4096)
        require(
            grown <= 1.5 * allowed,
            f"the work of {subject.name} grows {grown:.1f}-fold from n = 16, d = 4096 to n = {n}, d = {d}, the cost in "
            f"its docstring {allowed:.1f}-fold: correct the docstring, or the code (a loop over pairs of rows?)",
        )


def documented_cost(text: str) -> Any:
    """The `Costs O(...)` of a docstring as a function of n and d; None without one, or where it has other letters."""
    found = re.search(r"\bCosts? O\(((?:[^()]|\([^()]*\))*)\)(?!\s*(?:and|plus|forward))", text)
    if found is None:
        return None
    words = found.group(1).replace("²", "^2")
    if set(re.findall(r"[A-Za-z_]+", words)) - {"n", "d", "log"}:
        return None
    words = re.sub(r"log\s*\(?([nd])\)?", r"log(\1)", words)
    words = re.sub(r"(?<=[\w)])\s+(?=[nd(l])", " * ", words).replace("^", "**")
    try:
        code = compile(words, "cost", "eval")
        eval(code, {"__builtins__": {}}, {"n": 3, "d": 5, "log": math.log})
    except Exception:
        return None
    return lambda n, d: eval(code, {"__builtins__": {}}, {"n": n, "d": d, "log": math.log})


def _work(rule: Aggregator, n: int, d: int) -> int:
    """Elements read and written by torch for updates (n, d). Raises CheckSkipped where the rule needs the network."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Count(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves((args, kwargs, result)):
                if isinstance(leaf, torch.Tensor):
                    Count.total += leaf.numel()
            return result

    draw = torch.Generator().manual_seed(0)
    rows = torch.randn((n, d), generator=draw)
    try:
        f = tolerance(rule, n)
        context = AggregationContext(
            round=0, f=f, weights=torch.full((n,), 1 / n), client_ids=list(range(n)),
            layout={"all": slice(0, d)}, generator=draw, noise=torch.Generator().manual_seed(1),
            global_weights=torch.ones(d), root_update=lambda: rows[0].clone(),
        )  # fmt: skip
        with Count():
            apply(rule, rows, context)
    except (PluginError, NotApplicable) as error:
        raise CheckSkipped(f"it cannot be tried with {n} rows and without a network: {error}") from error
    return Count.total
