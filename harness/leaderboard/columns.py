"""The leaderboard's columns: which score, under which attacks, pooled how, written how, on which tab."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from statistics import fmean
from typing import Literal

TABS = {
    "overview": "Overview",
    "robustness": "Robustness",
    "privacy": "Privacy",
    "compression": "Compression",
    "aggregation": "Aggregation",
    "ranks": "Ranks",
}
EVERY = ("overview", "robustness", "privacy", "compression", "aggregation")  # tabs that hold rows
ARROWS = {"higher": "↑", "lower": "↓"}


def written(value: float, digits: int) -> str:
    """A number as tables and boards write it: without decimals from 1000 on.

    Exact ties, such as 0.25 with one digit, are rounded away from zero, as in the page's script.
    """
    if not math.isfinite(value):
        return str(value)
    last = Decimal(1).scaleb(-digits if abs(value) < 1000 else 0)
    return str(Decimal(value).quantize(last, ROUND_HALF_UP))


def signs(value: object) -> str:
    """The marks that follow a value: those in MARKS whose field is true."""
    return "".join(sign for name, sign in MARKS.items() if getattr(value, name))


def is_part(used: int | None, whole: int | None) -> bool:
    """Whether fewer test records were used than there are; False if a number is missing, as in older files."""
    return used is not None and whole is not None and used < whole


def counts_under(family: str, attack: str) -> bool:
    """Whether cells under an attack of family `attack` count for a quantity of family `family`.

    They do if the families are the same. For clean quantities, evasion and privacy attacks count too: they are on the
    released model and leave clean scores as they are.
    """
    return attack == family or (family == "clean" and attack in ("evasion", "privacy"))


def part_tested(used: int | None, whole: int | None) -> str | None:
    """The note to show if a scenario's evaluation uses only a part of the test set, else None."""
    if not is_part(used, whole):
        return None
    return f"scores are of {used} of the {whole} test records: the scenario's evaluation.subset"


@dataclass(frozen=True)
class Column:
    """A quantity of a row.

    pooling: for each seed the `worst` attack or the `mean` over attacks counts; `claim` is what a guarantee states.
    scale: factor from the score's unit to the shown one. tabs: where the column is shown unless the reader chooses
    otherwise. measured: a time or a size of memory, which depends on the machine too and is not compared between
    submissions. chance: the score of an attack that guesses; scoring below it is no sign of better protection, so
    lower values are compared as if they were this one.
    """

    key: str
    title: str
    unit: str
    score: str
    family: Literal["clean", "evasion", "byzantine", "backdoor", "privacy", "any"]
    better: Literal["higher", "lower"]
    tabs: tuple[str, ...]
    note: str
    scale: float = 1.0
    digits: int = 1
    pooling: Literal["worst", "mean", "claim"] = "worst"
    measured: bool = False
    chance: float | None = None

    def compared(self, value: float) -> float:
        """What a value counts as in comparisons between rows: see `chance`. It is shown unchanged."""
        return value if self.chance is None else max(value, self.chance)

    def counts(self, attack: str, eps: float | None) -> bool:
        """Whether a cell under an attack of family `attack` counts, see `counts_under`; a mean leaves radius 0 out."""
        return counts_under(self.family, attack) and not (self.pooling == "mean" and eps == 0)

    @property
    def pool(self) -> Callable[[Sequence[float]], float]:
        """The function that pools one seed's scores under all attacks into one."""
        if self.pooling == "mean":
            return fmean
        return min if self.better == "higher" else max

    @property
    def hollow(self) -> bool:
        """Whether the column says nothing about a model that predicts one class for every image: see HOLLOW."""
        contributed = self.key not in BY_KEY
        return self.key in HOLLOW or (contributed and self.family in ("evasion", "backdoor"))

    @property
    def header(self) -> str:
        """`Clean accuracy [%] ↑`."""
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{self.title}{unit} {ARROWS[self.better]}"

    def show(self, value: float) -> str:
        """A value in the column's unit, with its digits."""
        return written(value * self.scale, self.digits)

    def with_unit(self, value: float) -> str:
        """A value with its unit, for a sentence: `91.0 %`."""
        return f"{self.show(value)} {self.unit}".rstrip()


