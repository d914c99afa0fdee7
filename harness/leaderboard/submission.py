"""A submission: what one run of one scenario found, as one JSON file that is reviewed in a pull request.

Files come from strangers. Every field is typed and bounded here; unknown fields, duplicate keys and invisible
characters are refused; and nothing in a file is executed, opened or rendered as anything but text. JSON has no
infinity and no NaN: such scores are texts in `undefined`, and an infinite epsilon of a guarantee is null.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from harness.errors import HarnessError, nearest
from harness.files import replacing
from harness.leaderboard.ranges import Range, range_of

SCHEMA = 1
# Why a submission that was made from a store, to be looked at, is unofficial.
LOOKED_AT = "it is a store, looked at without its scenario's file"
MAX_BYTES = 32 * 1024 * 1024
MAX_CELLS = 20_000
MAX_DEPTH = 20  # of a cell's configuration
MAX_VALUES = 2000  # in a cell's configuration
MAX_NUMBER = 1e300
# Unicode categories of control, direction and zero-width characters, lone surrogates and unusual line ends.
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def unseen(text: str, allowed: str = "") -> str | None:
    """The first character that is invisible or changes the direction of the text around it; None if there is none."""
    if text.isascii() and text.isprintable():
        return None
    return next((c for c in text if c not in allowed and unicodedata.category(c) in UNSEEN), None)


def _visible(text: str) -> str:
    return _shown(text, "")


def _visible_lines(text: str) -> str:
    return _shown(text, "\n\t")


def _shown(text: str, allowed: str) -> str:
    if (character := unseen(text, allowed)) is not None:
        raise ValueError(f"it holds the invisible character U+{ord(character):04X}; write plain text")
    return text


def _bounded(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration, if it is plain, small JSON, which everybody can read, write and show. Else ValueError."""
    level: list[Any] = [config]
    left = MAX_VALUES
    for _ in range(MAX_DEPTH):
        left -= len(level)
        if left < 0:
            raise ValueError(f"it holds more than {MAX_VALUES} values")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for name in value:
                    _check_text(str(name))
                inner += value.values()
            elif isinstance(value, list | tuple):
                inner += value
            elif isinstance(value, str):
                _check_text(value)
            elif isinstance(value, int | float) and not abs(value) < MAX_NUMBER:
                raise ValueError("it holds a number that is not finite, or far too large")
        if not inner:
            return config
        level = inner
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _check_text(text: str) -> None:
    if len(text) > 4000:
        raise ValueError("it holds a text of more than 4000 characters")
    _visible_lines(text)


