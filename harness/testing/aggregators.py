"""Aggregators and pre-aggregators: rows in, one update or other rows out."""

from __future__ import annotations

from typing import Any

from harness.contracts.aggregator import (
    MERGED,
    AggregationContext,
    Aggregator,
    PreAggregator,
    finite_rows,
)
from harness.errors import NotApplicable, PluginError
from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    CheckSkipped,
    Family,
    Setting,
    Subject,
    Trial,
    after,
    check,
    overrides,
    repeated,
    require,
)

ROWS, MALICIOUS = 11, 2
BOTH = ("aggregator", "pre-aggregator")


def _context(
    rule: Aggregator, rows: Any, f: int, setting: Setting, world: Any, **changes: Any
) -> AggregationContext:
    import torch

    from harness.testing.toy import generator, updates

    n = len(rows)
    root = setting.forbid(
        f"{rule.name} uses the root dataset and does not declare it: set `root_records` (and `data_access`), so that "
        "a privacy guarantee can be told of it"
    )
    if rule.root_records:
        own = updates(world, 1, seed=9)[0]
        root = own.clone
    given: dict[str, Any] = {
        "round": 1,
        "rounds": 3,
        "f": f,
        "weights": torch.full((n,), 1 / max(n, 1)).to(rows),
        "client_ids": list(range(n)),
        "layout": world.layout,
        "generator": generator(setting),
        "noise": generator(setting, 1),
        "global_weights": world.vector,
        "input_shape": world.shape,
        "logits": world.logits,
        "root_update": root,
    }
    return AggregationContext(**{**given, **changes})


