"""Which stacks keep a guarantee, with the built-in plugins: the table people look up."""

import pytest

from harness.contracts.defence import PrepareContext, StackContext
from harness.privacy.lineage import BREAKS, Parts, apply_lineage, lineage
from harness.registry import resolve
from harness.scenario import load_text

SGD, FEDAVG, FTRL, LOCAL = ({name: {"epsilon": 8}} for name in ("dp-sgd", "dp-fedavg", "dp-ftrl", "local-dp"))


def resolved(kind, values):
    return tuple(resolve(kind, value) for value in values)


def guarantee_of(defences):
    """What a training of ten rounds with these defences claims, or None."""
    context = PrepareContext(
        sizes=[100] * 10,
        steps=[20] * 10,
        batch_size=10,
        records=1000,
        rounds=10,
        schedule=[list(range(10))] * 10,
    )
    for defence in defences:
        found = defence.guarantee([defence.prepare(context)])
        if found is not None:
            return found.model_copy(update={"by": defence.name})
    return None


# defences, aggregators, compressors, unprotected, the words of the reason (None: it holds)
PLANS = [
    ([SGD], ["mean"], [], [], None),
    ([SGD], ["krum"], [], [], None),
    ([SGD], ["nnm", "trimmed-mean"], [], [], None),
    ([SGD], ["fltrust"], [], [], "fltrust takes root data"),
    ([SGD], ["fltrust"], [], ["val"], None),
    ([SGD], [{"fltrust": {"root": "public"}}], [], ["val"], None),
    ([SGD], [{"monna": {"trusted": "root"}}], [], [], "monna takes root data"),
    ([SGD], ["mean"], ["static-int8"], [], "static-int8 reads the validation split"),
    ([SGD], ["mean"], [{"static-int8": {"calibration": "private"}}], [], "static-int8 reads"),
    ([SGD], ["mean"], [{"static-int8": {"calibration": "public"}}], ["val"], None),
    ([SGD], ["mean"], ["dynamic-int8"], [], None),
    ([SGD], ["mean"], ["weight-only"], [], None),
    ([SGD], ["mean"], ["half-precision"], [], None),
    ([SGD], ["mean"], [{"magnitude-pruning": {"ratio": 0.5}}], [], None),
    ([SGD], ["mean"], [{"structured-pruning": {"ratio": 0.5, "fine_tune_rounds": 2}}], [], None),
    (
        [SGD],
        ["mean"],
        [{"structured-pruning": {"ratio": 0.5, "importance": "taylor"}}],
        [],
        "structured-pruning reads",
    ),
    ([SGD], ["mean"], ["distillation"], [], None),
    ([SGD], ["mean"], [{"distillation": {"data": "private"}}], [], "distillation reads the validation split"),
    ([SGD], ["mean"], [{"distillation": {"data": "public"}}], ["val"], None),
    ([SGD], ["mean"], ["qat-int8"], [], "qat-int8 reads"),
    ([SGD], ["mean"], ["qat-int8"], ["val"], None),
    ([SGD], ["mean"], ["qsgd"], [], None),
    ([SGD], ["mean"], ["powersgd"], [], None),
    ([SGD], ["mean"], [{"structured-pruning": {"ratio": 0.5}}, "static-int8"], [], "static-int8 reads"),
    ([SGD, "secure-aggregation"], ["mean"], [], [], None),
    (["gradient-pruning", SGD], ["mean"], [], [], None),
    ([FEDAVG], ["mean"], [], [], None),
    ([FEDAVG], ["median"], [], [], "median is no uniform mean"),
    ([FEDAVG], ["krum"], [], [], "krum is no uniform mean"),
    ([FEDAVG], ["nnm", "mean"], [], [], "nnm is no uniform mean"),
    ([FEDAVG], ["mean"], ["powersgd"], [], "powersgd lets one client's update change"),
    ([FEDAVG], ["mean"], ["qsgd"], [], None),
    ([FEDAVG], ["mean"], ["static-int8"], [], "static-int8 reads"),
    ([FTRL], ["mean"], [], [], None),
    ([FTRL], ["trimmed-mean"], [], [], "trimmed-mean is no uniform mean"),
    ([LOCAL], ["mean"], [], [], None),
    ([LOCAL], ["krum"], [], [], None),
    ([LOCAL], ["mean"], ["powersgd"], [], None),
    ([{"dp-sgd": {"noise_multiplier": 0}}], ["mean"], [], [], "dp-sgd adds no noise"),
    ([{"dp-fedavg": {"noise_multiplier": 0}}], ["mean"], [], [], "dp-fedavg adds no noise"),
    *(
        (
            [{name: {"noise_multiplier": 1, "accountant": "gdp"}}],
            ["mean"],
            [],
            [],
            f"{name} is accounted by gdp",
        )
        for name in ("dp-sgd", "dp-fedavg", "local-dp")
    ),
]


