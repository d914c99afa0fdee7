"""A scenario from a few answers, filled into a template of the built-in plugins, which chooses the methods."""

from __future__ import annotations

import json
import os
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from harness.entry_points import BUILTIN
from harness.errors import HarnessError, PluginError, did_you_mean
from harness.files import replacing
from harness.registry import registry
from harness.scenario import check_data, load_text
from harness.scenario_data import check_fit
from harness.starter_images import Shared, is_grey, shared
from harness.starter_tables import columns
from harness.yaml_loader import parse

if TYPE_CHECKING:
    from harness.contracts.data import Splits

TEMPLATE = "starter.yaml.jinja"
THREATS = ("evasion", "byzantine", "backdoor", "privacy")


@dataclass(frozen=True)
class Answers:
    """data: a data set's name, or a path. model: a name; "": chosen by the data. epsilon, device_bytes: 0 for none."""

    data: str = "digits"
    model: str = ""
    clients: int = 5
    rounds: int = 20
    epsilon: float = 8.0
    threats: tuple[str, ...] = THREATS
    device_bytes: int = 0
    seeds: int = 3
    name: str = ""


def write_scenario(answers: Answers, file: Path, *, force: bool = False, splits: Splits | None = None) -> str:
    """Write the scenario once it is valid and its data can be read; returns its text.

    splits: the data, where they are loaded already. Raises HarnessError for a bad answer, and as `check_target` does.
    """
    check_target(file, force=force)
    text = compose(answers, file)
    try:
        scenario = load_text(text, file)
        splits = check_data(scenario, text) if splits is None else splits
        if "channels" in type(scenario.dataset).model_fields and is_grey(splits):
            text = compose(answers, file, grey=True)
            scenario = load_text(text, file)
        check_fit(scenario, splits, text)
    except HarnessError as error:
        raise HarnessError(without_places(str(error), file)) from error
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HarnessError(f"{file}: {error.strerror or error}") from None
    return text


def without_places(message: str, file: Path) -> str:
    """The reasons without their places in the file, which is not written yet, so that nobody has seen it."""
    lines = [line for line in message.splitlines() if not line.startswith("    ")]
    return "; ".join(re.sub(rf"^{re.escape(str(file))}:\d+:\d+: ", "", line) for line in lines)


def check_target(file: Path, *, force: bool = False) -> None:
    """Raises HarnessError where the file does not end in .yaml or .yml, or exists and `force` does not replace it."""
    if file.exists() and not force:
        raise HarnessError(f"{file} is there already; give --force to replace it, or another file")
    if file.suffix not in (".yaml", ".yml"):
        raise HarnessError(f"{file}: a scenario's file ends in .yaml")


def _slug(text: str) -> str:
    """A name like the text, of a-z, 0-9 and hyphens: letters without their accents."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def compose(answers: Answers, file: Path, *, grey: bool = False) -> str:
    """The scenario's text. file: where it will be, for relative paths. grey: the images have no colour.

    Raises HarnessError for answers that no scenario can be made of.
    """
    from jinja2 import Environment, StrictUndefined

    kind, data = _checked(answers, file)
    table = columns(_path(answers.data)) if kind == "csv" else None
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["wrapped"] = lambda text: f"{{{text}}}"
    environment.filters["text"] = _text
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.from_string(_template()).render(
        name=answers.name or _slug(file.stem) or "scenario",
        file=shlex.quote(file.name),
        kind=kind,
        data=data,
        grey=grey,
        shared=patients(answers),
        table=table,
        folder=_written(table.folder, file) if table is not None and table.folder is not None else "",
        model=answers.model,
        clients=answers.clients,
        rounds=answers.rounds,
        epsilon=f"{answers.epsilon:g}" if answers.epsilon else "",
        threats=answers.threats,
        device_bytes=answers.device_bytes,
        seeds=list(range(answers.seeds)),
    )


def _text(text: str) -> str:
    """A text as YAML, in quotes where it would be read as a number, as nothing, or only up to a #."""
    plain = parse(f"name: {text}").data == {"name": text}
    return text if plain else json.dumps(text, ensure_ascii=False)


def _checked(answers: Answers, file: Path) -> tuple[str, str]:
    """What `_data` returns. Raises HarnessError with every answer that no scenario can be made of."""
    wrong = [f"unknown threat {t!r}; {did_you_mean(t, THREATS)}" for t in answers.threats if t not in THREATS]
    try:
        if answers.model:
            registry().find("model", answers.model)
    except HarnessError as error:
        wrong.insert(0, str(error))
    try:
        found = _data(answers.data, file)
    except HarnessError as error:
        wrong.insert(0, str(error))
    if wrong:
        raise HarnessError("; ".join(wrong))
    return found


def patients(answers: Answers) -> Shared | None:
    """What may name patients in the paths of a folder of images, if anything does."""
    folder = _path(answers.data)
    return shared(folder) if folder.is_dir() else None


def _template() -> str:
    module = registry().manager.get_plugin(f"{BUILTIN}:builtin")
    if module is None:
        raise HarnessError("the built-in plugins are not loaded; `harness doctor` says why")
    return (resources.files(module.__name__) / TEMPLATE).read_text(encoding="utf-8")


def _data(given: str, file: Path) -> tuple[str, str]:
    """("named", a data set's name), or (kind of files, their path as the scenario should write it)."""
    path = _path(given)
    if not path.exists() and not {"/", "\\", "."} & set(given):
        try:
            registry().find("dataset", given)
        except PluginError as error:
            raise HarnessError(f"{error}; and there is no file or folder {given}") from None
        return "named", given
    if not path.exists():
        raise HarnessError(f"there is no file or folder {given}")
    return _kind(path), _written(path, file)


def _path(given: str) -> Path:
    # As in `find_file`, an unknown ~name stays as it is.
    return Path(os.path.expanduser(os.path.expandvars(given)))


def _kind(path: Path) -> str:
    if path.is_file():
        suffix = path.suffix.lower().lstrip(".")
        if suffix not in ("npz", "parquet", "csv"):
            raise HarnessError(
                f"{path}: a file of data is .npz, .parquet or a .csv that lists images; a folder holds a folder for "
                "each class"
            )
        return suffix
    return "parquet" if any(path.rglob("*.parquet")) else "folder"


def _written(path: Path, file: Path) -> str:
    """A path, relative to the scenario or to $HARNESS_DATA if it lies below, so that it means the same elsewhere."""
    target = path.resolve()
    bases = {"": file.parent.resolve(), "${HARNESS_DATA}/": os.environ.get("HARNESS_DATA")}
    for prefix, base in bases.items():
        if base is not None and target.is_relative_to(Path(base).resolve()):
            return prefix + target.relative_to(Path(base).resolve()).as_posix()
    return target.as_posix()


def parse_threats(text: str) -> tuple[str, ...]:
    """The threats in a text such as `evasion,privacy`, `all` or `none`: each once, in the order given."""
    if text.strip() in ("all", "none"):
        return THREATS if text.strip() == "all" else ()
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def known(kind: str) -> Sequence[str]:
    """The plugin names of a kind, to choose from."""
    return registry().names(kind)