COLUMNS = (
    Column("accuracy", "Clean accuracy", "%", "accuracy", "clean", "higher", EVERY,
           "accuracy on the test set without an attack", 100),
    Column("balanced", "Balanced accuracy", "%", "balanced_accuracy", "clean", "higher", (),
           "recall averaged over classes, whatever their sizes", 100),
    Column("auroc", "AUROC", "", "auroc", "clean", "higher", (),
           "area under the ROC curve of each class against the others, class average; 0.50 is chance", digits=3),
    Column("robust", "Robust, worst", "%", "robust_accuracy", "evasion", "higher",
           ("overview", "robustness", "compression"),
           "accuracy under the worst attack at inference", 100),
    Column("robust_mean", "Robust, mean", "%", "robust_accuracy", "evasion", "higher", ("robustness",),
           "accuracy under attacks at inference, averaged over attacks and radii above 0", 100, pooling="mean"),
    Column("certified", "Certified", "%", "certified_accuracy", "clean", "higher", ("robustness",),
           "test images classified correctly with a certified radius above zero", 100),
    Column("byzantine", "Attacked, worst", "%", "accuracy", "byzantine", "higher",
           ("overview", "robustness", "aggregation"),
           "accuracy under the worst Byzantine or untargeted poisoning attack", 100),
    Column("byzantine_mean", "Attacked, mean", "%", "accuracy", "byzantine", "higher", ("robustness", "aggregation"),
           "accuracy under Byzantine and untargeted poisoning attacks, averaged over attacks", 100, pooling="mean"),
    Column("backdoor", "Backdoor, worst", "%", "attack_success_rate", "backdoor", "lower",
           ("overview", "robustness", "aggregation"), "success rate of the worst backdoor", 100),
    Column("backdoor_mean", "Backdoor, mean", "%", "attack_success_rate", "backdoor", "lower", ("robustness",),
           "success rate of backdoors, averaged over them", 100, pooling="mean"),
    Column("detection_precision", "Detection precision", "%", "detection_precision", "byzantine", "higher",
           ("aggregation",), "share of malicious clients among those that the server left out, worst attack", 100),
    Column("detection_recall", "Detection recall", "%", "detection_recall", "byzantine", "higher", ("aggregation",),
           "share of the malicious clients that the server left out, worst attack", 100),
    Column("epsilon", "Guaranteed ε", "", "epsilon", "any", "lower", ("overview", "privacy"),
           "guaranteed differential privacy, worst seed; § for a client with all its data, else for one record",
           digits=2, pooling="claim"),
    Column("audited", "Audited ε ≥", "", "epsilon_audited", "privacy", "lower", ("privacy",),
           "lower bound on the privacy loss, proved by an audit", digits=2),
    Column("mia", "Membership AUC", "", "mia_auc", "privacy", "lower", ("overview", "privacy"),
           "best membership inference, area under its ROC curve; 0.50 is chance, and less counts as chance",
           digits=2, chance=0.5),
    Column("mia_mean", "Membership AUC, mean", "", "mia_auc", "privacy", "lower", ("privacy",),
           "the same averaged over the attacks", digits=2, pooling="mean", chance=0.5),
    Column("mia_tpr", "Members found", "%", "mia_tpr_at_1pct_fpr", "privacy", "lower", ("privacy",),
           "members found by the best attack at 1 % false positives; 1 % is chance, and less counts as chance", 100,
           chance=0.01),
    Column("property", "Property AUC", "", "property_auc", "privacy", "lower", ("privacy",),
           "how well updates with a property are told from those without, area under the ROC curve; 0.50 is chance, "
           "and less counts as chance", digits=2, chance=0.5),
    Column("exposure", "Canary exposure", "bits", "exposure_mean", "privacy", "lower", ("privacy",),
           "mean exposure of planted canaries; 1.44 is chance, and less counts as chance", digits=2,
           chance=math.log2(math.e)),
    Column("inversion", "Inversion PSNR", "dB", "reconstruction_psnr", "privacy", "lower", ("privacy",),
           "how close the strongest attack gets to records that it reconstructs from updates"),
    Column("inversion_gain", "Inversion gain", "dB", "reconstruction_psnr_gain", "privacy", "lower",
           ("overview", "privacy"),
           "inversion PSNR minus that of guessing the mean validation image; 0 or less: nothing was found", chance=0.0),
    Column("labels", "Labels recovered", "%", "label_recovery", "privacy", "lower", ("privacy",),
           "share of the labels behind an update that were recovered", 100),
    Column("label_gain", "Label gain", "points", "label_recovery_gain", "privacy", "lower", ("privacy",),
           "labels recovered minus those of guessing by class shares; 0 or less: nothing was found", 100, chance=0.0),
    Column("size", "Size", "kB", "serialized_bytes", "clean", "lower", ("overview", "compression"),
           "the model's file, written and read back; 1 kB is 1000 bytes", 1e-3),
    Column("uplink", "Uplink", "kB", "uplink_bytes_per_round", "clean", "lower",
           ("overview", "compression", "aggregation"), "what a client sends in a round, as encoded", 1e-3),
    Column("downlink", "Downlink", "kB", "downlink_bytes_per_round", "clean", "lower", ("compression",),
           "what is sent to a client in a round", 1e-3),
    Column("macs", "MACs", "M", "macs", "clean", "lower", ("compression",),
           "million multiply-accumulates per image", 1e-6, digits=2),
    Column("nonzero", "Non-zero", "%", "nonzero_share", "clean", "lower", (),
           "share of the parameters that is not zero", 100),
    Column("agreement", "Agreement", "%", "agreement", "clean", "higher", ("compression",),
           "test images with the same prediction as before compression", 100),
    Column("latency", "Latency", "ms", "latency_ms_1", "clean", "lower", ("compression",),
           "one image through the network, on the submitter's machine", digits=2, measured=True),
    Column("seconds", "Training", "s", "train_seconds", "clean", "lower", ("compression", "aggregation"),
           "training time, its clients one after another, on the submitter's machine", measured=True),
    Column("memory", "Peak memory", "MB", "peak_memory_bytes", "clean", "lower", (),
           "peak memory of the training, on the submitter's machine", 1e-6, measured=True),
)  # fmt: skip

BY_KEY = {column.key: column for column in COLUMNS}
BY_SCORE = {column.score: column for column in COLUMNS}  # all columns of one score write it the same way
# In these columns a model that predicts one class for every image scores high or low for no merit: its answer hardly
# changes. Its accuracy (under attacks on training too), size, guarantee and leaks mean what they always do.
HOLLOW = frozenset({"robust", "robust_mean", "certified", "backdoor", "backdoor_mean", "agreement"})
MARKS = {  # by field of a value
    "incomplete": "†",
    "masked": "‡",
    "constant": "‖",
    "clients": "§",
    "subset": "¶",
    "violated": "!",
}
SIGNS = {
    "†": "lacks attacks or seeds that this board asks for, so it is not compared",
    "‡": "gradient masking is suspected, so probably too high; not compared",
    "‖": "predicts one class for every test image in at least one seed, so attacks on it show nothing; not compared",
    "§": "for a client with all its data; without it, for one record",
    "¶": "on fewer test records than the clean accuracy: the threat's subset",
    "!": "an audit refutes the guarantee: suspect a bug in the defence",
}