def plan_id(plan):
    defences, aggregators, compressors, unprotected, _ = plan
    words = [v if isinstance(v, str) else next(iter(v)) for v in (*defences, *aggregators, *compressors)]
    return "+".join([*words, *unprotected])


@pytest.mark.filterwarnings("ignore:gdp accounting")
@pytest.mark.parametrize("plan", PLANS, ids=map(plan_id, PLANS))
def test_which_plans_keep_their_guarantee(plan):
    defences, aggregators, compressors, unprotected, reason = plan
    parts = Parts(
        defences=resolved("defence", defences),
        aggregators=resolved("aggregator", aggregators),
        compressors=resolved("compressor", compressors),
        unprotected=tuple(unprotected),
    )
    claimed = guarantee_of(parts.defences)
    settled = apply_lineage(claimed, parts)
    assert settled.holds is (reason is None), settled.broken_by
    if reason is not None:
        assert len(settled.broken_by) == 1
        assert settled.broken_by[0].startswith(reason)
    chain = lineage(settled, parts)
    assert [step.why for step in chain if step.effect == BREAKS] == settled.broken_by
    created = [step.part for step in chain if step.effect == "creates"]
    assert len(created) == (0 if reason and ("no noise" in reason or "gdp" in reason) else 1)
    assert [step.stage for step in chain if step.stage in ("data", "release")] == ["data", "release"]


def test_fine_tuning_is_accounted_for():
    pruning = resolved("compressor", [{"structured-pruning": {"ratio": 0.5, "fine_tune_rounds": 2}}])
    parts = Parts(
        defences=resolved("defence", [SGD]), aggregators=resolved("aggregator", ["mean"]), compressors=pruning
    )
    step = next(s for s in lineage(guarantee_of(parts.defences), parts) if s.stage == "compression")
    assert (step.effect, step.reads) == ("accounted", "private")


def test_a_plan_without_a_guarantee_claims_nothing_anywhere():
    parts = Parts(
        defences=resolved("defence", ["gradient-pruning"]),
        aggregators=resolved("aggregator", ["fltrust"]),
        compressors=resolved("compressor", ["static-int8"]),
    )
    assert {step.effect for step in lineage(None, parts)} == {"no guarantee"}


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-ftrl", "local-dp"])
def test_running_statistics_are_refused(name):
    import torch

    defence = resolve("defence", {name: {"epsilon": 8}})
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    from harness.errors import NotApplicable

    with pytest.raises(NotApplicable, match="running statistics that 1"):
        defence.check(StackContext((defence,), 0, net))


def test_the_chain_is_in_the_record(tmp_path):
    import harness

    text = (
        "schema: 1\nname: chain\ndataset: digits\nmodel: logistic\n"
        "federation: {clients: 3, rounds: 1}\ndefences: [none, dp-sgd: {epsilon: 8}]\n"
        "compressors: [none, static-int8]\nthreats: [{name: none}]\n"
    )
    run = harness.run(load_text(text, tmp_path / "chain.yaml"), device="cpu", jobs=0, store=tmp_path / "s")
    assert run.failed == 0
    for record in run.records:
        stages = [step["stage"] for step in record["lineage"]]
        assert stages[0] == "data"
        assert stages[-1] == "release"
        broken = [step["why"] for step in record["lineage"] if step["effect"] == "breaks"]
        assert broken == (record["guarantee"] or {"broken_by": []})["broken_by"]
    assert any(step["effect"] == "breaks" for record in run.records for step in record["lineage"])
