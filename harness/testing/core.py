"""What a check is, and which checks there are for a plugin."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from harness.contracts.base import Plugin
from harness.errors import HarnessError, NotApplicable, PluginError
from harness.testing.watch import global_random_state, same, snapshot


class CheckFailed(AssertionError):
    """The plugin breaks its contract; the message says how, and what to change."""


class CheckSkipped(Exception):
    """The check cannot be made here; the message says why."""


class CannotBeMade(PluginError):
    """The plugin has no instance to check: its parameters have neither defaults nor examples that fit."""


class Touched(Exception):
    """Raised inside the plugin's code when it uses something that it did not declare."""


@dataclass
class Setting:
    """How a trial is run. device and dtype: of what the plugin is given. scene: which of the toy worlds, from 0.

    other: whether to use other images, updates and predictions, of the same shapes. touched: a message for each thing
    that the plugin used without having declared it.
    """

    device: str = "cpu"
    dtype: str = "float32"
    scene: int = 0
    other: bool = False
    touched: list[str] = field(default_factory=list)

    def forbid(self, message: str) -> Callable[..., Any]:
        """A function that the plugin must not call: a call is noted in `touched` and raises Touched."""

        def refuse(*arguments: Any, **named: Any) -> Any:
            self.touched.append(message)
            raise Touched(message)

        return refuse


