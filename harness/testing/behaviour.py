"""What every plugin owes the engine: it runs, repeats itself, leaves no trace, and uses no more than it declares."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    CheckSkipped,
    Subject,
    after,
    check,
    family_of,
    require,
    tensors,
)
from harness.testing.watch import other_hash, same


def _draws(plugin: Any) -> bool:
    return not FAMILIES[family_of(_class(plugin))].own_random


def _class(plugin: Any) -> Any:
    return plugin if isinstance(plugin, type) else type(plugin)


def _measures(plugin: Any) -> bool:
    """Whether its scores are times or the like, which differ from run to run."""
    return any(getattr(score, "measured", False) for score in getattr(_class(plugin), "scores", {}).values())


@check()
def runs(subject: Subject) -> None:
    """An ordinary use works."""
    outcome = subject.first()
    if outcome.error is None:
        return
    if outcome.setting.touched:
        raise CheckSkipped("it reached for what it did not declare: see declared_access_respected")
    if isinstance(outcome.error, CheckSkipped | CheckFailed):
        raise outcome.error
    if outcome.refused_late:
        raise CheckFailed(
            f"{subject.name} raises NotApplicable when it is used ({outcome.error}), which fails a cell after its "
            "training: what makes no sense is said before, in `check`; for anything else raise PluginError"
        ) from outcome.error
    raise CheckFailed(
        f"{subject.name} fails in an ordinary use: {type(outcome.error).__name__}: {outcome.error}"
    ) from outcome.error


@check()
def declared_access_respected(subject: Subject) -> None:
    """It reads no more than it declares: what is not declared raises when it is touched."""
    outcome = subject.first()
    if outcome.setting.touched:
        raise CheckFailed(outcome.setting.touched[0])
    subject.outcome()


@check()
def inputs_unchanged(subject: Subject) -> None:
    """What it is given stays the same, bit for bit."""
    changed = subject.outcome().changed
    require(
        not changed,
        f"{subject.name} changes what it was given: {', '.join(changed)}. Others use it too, so work on a copy "
        "(clone, copy.deepcopy) and avoid operations in place",
    )


@check(when=_draws)
def global_random_state_untouched(subject: Subject) -> None:
    """Random numbers come from the generator or key that is passed in."""
    moved = subject.outcome().random
    if moved:  # the first run also imports libraries, some of which draw while they load
        moved = subject.again().random
    require(
        not moved,
        f"{subject.name} draws from (or seeds) the global generator of {', '.join(moved)}: results would "
        "depend on what "
        "ran before. Draw from the generator in the context, or from the key",
    )


@check(when=lambda plugin: not _measures(plugin))
def deterministic(subject: Subject) -> None:
    """Run twice with the same seeds, and with other data in between, it returns the same, bit for bit."""
    first = subject.outcome()
    subject.again(other=True)
    second = subject.again()
    if second.error is not None:
        raise CheckFailed(
            f"{subject.name} works once and fails the second time: {type(second.error).__name__}: "
            f"{second.error}. It must "
            "keep nothing outside of the context's state"
        ) from second.error
    different = [name for name in first.output if not same(first.output[name], second.output.get(name))]
    require(
        not different,
        f"{subject.name} returns something else the second time, with the same inputs and seeds "
        f"({', '.join(different)}): draw from the context's generator alone, and keep nothing between calls",
    )


@check(when=lambda plugin: not _measures(plugin))
def same_in_every_process(subject: Subject) -> None:
    """In another process, where Python's `hash` of a text is another number, it returns the same."""
    first, hashing = subject.outcome(), _that_hash(subject.cls)
    if not hashing:
        return
    after(subject, deterministic)
    for salt in range(4):  # several: of a hash modulo a small number, one may give the same
        with other_hash(hashing, salt):
            found = subject.again().output
        different = [name for name in first.output if not same(first.output[name], found.get(name))]
        require(
            not different,
            f"what {subject.name} returns ({', '.join(different)}) depends on Python's hash() of a text, which is "
            "another number in every process: take zlib.crc32, hashlib or harness.api.torch_generator instead",
        )


def _that_hash(cls: type) -> list[ModuleType]:
    """The loaded modules of a plugin's package whose source calls `hash`."""
    package = cls.__module__.partition(".")[0]
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == package]
    return [module for module in modules if _calls_hash(getattr(module, "__file__", None))]


@cache
def _calls_hash(file: str | None) -> bool:
    path = Path(file or "")
    return path.suffix == ".py" and bool(re.search(r"(?<![\w.])hash\(", path.read_text(encoding="utf-8")))


def _devices() -> list[str]:
    import torch

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@check(
    "aggregator",
    "pre-aggregator",
    "byzantine",
    "evasion",
    "poisoning",
    "defence",
    "update compressor",
    "model",
)
def device_and_dtype_kept(subject: Subject) -> None:
    """float32 in, float32 out, and likewise for float64; on the CPU, and on the GPU where there is one."""
    subject.outcome()
    for device in _devices():
        for dtype in FAMILIES[subject.family].dtypes:
            try:
                outcome = subject.outcome(device, dtype)
            except CheckSkipped:
                error = subject.error(device, dtype)
                raise CheckFailed(
                    f"{subject.name} fails with {dtype} on {device}: {type(error).__name__}: {error}"
                ) from error
            for name in outcome.trial.keeps:
                for where, tensor in tensors(outcome.output.get(name), name):
                    if not tensor.is_floating_point():
                        continue
                    found = str(tensor.dtype).removeprefix("torch.")
                    require(
                        found == dtype and tensor.device.type == device,
                        f"{subject.name} returns {where} as {found} on {tensor.device.type} for {dtype} on "
                        f"{device}: end with "
                        "`.to(input)`, and make new tensors with new_zeros, zeros_like or device=... and dtype=...",
                    )
