"""Metrics: the scores they declare, from what they say they need."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from harness.contracts.defence import Guarantee
from harness.contracts.metric import CONTEXT_FIELDS, Certificate, Metric, MetricContext
from harness.contracts.privacy import Audit, Membership, Reconstruction
from harness.entry_points import BUILTIN
from harness.errors import PluginError
from harness.registry import registry
from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    Family,
    Setting,
    Subject,
    Trial,
    check,
    require,
)
from harness.testing.watch import guarded

ALWAYS = ("num_classes", "input_shape")
SHARES = ("share",)  # units whose values lie in [0, 1]
RECORDS = 240
MANY = 24_000  # enough non-members for every false-positive rate


def everything(setting: Setting, records: int = RECORDS) -> MetricContext:
    """A context of three classes in which everything is known."""
    import torch

    from harness.testing.toy import CLASSES, toy

    world = toy(setting)
    rng = np.random.default_rng(int(setting.other))
    labels = rng.integers(0, CLASSES, records)
    logits = rng.normal(size=(records, CLASSES)).astype(np.float32)
    logits[np.arange(records), labels] += 2
    shifted = (logits + rng.normal(size=logits.shape)).astype(np.float32)
    member = np.arange(records) < records // 2
    images = (torch.rand((2, *world.shape), generator=torch.Generator().manual_seed(0)).clamp(0, 1),)
    return MetricContext(
        num_classes=CLASSES,
        input_shape=world.shape,
        labels=labels,
        logits=logits,
        adversarial_logits=shifted,
        triggered_logits=shifted,
        triggered_labels=labels,
        backdoor_target=0,
        membership=Membership(rng.normal(size=records) + member, member, np.arange(records) // 4),
        reconstruction=Reconstruction(
            images, (world.labels[:2],), tuple((0.9 * i).clamp(0, 1) for i in images), (world.labels[:2],),
            images[0].mean(0), torch.full((CLASSES,), 1 / CLASSES),
        ),
        audit=Audit(0.7, 1e-5, 0.95),
        module=world.net,
        state={name: t.clone() for name, t in world.net.state_dict().items()},
        training={
            "train_seconds": 2.0, "uplink_bytes_per_round": 400.0, "downlink_bytes_per_round": 400.0, "rounds": 3,
            "peak_memory_bytes": 10**6,
            "detection": {"flagged_malicious": 3, "flagged_honest": 1, "kept_malicious": 1, "kept_honest": 7},
        },
        guarantee=Guarantee(unit="record", epsilon=3.0, delta=1e-5, accountant="rdp", group_epsilon=9.0),
        uncompressed_logits=shifted,
        certificate=Certificate(labels[:90], np.where(np.arange(90) % 9, labels[:90], -1), rng.random(90), 1.5),
    )  # fmt: skip


def _withheld(metric: Metric, known: MetricContext, setting: Setting) -> MetricContext:
    return guarded(known, {
        name: setting.forbid(
            f"{metric.name} reads context.{name} and does not declare it: add {name!r} to `needs`, so that it "
            "is computed "
            "where there is one"
        )
        for name in CONTEXT_FIELDS if name not in (*metric.needs, *ALWAYS)
    })  # fmt: skip


def _trial(metric: Metric, setting: Setting) -> Trial:
    known = everything(setting)
    context = _withheld(metric, known, setting)
    inputs = {name: getattr(known, name) for name in metric.needs}

    def call() -> dict[str, Any]:
        return {"scores": metric.score(context), "intervals": metric.intervals(context)}

    return Trial(inputs, call)


FAMILIES["metric"] = Family("metric", _trial, dtypes=("float32",))


def described(subject: Subject, scores: Any) -> None:
    """Raises CheckFailed where a declared score does not say what it is."""
    for name, score in scores.items():
        require(
            bool(score.description.strip()),
            f"the score {name!r} of {subject.name} has no description: boards print it",
        )
        require(
            re.fullmatch(r"[A-Za-z0-9_.]+", name) is not None,
            f"the score {name!r} of {subject.name} is no column name: letters, digits, dots and underscores",
        )  # fmt: skip


@check("metric")
def scores_declared(subject: Subject) -> None:
    """It declares at least one score, each with direction, unit and description."""
    require(bool(subject.cls.scores), f"{subject.name} declares no scores: set `scores`")  # type: ignore[attr-defined]
    described(subject, subject.cls.scores)  # type: ignore[attr-defined]


@check("metric")
def score_names_own(subject: Subject) -> None:
    """No built-in metric declares a score of the same name: in one scenario one would overwrite the other."""
    for entry in registry().entries("metric"):
        other: Any = entry.plugin
        if entry.distribution == BUILTIN and other is not subject.cls:
            taken = sorted(set(subject.cls.scores) & set(other.scores))  # type: ignore[attr-defined]
            require(
                not taken,
                f"{subject.name} declares the score {taken[0] if taken else ''!r}, which the built-in metric "
                f"{other.name} declares: give it another name",
            )


@check("metric")
def scores_exactly_declared(subject: Subject) -> None:
    """Where everything is known it returns the scores it declares, all of them and no others."""
    outcome, declared = subject.outcome(), subject.plugin.scores
    found = outcome.output["scores"]
    require(
        isinstance(found, dict), f"{subject.name} returns {type(found).__name__}, not a dictionary of scores"
    )
    if set(declared) - set(found):  # some need many records
        found = subject.plugin.score(everything(outcome.setting, MANY))
    unknown = sorted(set(found) - set(declared))
    require(
        not unknown,
        f"{subject.name} returns the score {unknown[0] if unknown else ''!r} and does not declare it: add it "
        "to `scores`",
    )
    lacking = sorted(set(declared) - set(found))
    require(
        not lacking,
        f"{subject.name} declares the score {lacking[0] if lacking else ''!r} and does not return it where "
        "everything it needs "
        "is known",
    )


@check("metric")
def scores_well_formed(subject: Subject) -> None:
    """Scores are numbers, shares lie in [0, 1], intervals hold the score."""
    output, declared = subject.outcome().output, subject.plugin.scores
    for name, value in output["scores"].items():
        require(
            isinstance(value, (int, float)) and not isinstance(value, bool),
            f"the score {name!r} of {subject.name} is {type(value).__name__}: return float(...)",
        )
        require(
            not math.isnan(value), f"the score {name!r} of {subject.name} is NaN where everything is known"
        )
        if name in declared and declared[name].unit in SHARES:
            least = -1 if "similarity" in declared[name].description else 0
            require(
                least <= value <= 1, f"the score {name!r} of {subject.name} is {value:g}, and a share lies in [0, 1]"
            )  # fmt: skip
    for name, (low, high) in output["intervals"].items():
        require(
            name in output["scores"] and low <= output["scores"][name] <= high,
            f"the interval [{low:g}, {high:g}] of {subject.name} does not hold its score {name!r}",
        )


@check("metric", when=lambda plugin: any("logits" in name for name in plugin.needs))
def survives_nan(subject: Subject) -> None:
    """Logits of a model that diverged give a score in its range, NaN or nothing, or a PluginError; no crash."""
    from dataclasses import replace

    metric, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    known = everything(setting)
    spoilt = {}
    for name in metric.needs:
        value = getattr(known, name)
        if "logits" in name:
            spoilt[name] = np.full_like(value, np.nan)
    try:
        found = metric.score(replace(known, **spoilt))
    except PluginError:
        return
    except Exception as error:
        raise CheckFailed(
            f"{subject.name} breaks on logits that are NaN: {type(error).__name__}: {error}. A model may "
            "diverge: count such "
            "predictions as wrong, or leave the score out"
        ) from error
    for name, value in found.items():
        score = metric.scores.get(name)
        best = score is not None and score.unit in SHARES and score.direction == "higher" and value == 1
        require(
            not best,
            f"the score {name!r} of {subject.name} is perfect for logits that are all NaN: count undefined "
            "predictions as wrong",
        )