@dataclass
class Trial:
    """One complete use of a plugin. inputs: what it must leave unchanged. call: runs it and returns the output.

    keeps: the entries of the output whose tensors must have the setting's dtype and device.
    """

    inputs: dict[str, Any]
    call: Callable[[], dict[str, Any]]
    keeps: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What came of a trial."""

    setting: Setting
    trial: Trial
    output: dict[str, Any]
    changed: list[str]
    random: list[str]  # global generators that moved
    error: Exception | SystemExit | None
    seconds: float
    used: bool  # whether the use itself began: an error then comes from it, not from what is asked before training

    @property
    def refused_late(self) -> bool:
        """Whether it raised NotApplicable only when it was used, which is too late."""
        return self.used and isinstance(self.error, NotApplicable)


@dataclass(frozen=True)
class Family:
    """Plugins that are used in the same way.

    own_random: whether they may draw from global generators, which the engine then seeds around them.
    trial(plugin, setting) raises PluginError or NotApplicable where the scene does not suit the plugin.
    """

    name: str
    trial: Callable[[Any, Setting], Trial]
    own_random: bool = False
    dtypes: tuple[str, ...] = ("float32", "float64")
    scenes: int = 3


FAMILIES: dict[str, Family] = {}
# The modules that register checks, in the order of the report.
MODULES = (
    "parameters", "behaviour", "data", "models", "aggregators", "costs", "defences", "guarantees", "stacks",
    "compressors", "updates", "evasion", "poisoning", "byzantine", "privacy", "metrics", "trackers",
)  # fmt: skip


@dataclass(frozen=True)
class _Definition:
    function: Callable[[Subject], None]
    families: tuple[str, ...]  # none: all
    when: Callable[[Any], bool]


_DEFINITIONS: list[_Definition] = []


def check(
    *families: str, when: Callable[[Any], bool] = lambda plugin: True
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Registers a function as a check for plugins of these families, or of all where none is named.

    when(plugin): whether the check applies to a plugin, which may be an instance or a class.
    """

    def register(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        _DEFINITIONS.append(_Definition(function, families, when))
        return function

    return register


def overrides(plugin: Any, base: type, *names: str) -> bool:
    """Whether a plugin, class or instance, has its own version of any of these methods of a base class."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return any(getattr(cls, name) is not getattr(base, name) for name in names)


class Subject:
    """A plugin under test, and what was learnt about it so far, shared by its checks."""

    def __init__(self, plugin: Plugin | type[Plugin]) -> None:
        self.cls: type[Plugin] = plugin if isinstance(plugin, type) else type(plugin)
        self._given = None if isinstance(plugin, type) else plugin
        self._outcomes: dict[tuple[str, str], Outcome] = {}

    @property
    def name(self) -> str:
        return self.cls.name or self.cls.__name__

    @property
    def family(self) -> str:
        return family_of(self.cls)

    @cached_property
    def plugin(self) -> Any:
        """The instance given, else one with the defaults, or with the examples of parameters that have none."""
        if self._given is not None:
            return self._given
        from harness.console.describe import example_parameters

        try:
            return self.cls.create()
        except PluginError:
            pass
        try:
            return self.cls.create(example_parameters(self.cls))
        except PluginError as error:
            raise CannotBeMade(str(error)) from error

    def trial(self, setting: Setting, plugin: Any = None) -> Outcome:
        """One run in the first scene that suits the plugin. What the plugin raises is in the outcome."""
        family = FAMILIES[self.family]
        outcome: Outcome | None = None
        for scene in range(setting.scene, family.scenes):
            outcome = _run(
                family,
                self.plugin if plugin is None else plugin,
                Setting(setting.device, setting.dtype, scene, setting.other),
            )
            if not isinstance(outcome.error, PluginError | NotApplicable) or outcome.refused_late:
                break
        assert outcome is not None
        return outcome

    def outcome(self, device: str = "cpu", dtype: str = "float32") -> Outcome:
        """The outcome of one such run, kept for all checks. Raises CheckSkipped where there is no output to look at."""
        key = (device, dtype)
        if key not in self._outcomes:
            start = 0 if not self._outcomes else next(iter(self._outcomes.values())).setting.scene
            self._outcomes[key] = self.trial(Setting(device, dtype, start))
        found = self._outcomes[key]
        if found.error is not None:
            which = "declared_access_respected" if found.setting.touched else "runs"
            raise CheckSkipped(f"it did not run: see {which}")
        return found

    def first(self) -> Outcome:
        """The outcome with the defaults, also where the plugin raised."""
        try:
            return self.outcome()
        except CheckSkipped:
            return self._outcomes["cpu", "float32"]

    def error(self, device: str, dtype: str) -> Exception | SystemExit | None:
        """What the plugin raised in the run that `outcome` remembers."""
        return self._outcomes[device, dtype].error

    def again(self, plugin: Any = None, other: bool = False) -> Outcome:
        """A second run in the same scene, of this plugin or of another one; with other data where asked for."""
        return self.trial(Setting(scene=self.outcome().setting.scene, other=other), plugin)


def _run(family: Family, plugin: Any, setting: Setting) -> Outcome:
    import torch

    started = time.perf_counter()
    trial, output = Trial({}, dict), {}
    error: Exception | SystemExit | None = None
    changed: list[str] = []
    moved: list[str] = []
    used = False
    with torch.random.fork_rng(range(torch.cuda.device_count())), global_random_state() as state:
        try:
            trial = family.trial(plugin, setting)
            before = snapshot(trial.inputs)
            state.mark()
            used = True
            output = trial.call()
            moved = state.moved()
            after = snapshot(trial.inputs)
            changed = [name for name in before if not same(before[name], after[name])]
        except (Exception, SystemExit) as raised:  # the plugin's: each check decides what it means
            error = raised
    return Outcome(setting, trial, output, changed, moved, error, time.perf_counter() - started, used)


@dataclass(frozen=True)
class Check:
    """One check of one plugin. Calling it raises CheckFailed with what is wrong, or CheckSkipped with the reason."""

    name: str
    plugin: Plugin | type[Plugin]
    function: Callable[[Subject], None] = field(repr=False)
    subject: Subject = field(repr=False)

    @property
    def description(self) -> str:
        """What the check asks: the first paragraph of its docstring."""
        return " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())

    def __call__(self) -> None:
        try:
            self.function(self.subject)
        except (CheckFailed, CheckSkipped):
            raise
        except CannotBeMade as error:
            raise CheckSkipped("it cannot be made: see constructs") from error
        except HarnessError as error:
            raise CheckFailed(f"{self.subject.name}: {error}") from error
        except SystemExit as error:  # otherwise the report would end here without a message
            raise CheckFailed(
                f"{self.subject.name} calls sys.exit({'' if error.code is None else repr(error.code)}), which would "
                "take the engine down: raise PluginError with the reason"
            ) from error

    def __str__(self) -> str:
        return f"{self.subject.family} {self.subject.name}: {self.name}"


def checks_of(plugin: Plugin | type[Plugin]) -> list[Check]:
    """The checks for a plugin, in order: a class is tried with its defaults, an instance as it is."""
    _load()
    subject = Subject(plugin)
    return [
        Check(getattr(definition.function, "__name__", ""), plugin, definition.function, subject)
        for definition in _DEFINITIONS
        if (not definition.families or subject.family in definition.families) and definition.when(plugin)
    ]


def family_of(cls: type[Plugin]) -> str:
    """`evasion`, `model compressor`, `pre-aggregator`, or the kind. Raises PluginError for what is none of them."""
    family = cls.kind
    if cls.kind == "attack":
        family = str(getattr(cls, "family", ""))
    elif cls.kind == "compressor":
        family = f"{getattr(cls, 'acts_on', '')} compressor"
    elif getattr(cls, "pre", False):
        family = "pre-aggregator"
    _load()
    if family not in FAMILIES:
        raise PluginError(f"{cls.__qualname__} is of no kind: subclass one of the kinds in harness.api")
    return family


@cache
def _load() -> None:
    """The modules that register checks, in the order of the report."""
    for name in MODULES:
        importlib.import_module(f"harness.testing.{name}")


def after(subject: Subject, function: Callable[[Subject], None]) -> None:
    """Raises CheckSkipped where another check fails, as this one would only find the same fault again."""
    try:
        function(subject)
    except CannotBeMade:
        raise
    except (CheckFailed, HarnessError):
        raise CheckSkipped(f"see {getattr(function, '__name__', '')}") from None


def repeated(subject: Subject, play: Callable[[int, dict[str, Any]], Any], rounds: int = 3) -> None:
    """Raises CheckFailed where rounds after the first draw from global generators, or differ when they are run again.

    play(round from 0, the plugin's own state, which starts empty) -> what the plugin returns. Raises CheckSkipped where
    the first round already does: other checks find that.
    """
    found = []
    # Modules that a later round imports may draw from the global generators while they load, but only the first time:
    # the second time decides.
    for _ in range(2):
        state: dict[str, Any] = {}
        with global_random_state() as drawn:
            first = snapshot(play(0, state))
            early = drawn.moved()
            found.append([first, *(snapshot(play(number, state)) for number in range(1, rounds))])
            moved = drawn.moved()
    if early or not same(found[0][0], found[1][0]):
        raise CheckSkipped("see global_random_state_untouched and deterministic")
    require(
        not moved,
        f"in a later round {subject.name} draws from (or seeds) the global generator of {', '.join(moved)}: draw from "
        "the generator in the context, or from the key",
    )
    require(
        same(*found),
        f"{subject.name} returns something else in a later round when the same rounds are run again: draw from the "
        "context's generator alone, and keep what is remembered in the context's state",
    )


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(where, tensor) of every tensor in nested dictionaries, lists and tuples."""
    import torch

    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from tensors(inner, f"{path}[{number}]")


def require(condition: bool, message: str) -> None:
    """Raises CheckFailed with the message where the condition is false."""
    if not condition:
        raise CheckFailed(message)
