"""Submissions without a run behind them, as large and as strange as a test of the pages wants them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from harness.leaderboard.submission import Submission, file_name, parse, write

HEX = "0123456789abcdef" * 4
DEFENCES = (
    "none",
    "dp-sgd(epsilon=1)",
    "dp-sgd(epsilon=8)",
    "adversarial-training(attack=pgd(eps=0.1,steps=3))",
    "dp-fedavg",
)
AGGREGATORS = ("mean", "nnm + trimmed-mean", "krum")
COMPRESSORS = ("none", "static-int8", "top-k(ratio=0.1)")
ATTACKS = (
    ("none", "none", "clean"),
    ("evasion@1/255", "pgd(steps=20)", "evasion"),
    ("evasion@2/255", "pgd(steps=20)", "evasion"),
    ("evasion@4/255", "pgd(steps=20)", "evasion"),
    ("evasion@2/255", "square", "evasion"),
    ("byzantine", "sign-flip", "byzantine"),
    ("byzantine", "alie", "byzantine"),
    ("backdoor", "badnets(target=0)", "backdoor"),
    ("membership", "loss-threshold", "privacy"),
    ("server", "inverting-gradients(records=1)", "privacy"),
)
RADII = {"evasion@1/255": 1 / 255, "evasion@2/255": 2 / 255, "evasion@4/255": 4 / 255}
UNITS = {
    "accuracy": ("share", "higher", "test samples predicted right"),
    "robust_accuracy": ("share", "higher", "right on the clean and on the adversarial input"),
    "attack_success_rate": ("share", "lower", "triggered samples that get the target"),
    "mia_auc": ("share", "lower", "area under the membership attack's ROC curve"),
    "mia_tpr_at_1pct_fpr": ("share", "lower", "members found at 1 % false positives"),
    "reconstruction_psnr": ("dB", "lower", "of reconstructed images"),
    "serialized_bytes": ("B", "lower", "size of the model's safetensors file"),
    "uplink_bytes_per_round": ("bytes per client", "lower", "sent by a client in a round"),
    "macs": ("MAC", "lower", "multiply-accumulates per image"),
    "latency_ms_1": ("ms", "lower", "forward pass of a batch of 1"),
    "train_seconds": ("s", "lower", "wall-clock time of the training"),
    "epsilon": ("nats", "lower", "privacy loss"),
}


def identity(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def cell(
    axes: tuple[str, ...], family: str, scores: dict[str, list[float]], name: str = "", **fields: Any
) -> dict[str, Any]:
    """axes: defence, aggregator, compressor, threat, attack. scores: score -> one number a seed, from seed 0 on."""
    seeds: dict[str, Any] = {}
    for score, numbers in scores.items():
        for seed, number in enumerate(numbers):
            made = seeds.setdefault(str(seed), {"id": identity(name, axes, seed), "scores": {}})
            made["scores"][score] = number
    return {
        **dict(zip(("defence", "aggregator", "compressor", "threat", "attack"), axes, strict=True)),
        "family": family, "status": "scored", "seeds": seeds, **fields,
    }  # fmt: skip


def plain(name: str, cells: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """A submission as decoded JSON; scenario: changes to the scenario's facts."""
    scenario = {
        "name": "chest", "version": 1, "hash": HEX, "description": "Chest X-rays of five hospitals.",
        "dataset": "pneumonia", "fingerprint": HEX[::-1], "model": "resnet9(width=16)", "seeds": [0, 1, 2],
        "text": "schema: 1\nname: chest\ndataset: pneumonia\n", **fields.pop("scenario", {}),
    }  # fmt: skip
    return {
        "kind": "psr-harness submission", "schema": 1, "name": name, "authors": "A. Author",
        "url": "https://example.org/paper",
        "created": "2026-01-02T03:04:05Z", "official": True, "scenario": scenario, "environment": environment(),
        "units": {score: {"unit": u, "direction": d, "description": t} for score, (u, d, t) in UNITS.items()},
        "plugins": [
            plugin(
                "defence", "dp-sgd", "Deep Learning with Differential Privacy", "Abadi, Chu, Goodfellow", "CCS", 2016
            ),
            plugin("aggregator", "krum", "Machine Learning with Adversaries", "Blanchard, El Mhamdi", "NeurIPS", 2017),
            plugin("dataset", "pneumonia"),
        ],
        "cells": cells, **fields,
    }  # fmt: skip


def environment(**fields: Any) -> dict[str, Any]:
    return {
        "version": "0.1.0", "commit": HEX[:40], "dirty": False, "python": "3.11.7", "platform": "Linux-x86_64",
        "device": "cpu", "device_name": "a processor", "libraries": {"torch": "2.6.0"}, **fields,
    }  # fmt: skip