def _slug(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise ValueError(
            f"{name[:60]!r} cannot be a name: use letters a to z, digits, '-', '_' and '.', the first a letter or a "
            "digit, 80 at most"
        )
    return name


Line = Annotated[str, StringConstraints(max_length=400), AfterValidator(_visible)]
Word = Annotated[str, StringConstraints(max_length=120), AfterValidator(_visible)]
Paragraph = Annotated[str, StringConstraints(max_length=4000), AfterValidator(_visible_lines)]
Text = Annotated[str, StringConstraints(max_length=200_000), AfterValidator(_visible_lines)]
Config = Annotated[dict[str, Any], AfterValidator(_bounded)]
Count = Annotated[int, Field(ge=0, lt=10**12)]
Slug = Annotated[str, AfterValidator(_slug)]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12,64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Unit(_Part):
    """What a score means."""

    unit: Word = ""
    direction: Literal["higher", "lower", "none"]
    description: Line = ""
    measured: bool = False  # a time or a size of memory, which differs from run to run


class Plugin(_Part):
    """A method that took part: where its code comes from, and how to cite it."""

    kind: Word
    name: Word
    distribution: Word
    version: Word
    source: Hex
    title: Line = ""
    authors: Line = ""
    venue: Line = ""
    year: int | None = Field(None, ge=1900, le=2200)
    url: Line = ""  # shown as text; a link only where it begins with https://


class Step(_Part):
    """One link of the guarantee's chain."""

    stage: Word
    part: Line
    reads: Word
    effect: Word
    why: Line


class Claim(_Part):
    """What is guaranteed: the worst over the seeds."""

    unit: Word
    against: Word = "server"
    neighbours: Word = "add-remove"
    by: Word = ""
    epsilon: Finite | None = Field(ge=0)  # None: infinite
    delta: Finite = Field(ge=0, le=1)
    accountant: Word
    group_epsilon: Finite | None = Field(None, ge=0)
    largest_group: int | None = Field(None, ge=1, lt=10**12)
    simulated: bool = True
    holds: bool = True
    broken_by: tuple[Line, ...] = Field((), max_length=50)


class Seed(_Part):
    """One seed of a cell. curve: (round, validation accuracy). undefined: score -> inf, -inf or nan."""

    id: Hex
    scores: dict[Word, Finite] = Field(default_factory=dict, max_length=200)
    undefined: dict[Word, Literal["inf", "-inf", "nan"]] = Field(default_factory=dict, max_length=200)
    intervals: dict[Word, tuple[Finite, Finite]] = Field(default_factory=dict, max_length=50)
    flags: tuple[Word, ...] = Field((), max_length=20)
    curve: tuple[tuple[Count, Finite], ...] = Field((), max_length=10_000)
    error: Paragraph | None = None

    @property
    def values(self) -> dict[str, float]:
        """All scores as numbers, infinite and undefined ones included."""
        return dict(self.scores) | {name: float(text) for name, text in self.undefined.items()}


class Cell(_Part):
    """One value on each axis, one threat and one attack, over all seeds.

    family: clean, evasion, byzantine, backdoor or privacy. eps: radius of an evasion attack in [0, 1] pixels.
    tested: test records behind the clean scores; attacked: those that an evasion attack was run on. None: the file is
    older than these fields.
    config: the axes' plugins with every parameter, as plain JSON.
    """

    defence: Line
    aggregator: Line
    compressor: Line
    threat: Line
    attack: Line
    family: Literal["clean", "evasion", "byzantine", "backdoor", "privacy"]
    status: Literal["scored", "failed", "not-applicable"]
    reason: Paragraph | None = None
    eps: Finite | None = Field(None, ge=0)
    norm: Word | None = None
    tested: Count | None = None
    attacked: Count | None = None
    seeds: dict[Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,11})$")], Seed] = Field(
        max_length=1000
    )
    guarantee: Claim | None = None
    lineage: tuple[Step, ...] = Field((), max_length=100)
    config: Config = Field(default_factory=dict)

    @property
    def axes(self) -> tuple[str, str, str, str, str]:
        """(defence, aggregator, compressor, threat, attack): what tells cells of a scenario apart."""
        return self.defence, self.aggregator, self.compressor, self.threat, self.attack

    @property
    def scored(self) -> int:
        """How many seeds have scores: as many cells as in a plan, where every seed is a cell of its own."""
        return sum(seed.error is None for seed in self.seeds.values()) if self.status == "scored" else 0

    @property
    def failed(self) -> int:
        """How many seeds have an error in the place of scores."""
        return sum(seed.error is not None for seed in self.seeds.values())


class ScenarioFacts(_Part):
    """The board that a submission belongs to: one version of a scenario. text: its YAML as written, sweeps included.

    test_records: size of the test split, of which `evaluation.subset` may have used a part.
    """

    name: Slug
    version: int = Field(ge=1, lt=10**9)
    hash: Hex
    description: Paragraph = ""
    dataset: Line
    fingerprint: Hex
    model: Line
    seeds: tuple[Count, ...] = Field(min_length=1, max_length=1000)
    test_records: Count | None = None
    text: Text

    @property
    def board(self) -> str:
        """`name v2`: rows of different versions are never compared."""
        return f"{self.name} v{self.version}"


class Environment(_Part):
    """What the numbers were computed with."""

    version: Word
    commit: Hex | None = None
    dirty: bool | None = None
    python: Word
    platform: Line
    device: Word
    device_name: Line
    libraries: dict[Word, Word] = Field(default_factory=dict, max_length=100)


class Verification(_Part):
    """A re-run of some cells: verified, or diverged in those named.

    other-code: nothing diverged, but some plugins of the file are of other code than those that were run.
    """

    verdict: Literal["verified", "diverged", "other-code"]
    when: Word
    cells: int = Field(ge=1)
    environment: Environment
    differences: tuple[Line, ...] = Field((), max_length=1000)