def tolerance(rule: Aggregator, n: int) -> int:
    """The largest f, at most 2, that the rule's conditions allow. Raises PluginError where they allow none."""
    problem: Exception | None = None
    for f in range(min(MALICIOUS, (n - 1) // 2), -1, -1):
        try:
            rule.check(n, f)
        except PluginError as error:
            problem = error
        else:
            return f
    raise PluginError(f"no f is tolerated among {n} rows: {problem}")


def apply(rule: Aggregator, rows: Any, context: AggregationContext) -> dict[str, Any]:
    if isinstance(rule, PreAggregator):
        transformed, after = rule.transform(rows, context)
        return {"rows": transformed, "weights": after.weights, "client_ids": after.client_ids, "f": after.f}
    return {"update": rule.aggregate(rows, context)}


def _trial(rule: Aggregator, setting: Setting) -> Trial:
    from harness.testing.toy import toy, updates

    world = toy(setting)
    rows = updates(world, ROWS)
    f = tolerance(rule, ROWS)
    rows[:f] *= -5
    reports: list[dict[str, Any]] = []
    context = _context(rule, rows, f, setting, world, reporter=reports.append)
    inputs: dict[str, Any] = {
        "updates": rows,
        "weights": context.weights,
        "global_weights": context.global_weights,
    }
    inputs["client_ids"] = context.client_ids
    return Trial(
        inputs, lambda: {**apply(rule, rows, context), "reports": reports}, ("update", "rows", "weights")
    )


for _name in BOTH:
    FAMILIES[_name] = Family(_name, _trial)


def _proper(rule: Aggregator, output: dict[str, Any], like: Any, what: str) -> None:
    """Raises CheckFailed where a result is not of the shape, dtype and range that the engine needs."""
    import torch

    n, d = like.shape
    if "update" in output:
        update = output["update"]
        found = tuple(update.shape) if isinstance(update, torch.Tensor) else type(update).__name__
        require(
            found == (d,),
            f"{rule.name} returns {found} for updates ({n}, {d}) ({what}), not one update, a tensor ({d},)",
        )
        require(
            bool(update.isfinite().all()), f"{rule.name} returns values that are not finite ({what}): "
            "raise PluginError with the reason instead, or leave the row out"
        )  # fmt: skip
        return
    rows, weights, ids, f = (output[name] for name in ("rows", "weights", "client_ids", "f"))
    require(
        rows.ndim == 2 and rows.shape[1] == d and len(rows) >= 1,
        f"{rule.name} returns rows {tuple(rows.shape)} for updates ({n}, {d}) ({what}), not (n', {d})",
    )
    require(
        len(weights) == len(rows) == len(ids) and 0 <= f <= len(rows),
        f"{rule.name} returns {len(rows)} rows with {len(weights)} weights, {len(ids)} client ids and f = {f} "
        f"({what}): "
        "return `context.with_rows(weights, client_ids, f)` that fits the rows",
    )
    require(
        bool(weights.min() >= 0) and abs(float(weights.sum()) - 1) < 1e-4,
        f"{rule.name} returns weights that do not sum to 1 ({what})",
    )
    require(bool(rows.isfinite().all()), f"{rule.name} returns rows that are not finite ({what})")


@check(*BOTH)
def result_well_formed(subject: Subject) -> None:
    """(n, d) becomes (d,), or rows with the weights, ids and f that fit them; all finite."""
    outcome = subject.outcome()
    _proper(subject.plugin, outcome.output, outcome.trial.inputs["updates"], "n = 11")


@check(*BOTH)
def few_clients(subject: Subject) -> None:
    """n = 2f + 1, two clients and a single one work, or are refused with a PluginError."""
    rule = subject.plugin
    after(subject, result_well_formed)
    for n, f in ((5, 2), (3, 1), (2, 0), (1, 0)):
        _edge(subject, n, f, f"n = {n}, f = {f}")
    if rule.accepts_empty:
        _edge(subject, 0, 0, "a round without updates")


def _edge(subject: Subject, n: int, f: int, what: str, change: Any = None) -> None:
    from harness.testing.toy import toy, updates

    rule, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    rows = updates(world, n) if n else world.vector.new_empty((0, len(world.vector)))
    if change is not None:
        rows = change(rows)
    try:
        if n:
            rule.check(n, f)
        rule, rows, context = (
            finite_rows(rule, rows, _context(rule, rows, f, setting, world))
            if n
            else (rule, rows, _context(rule, rows, f, setting, world))
        )
        if n:
            rule.check(len(rows), context.f)
        output = apply(rule, rows, context)
    except (PluginError, NotApplicable):
        return
    except Exception as error:
        raise CheckFailed(
            f"{rule.name} breaks with {what}: {type(error).__name__}: {error}. Refuse it in `check(n, f)` with a "
            "PluginError that has the numbers in it, or make it work"
        ) from error
    _proper(rule, output, rows, what)


@check(*BOTH)
def unusual_rows(subject: Subject) -> None:
    """Rows of zeros, equal rows, rows with NaN (which the engine drops) and a huge one give a finite result."""
    after(subject, result_well_formed)
    n, f = ROWS, tolerance(subject.plugin, ROWS)

    def with_nan(rows: Any) -> Any:
        rows[0] = float("nan")
        return rows

    def with_huge(rows: Any) -> Any:
        rows[0] = 1e30
        return rows

    _edge(subject, n, f, "rows of zeros", lambda rows: rows * 0)
    _edge(subject, n, f, "equal rows", lambda rows: rows[:1].repeat(n, 1))
    _edge(subject, n, f, "a row of NaN", with_nan)
    if f:
        _edge(subject, n, f, "a row of 1e30", with_huge)


@check(*BOTH)
def clients_in_any_order(subject: Subject) -> None:
    """The same clients in another order, with their weights and ids, give the same update, or the same rows, in the
    first round and in the second.

    Skipped for rules whose result depends on the context's generator (which client comes into which bucket).
    """
    after(subject, result_well_formed)
    _any_order(subject, 0)
    after(subject, several_rounds)
    _any_order(subject, 1)


def _any_order(subject: Subject, earlier: int) -> None:
    """clients_in_any_order in the round after `earlier` others, in which clients came in the order of their ids."""
    import torch

    from harness.testing.toy import toy, updates

    rule, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world, f = toy(setting), tolerance(subject.plugin, ROWS)
    rows = updates(world, ROWS).double()
    rows[:f] *= -5
    weights = torch.arange(1, ROWS + 1).to(rows)
    order = [(4 * i + 3) % ROWS for i in range(ROWS)]

    ordered = list(range(ROWS))

    def result(order: list[int], seed: int = 0) -> Any:
        state: dict[str, Any] = {}
        for number in range(earlier + 1):
            sent, ids = (rows, order) if number == earlier else (updates(world, ROWS, 3).double(), ordered)
            own = {
                "weights": weights[ids] / weights.sum(), "client_ids": list(ids), "state": state,
                "generator": torch.Generator().manual_seed(seed), "round": 1 + number,
            }  # fmt: skip
            output = apply(rule, sent[ids], _context(rule, sent[ids], f, setting, world, **own))
        return output["update"][None] if "update" in output else output["rows"]

    straight, moved = result(ordered), result(order)
    scale = straight.abs().max().clamp(min=1e-30)
    # Every row of one result needs an equal in the other: rows may come in the order of their clients.
    apart = (
        torch.cdist(straight / scale, moved / scale, p=float("inf")) if len(straight) == len(moved) else None
    )
    if apart is not None and bool((apart.amin(1) <= 1e-5).all()):
        return
    if any(not torch.equal(straight, result(ordered, seed)) for seed in range(1, 4)):
        raise CheckSkipped("it draws from the generator")
    raise CheckFailed(
        f"{rule.name} gives another result for the same clients in another order: an update, its weight and its "
        "client's id may count, never its position"
        + ". What is remembered of a client goes by its id in context.client_ids"
        * bool(earlier)
    )


@check(*BOTH)
def several_rounds(subject: Subject) -> None:
    """With its own state from the round before, later rounds work as the first did, and repeat exactly."""
    from harness.testing.toy import toy, updates

    after(subject, result_well_formed)
    rule, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world, f = toy(setting), tolerance(subject.plugin, ROWS)

    def play(number: int, state: dict[str, Any]) -> dict[str, Any]:
        rows = updates(world, ROWS, seed=number)
        context = _context(rule, rows, f, setting, world, round=number, state=state)
        try:
            output = apply(rule, rows, context)
        except Exception as error:
            raise CheckFailed(
                f"{rule.name} breaks in round {number + 1}, with its own state: {type(error).__name__}: {error}"
            ) from error
        _proper(rule, output, rows, f"round {number + 1}")
        return output

    repeated(subject, play)


@check(*BOTH)
def clients_as_declared(subject: Subject) -> None:
    """Rules that remember clients between rounds declare `follows_clients`; rules that merge rows, `merges_clients`."""
    from harness.testing.toy import toy, updates

    after(subject, result_well_formed)
    rule, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    if isinstance(rule, PreAggregator):
        require(
            rule.merges_clients or MERGED not in subject.outcome().output["client_ids"],
            f"{rule.name} returns rows of MERGED clients and does not declare it: set merges_clients = True, so that "
            "no rule that follows clients is put behind it",
        )
    if rule.follows_clients:
        return
    world, f = toy(setting), tolerance(rule, ROWS)

    def last_round(shift: int) -> Any:
        """The third round's result; with a shift, other clients sent the updates of the first two rounds."""
        state: dict[str, Any] = {}
        for number in range(3):
            rows = updates(world, ROWS, seed=number).double()
            ids = [i + shift * (2 - number) for i in range(ROWS)]
            context = _context(
                rule, rows, f, setting, world, round=number, rounds=9, state=state, client_ids=ids
            )
            output = apply(rule, rows, context)
        return output["update" if "update" in output else "rows"]

    def alike(one: Any, other: Any) -> bool:
        return one.shape == other.shape and bool(
            (one - other).abs().max() <= 1e-5 * (1e-30 + one.abs().max())
        )

    try:
        straight, again, shifted = (last_round(shift) for shift in (0, 0, 3))
    except Exception as error:
        raise CheckSkipped(f"three rounds cannot be run: {type(error).__name__}: {error}") from error
    if not alike(straight, again):
        raise CheckSkipped("it gives another result each time")
    require(
        alike(straight, shifted),
        f"{rule.name} gives another result where other clients sent the updates of earlier rounds, and does not "
        "declare it: set follows_clients = True, so that it is not put behind a pre-aggregator that merges clients",
    )


@check(*BOTH)
def report_valid(subject: Subject) -> None:
    """The rows it reports as kept exist."""
    for report in subject.outcome().output["reports"]:
        import torch

        if report.get("kept") is None:
            continue
        kept = torch.as_tensor(report["kept"])
        positions = kept.nonzero().flatten() if kept.dtype == torch.bool else kept
        fits = kept.dtype != torch.bool or len(kept) == ROWS
        require(
            fits and all(0 <= int(p) < ROWS for p in positions),
            f"{subject.name} reports rows {kept.tolist()} as kept, of {ROWS}: report positions, or a boolean a row",
        )


@check("aggregator", when=lambda plugin: not plugin.sets_weights)
def an_update_not_weights(subject: Subject) -> None:
    """It returns an update, which the server adds to the global weights, and not the new weights."""
    from harness.testing.toy import toy, updates

    after(subject, result_well_formed)
    rule, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world, f = toy(setting), tolerance(rule, ROWS)
    rows, found = updates(world, ROWS), []
    for shift in (0.0, 1.0):
        context = _context(rule, rows, f, setting, world, global_weights=world.vector + shift)
        found.append(apply(rule, rows, context)["update"])
    require(
        bool(((found[1] - found[0]) - 1).abs().mean() > 0.1),
        f"{rule.name} returns the global weights with the update: the server adds what a rule returns to them. Return "
        "the update alone, or, to set weights, aim - global_weights with sets_weights = True",
    )


@check("aggregator", when=lambda plugin: plugin.sum_only)
def sum_only_true(subject: Subject) -> None:
    """A rule that declares `sum_only` gives the same for other updates with the same weighted sum."""
    from harness.testing.toy import toy, updates

    rule, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    rows = updates(world, ROWS).double()
    moved = rows.clone()
    moved[0] += rows[3] * 4
    moved[1] -= rows[3] * 4
    results = [apply(rule, each, _context(rule, each, 0, setting, world))["update"] for each in (rows, moved)]
    require(
        bool((results[0] - results[1]).abs().max() <= 1e-9 * (1 + results[0].abs().max())),
        f"{rule.name} declares sum_only, but gives another result for updates with the same weighted sum: a "
        "server that "
        "sees the sum alone could not compute it. Set sum_only = False",
    )


@check("aggregator", when=lambda plugin: overrides(plugin, Aggregator, "inference"))
def deployed_model_answers(subject: Subject) -> None:
    """The model as deployed takes what the network took, and gives logits of the same shape."""
    from harness.testing.models import answers
    from harness.testing.toy import toy

    world = toy(Setting(scene=subject.outcome().setting.scene))
    answers(subject, subject.plugin.inference(world.net), world)