def plugin(
    kind: str, name: str, title: str = "", authors: str = "", venue: str = "", year: int | None = None
) -> dict[str, Any]:
    return {
        "kind": kind, "name": name, "distribution": "psr-harness", "version": "0.1.0", "source": HEX, "title": title,
        "authors": authors, "venue": venue, "year": year, "url": "https://arxiv.org/abs/1607.00133" if title else "",
    }  # fmt: skip


def claim(epsilon: float | None = 8.0, **fields: Any) -> dict[str, Any]:
    return {
        "unit": "record",
        "by": "dp-sgd",
        "epsilon": epsilon,
        "delta": 1e-5,
        "accountant": "rdp",
        **fields,
    }


def put(folder: Path, data: dict[str, Any]) -> Submission:
    """Into `folder`/records, through the schema."""
    made = parse(data, "synthetic")
    write(made, folder / "records" / file_name(made.name, made.scenario))
    return made


def realistic(
    name: str, rows: int | None = None, seeds: int = 3, start: int = 0, numbers: int = 0, **fields: Any
) -> dict[str, Any]:
    """Every configuration of DEFENCES, AGGREGATORS and COMPRESSORS, or so many made-up ones, under ATTACKS."""
    draw = random.Random(numbers)
    grid = [(d, a, c) for d in DEFENCES for a in AGGREGATORS for c in COMPRESSORS]
    if rows is not None:
        grid = [
            (f"{DEFENCES[i % 5]}+soteria(rate={i})", AGGREGATORS[i % 3], COMPRESSORS[i % 2])
            for i in range(start, start + rows)
        ]
    return plain(name, [made for axes in grid for made in _row(name, axes, seeds, draw)], **fields)


def _row(name: str, axes: tuple[str, str, str], seeds: int, draw: random.Random) -> list[dict[str, Any]]:
    defence, rule, compressor = axes
    base = (
        0.9
        - 0.12 * ("epsilon=1)" in defence)
        - 0.05 * ("dp" in defence)
        - 0.03 * (rule == "krum")
        - draw.random() / 20
    )
    kept = 0.2 + 0.4 * ("adversarial" in defence)
    noisy = "dp-sgd" in defence or "fedavg" in defence
    broken = noisy and compressor == "static-int8"
    guarantee = None
    if noisy:
        guarantee = claim(1.0 if "epsilon=1)" in defence else 8.0, unit="client" if "fedavg" in defence else "record",
                          holds=not broken, broken_by=["calibration reads private data"] if broken else [])  # fmt: skip
    steps = [
        ("data", "pneumonia", "private", "keeps", "training records are protected"),
        ("training", defence, "private", "creates" if noisy else "nothing", "noise" if noisy else "no noise"),
        (
            "release",
            compressor,
            "private",
            "breaks" if broken else "keeps",
            "calibration" if broken else "post-processing",
        ),
    ]
    lineage = [dict(zip(("stage", "part", "reads", "effect", "why"), step, strict=True)) for step in steps]

    def several(mean: float, spread: float = 0.01) -> list[float]:
        return [max(0.0, mean + draw.gauss(0, spread)) for _ in range(seeds)]

    size = 14000.0 if compressor == "static-int8" else 55384.0
    clean = {
        "accuracy": several(base), "serialized_bytes": [size] * seeds, "macs": [9.2e6] * seeds,
        "uplink_bytes_per_round": [5482.0 if "top-k" in compressor else 54824.0] * seeds,
        "latency_ms_1": several(0.4, 0.02), "train_seconds": several(12, 1),
    }  # fmt: skip
    made = []
    for threat, attack, family in ATTACKS:
        scores = dict(clean)
        fields: dict[str, Any] = {"guarantee": guarantee, "lineage": lineage}
        flags: list[str] = []
        if family == "evasion":
            left = base * kept ** (RADII[threat] * 255 / 4) + 0.1 * (attack == "square")
            scores["robust_accuracy"] = several(left)
            fields |= {"eps": RADII[threat], "norm": "linf"}
            flags = ["gradient-masking-suspected"] * (
                "soteria" not in defence and attack == "square" and compressor == "static-int8"
            )
        elif family == "byzantine":
            scores["accuracy"] = several(base - (0.5 if rule == "mean" else 0.06))
        elif family == "backdoor":
            scores["accuracy"] = several(base - 0.01)
            scores["attack_success_rate"] = several(0.97 if rule == "mean" else 0.04)
        elif attack == "loss-threshold":
            scores["mia_auc"] = several(0.51 if noisy else 0.61)
            scores["mia_tpr_at_1pct_fpr"] = several(0.011 if noisy else 0.05, 0.002)
        elif family == "privacy":
            scores["reconstruction_psnr"] = several(10 if noisy else 28, 1)
        one = cell((*axes, threat, attack), family, scores, name, **fields)
        for place, seed in enumerate(one["seeds"].values()):
            seed["flags"] = flags
            if family in ("clean", "byzantine", "backdoor"):
                end = scores["accuracy"][place]
                seed["curve"] = [(r, round(end * (1 - 0.7**r), 4)) for r in range(1, 13)]
        made.append(one)
    return made