class Submission(_Part):
    """One file. Unofficial submissions say why: a partial grid, a changed engine, an altered scenario."""

    kind: Literal["psr-harness submission"] = "psr-harness submission"
    schema_version: Literal[1] = Field(alias="schema")
    name: Slug
    authors: Line = ""
    url: Line = ""
    note: Paragraph = ""
    created: Word
    official: bool
    unofficial_because: tuple[Line, ...] = Field((), max_length=20)
    scenario: ScenarioFacts
    environment: Environment
    units: dict[Word, Unit] = Field(max_length=300)
    plugins: tuple[Plugin, ...] = Field(max_length=500)
    cells: tuple[Cell, ...] = Field(min_length=1, max_length=MAX_CELLS)
    verification: Verification | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _consistent(self) -> Submission:
        axes = Counter(cell.axes for cell in self.cells)
        if len(axes) < len(self.cells):
            twice = next(a for a, count in axes.items() if count > 1)
            raise ValueError(f"two cells have the same axes: {', '.join(twice)}")
        ids = Counter(seed.id for cell in self.cells for seed in cell.seeds.values())
        if len(ids) < ids.total():
            raise ValueError(f"the cell id {next(i for i, count in ids.items() if count > 1)} is used twice")
        if self.official == bool(self.unofficial_because):
            raise ValueError("official submissions have no reason to be unofficial, the others do")
        return self

    @property
    def looked_at(self) -> bool:
        """Whether it was made from a store to be looked at, and nobody submitted it."""
        return LOOKED_AT in self.unofficial_because

    def range_of(self, name: str) -> Range:
        """The least and the most that a score can be, by its unit in this file."""
        return range_of(name, self.units[name].unit if name in self.units else None)


def read(path: Path) -> Submission:
    """The submission in a file. Raises HarnessError, in one sentence, for anything that is not one."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise HarnessError(f"{path}: not a submission: not a file")
        if size > MAX_BYTES:
            raise HarnessError(
                f"{path}: {size / 2**20:.0f} MiB; a submission has at most {MAX_BYTES >> 20} MiB"
            )
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise HarnessError(f"{path}: not a submission: the file is empty")
        data = json.loads(
            text,
            parse_constant=_refuse,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise HarnessError(f"{path}: not a submission: nested too deeply") from None
    except FileNotFoundError:
        hint = nearest(path.name, (other.name for other in path.parent.glob("*.json") if other.is_file()))
        raise HarnessError(f"{path}: there is no such file" + (f"; {hint}" if hint else "")) from None
    except OSError as error:
        raise HarnessError(f"{path}: not a submission: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise HarnessError(f"{path}: not a submission: no JSON: {error}") from None
    except ValueError as error:  # not UTF-8, or refused by one of the functions above
        raise HarnessError(f"{path}: not a submission: {error}") from None
    return parse(data, str(path))


def parse(data: Any, where: str) -> Submission:
    """The submission in decoded JSON. Raises HarnessError that names the first field that is wrong."""
    try:
        return Submission.model_validate(data)
    except (ValidationError, RecursionError) as error:
        raise HarnessError(f"{where}: not a submission: {_first(error)}") from None


def write(submission: Submission, path: Path) -> None:
    """Writes one file, sorted and indented so that a pull request shows what changed; replaces it in one step.

    Raises HarnessError if it cannot be written.
    """
    text = json.dumps(
        submission.model_dump(mode="json", by_alias=True), indent=1, sort_keys=True, allow_nan=False
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise HarnessError(f"{path}: {error.strerror or error}") from None


def file_name(name: str, scenario: ScenarioFacts) -> str:
    """`scenario-v1--name.json`."""
    return f"{scenario.name}-v{scenario.version}--{name}.json"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:30]} is too large for a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values. Refuses duplicate keys: a reader sees the first, and a program takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice in one object")
    return found


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "nested too deeply"
    item = error.errors(include_url=False)[0]
    names = [str(part)[:60] for part in item["loc"]]
    place = ".".join(name if unseen(name) is None else ascii(name) for name in names)
    more = error.error_count() - 1
    message = item["msg"].removeprefix("Value error, ")
    given = repr(item["input"])[:60] if item["type"] != "value_error" else ""
    tail = f" (and {more} more)" if more else ""
    return f"{place + ': ' if place else ''}{message[0].lower() + message[1:]}{', not ' + given if given else ''}{tail}"
