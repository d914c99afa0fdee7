"""`harness export flower`: one cell of a scenario as a Flower app of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness import __version__
from harness.applicability import reason_not_applicable
from harness.contracts.aggregator import Aggregator
from harness.contracts.base import Plugin
from harness.contracts.defence import Defence
from harness.entry_points import BUILTIN
from harness.errors import HarnessError
from harness.flower.app_folder import write_app
from harness.flower.discretion import conflict, discreet
from harness.grid import Cell, DataFacts, cells
from harness.local_plugins import LocalFile
from harness.nesting import with_nested
from harness.picking import pick
from harness.plan import Planner
from harness.privacy.accounting import accountant_extras
from harness.registry import registry
from harness.scenario import Scenario

PLUGINS = "plugins"  # the folder beside cell.yaml with the cell's local plugin files
LEFT_OUT = ("test_*.py", "*_test.py")  # names of files that Flower does not take into an app

SERVER = '''"""The server: what it does is in cell.yaml."""

from pathlib import Path

from harness.flower.exported import server_app

app = server_app(Path(__file__).with_name("cell.yaml"))
'''
CLIENT = '''"""A client: its records come from data.py, everything else from cell.yaml."""

from pathlib import Path

from harness.flower.exported import client_app

from {package}.data import load

app = client_app(Path(__file__).with_name("cell.yaml"), load)
'''
DATA = '''"""Where a SuperNode's own records come from. Change `load` to whatever your site has."""

import numpy as np


def load(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The records of this site.

    path: `data` in the SuperNode's --node-config. Returns images (n, {c}, {h}, {w}), uint8 or float in [0, 1], and
    labels (n,), integers in [0, {classes}).
    """
    with np.load(path) as file:
        return file["images"], file["labels"]
'''
README = """# {title}

A Flower app that trains one cell of the scenario `{scenario}`, exported by psr-harness {version}. The cell is in
[{package}/cell.yaml]({package}/cell.yaml); nothing here has to be edited to run it.

| | |
|---|---|
| cell | `{cell}` |
| defence | {defence} |
| aggregator | {aggregator} |
| clients, rounds | {clients}, {rounds} |
{notes}
Every machine needs Python 3.11 or newer and `pip install {installed}`.
Where that is done, add `--disable-runtime-dependency-installation` to SuperLink and
SuperNodes: Flower would otherwise install the dependencies again for every run. Set `FLWR_TELEMETRY_ENABLED=0` if
Flower is not to report its use.

## As a simulation

    export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_TELEMETRY_ENABLED=0
    flwr run . --stream --federation-config 'num-supernodes={clients}'

This is the cell itself: its data, its partition and its seeds, so {result}.
`flwr run` starts a SuperLink in the background, which stays until you end it. The trained model and its history are
written to `trained/` in the folder where that SuperLink was started, or where `--run-config 'out="/path"'` says.

## With SuperNodes of your own

In a deployment each SuperNode trains on its own records, and sampling and noise are drawn from the operating system's
entropy: no number of the simulation is used, and no two runs are alike. Say where the records are when the SuperNode
starts. What `data` means is up to `load` in [{package}/data.py]({package}/data.py): as it is, a `.npz` file with
`images` (n, {c}, {h}, {w}), uint8 or float in [0, 1], and `labels` (n,) in [0, {classes}).

Certificates and keys, once. The SuperLink's certificate must name the address that SuperNodes connect to:

    openssl req -x509 -newkey rsa:4096 -nodes -days 365 -keyout ca.key -out ca.crt -subj "/CN=our federation"
    openssl req -newkey rsa:4096 -nodes -keyout server.key -out server.csr -subj "/CN=superlink.example.org"
    printf "subjectAltName=DNS:superlink.example.org" > names.txt
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile names.txt \\
        -out server.crt
    ssh-keygen -t ecdsa -b 384 -N "" -f site1        # at each site: site1 stays there, site1.pub is sent to you

The SuperLink:

    flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
        --enable-supernode-auth --disable-runtime-dependency-installation --port 9091

In `~/.flwr/config.toml` of whoever starts runs, and the sites' public keys:

    [superlink.ours]
    address = "superlink.example.org:9091"
    root-certificates = "/absolute/path/ca.crt"

    flwr supernode register site1.pub ours

Each site:

    flower-supernode --superlink superlink.example.org:9091 --root-certificates ca.crt \\
        --auth-supernode-private-key site1 --disable-runtime-dependency-installation \\
        --node-config 'data="/data/site1.npz"'

Then, from this folder:

    flwr run . ours --stream --run-config 'nodes=3'

| run configuration | |
|---|---|
| `nodes` | how many SuperNodes to wait for; 0: those connected when the run starts |
| `out` | where the ServerApp writes `model.safetensors` and `result.json` |
| `round-timeout` | seconds a round waits for answers. Whoever is silent is left out from then on |
| `strict` | true: end the run instead where a client does not answer |
| `device` | auto, cpu, cuda or cuda:N |
| `data-root` | simulation only: the folder that relative paths of the data are looked up in |

{privacy}"""
PRIVACY = """## Privacy

`result.json` states the guarantee that the training gives, by the accountant of the harness, for {counted}.
Noise and sampling come from PyTorch's generators, whose whole state is filled from 256 bits of the operating system: on
a CPU a Mersenne twister, on a GPU Philox with about 124 bits of state. No search finds that state, but neither
generator is cryptographically secure: whoever sees noise with nothing beside it (an update's coordinates whose gradient
is zero, such as those of a pixel that is always black) could work the state out, and take the rest of that round's
noise away. A deployment that must withstand this, or attacks on floating-point noise, needs more than this app. The
sites must trust the server to send the settings of this app: what a site runs is this folder's code with the noise that
the server plans.
{hidden}"""
REPORTED = "the number of records\nthat the sites report"
CLIENTS = """the number of
clients: sites do not report how many records they have, and where the cell gives no delta it is 1 / (10 clients). With
few sites that is a large one: set `delta` of the defence in the scenario and export again"""
HIDDEN = """
The guarantee is for whole clients, so that a site counts as one record, is sent the settings prepared for itself alone,
and is not told how many others take part in a round; nor does `result.json`, whose history has the rounds alone. How
long a round takes, and the SuperLink's log of who was sent a message, are not hidden: keep that log to the server.
"""
PLAIN = """## Privacy

The cell gives no privacy guarantee: the server sees every site's update.
"""


@dataclass(frozen=True)
class Exported:
    """What was written, and what its user should know."""

    folder: Path
    cell: Cell
    notes: list[str]


def find_cell(scenario: Scenario, wanted: str) -> Cell:
    """The cell that is meant, see harness.picking. Raises HarnessError where none or several are."""
    return pick(list(cells(scenario)), wanted, "--cell", scenario.name)


def export(scenario: Scenario, wanted: str, out: Path) -> Exported:
    """Write the app. Raises HarnessError for an unknown cell, one that cannot be deployed, or a folder in use."""
    from harness.scenario_plan import data_facts, meta_module, metrics_of

    cell = find_cell(scenario, wanted)
    facts = data_facts(scenario, None)
    reason = reason_not_applicable(cell, facts, meta_module(scenario, facts)) or undeployable(cell)
    if reason is not None:
        raise HarnessError(f"cell {cell.id} cannot be exported: {reason}")
    planner = Planner("cpu")
    key = planner.add(cell, facts, metrics_of(scenario)).stages["train"]
    spec: Any = planner.stages[key].spec
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise HarnessError(f"--out {out}: already there and not an empty folder")
        return _write(scenario, cell, facts, spec.noise_key or key, out)
    except OSError as error:
        raise HarnessError(f"--out {out}: {error.strerror or error}") from error


def _write(scenario: Scenario, cell: Cell, facts: DataFacts, noise_key: str, out: Path) -> Exported:
    files = _placed(local_files(cell))
    pinned = pin(cell, tuple(files))
    c, h, w = facts.input_shape
    name = f"{scenario.name}-{cell.id}".lower().replace(".", "-").replace("_", "-")
    package = name.replace("-", "_")
    config = {
        "nodes": 0,
        "out": "trained",
        "round-timeout": 600.0,
        "strict": False,
        "device": "auto",
        "data-root": str(scenario.root.resolve()),
    }
    about, needed = f"Cell {cell.id} of {scenario.name}", requirements(cell)
    folder = write_app(out, name, about, SERVER, CLIENT.format(package=package), config, needed)
    (folder / "cell.yaml").write_text(pinned, encoding="utf-8")
    for place, file in files.items():
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_bytes(file.source)
    facts_of_cell = {
        "cell": cell.id,
        "axes": dict(cell.axes),
        "noise_key": noise_key,
        "tolerance": scenario.tolerance,  # follows from threats that the pinned scenario lacks
        "num_classes": facts.num_classes,
        "input_shape": list(facts.input_shape),
    }
    (folder / "cell.json").write_text(json.dumps(facts_of_cell, indent=2) + "\n")
    shape = {"c": c, "h": h, "w": w, "classes": facts.num_classes}
    (folder / "data.py").write_text(DATA.format(**shape))
    notes = _notes(cell)
    text = README.format(
        title=about,
        scenario=scenario.name,
        version=__version__,
        package=package,
        installed=" ".join(f"'{wanted}'" for wanted in ("psr-harness[flower]", *needed)),
        cell=cell.id,
        defence=cell.axes["defence"],
        aggregator=cell.axes["aggregator"],
        clients=scenario.federation.clients,
        rounds=scenario.federation.rounds,
        notes="".join(f"\n{note}\n" for note in notes),
        result=_result(cell),
        privacy=_privacy(cell),
        **shape,
    )
    (out / "README.md").write_text(text, encoding="utf-8")
    return Exported(out, cell, notes)


def undeployable(cell: Cell) -> str | None:
    """Why a cell that can be scored must not, or cannot, be deployed; None if it can."""
    if cell.trains_under_attack:
        assert cell.attack is not None
        return f"it is trained under {cell.attack.label()}: attacks are for simulations, export a cell without one"
    if cell.update_compressors:
        return (
            f"{cell.update_compressors[0].name} is simulated at the server; this app would send whole updates, "
            "and its uplink would not be the record's"
        )
    for file in local_files(cell):
        if any(fnmatchcase(file.path.name, pattern) for pattern in LEFT_OUT):
            return (
                f"Flower leaves files named {' or '.join(LEFT_OUT)} out of an app: rename {file.path.name}, "
                "which holds a plugin of the cell"
            )
        if file.beside:
            return (
                f"{file.path.name} imports {file.beside[0].path.name} beside it, which the app would not find: "
                "put both into one file, or make a package of them with `harness plugin new`"
            )
    return conflict(cell.defences)


def local_files(cell: Cell) -> list[LocalFile]:
    """The local plugin files that the training or release of a cell needs."""
    files = [registry().entry_of(plugin).file for plugin in _plugins(cell)]
    return [file for file in dict.fromkeys(files) if file is not None]


def requirements(cell: Cell) -> list[str]:
    """What pip installs, beside the harness, for the training or release of a cell: packages of plugins, and extras."""
    found = []
    for plugin in _plugins(cell):
        entry = registry().entry_of(plugin)
        if entry.file is None and entry.distribution != BUILTIN:
            found.append(f"{entry.distribution}>={entry.version.partition('+')[0]}")
        found += [*plugin.extras.values(), *accountant_extras(getattr(plugin, "accountant", None)).values()]
    return list(dict.fromkeys(found))


def _plugins(cell: Cell) -> list[Plugin]:
    """The plugins that the training or release of a cell needs."""
    scenario = cell.scenario
    parts = [scenario.dataset, scenario.model, scenario.federation.partition]
    parts += [*cell.defences, *cell.aggregators, *cell.compressors]
    return [plugin for part in parts for plugin in with_nested(part)]


def _placed(files: Sequence[LocalFile]) -> dict[str, LocalFile]:
    """Path from the package's folder -> file: each in a folder of its own, as names may repeat, under its own name."""
    places = {}
    for i, file in enumerate(files):
        name = file.path.name
        if name == "__init__.py":  # it takes its name from its folder
            name = f"{file.path.parent.name}/{name}"
        places[f"{PLUGINS}/{i}/{name}"] = file
    return places


def pin(cell: Cell, plugins: Sequence[str] = ()) -> str:
    """A scenario whose only training is this cell's, as YAML with all defaults spelled out.

    plugins: paths of its local plugin files, from the folder of the YAML file.
    """
    import yaml

    plain = cell.scenario.to_dict()
    for axis in ("defences", "aggregators", "compressors"):
        position = getattr(cell.scenario, axis).index(getattr(cell, axis))
        plain[axis] = [plain[axis][position]]
    plain["threats"] = [{"name": "none"}]
    plain["seeds"] = [cell.seed]
    plain["engine"] = "local"
    plain["trackers"] = []
    plain["plugins"] = list(plugins)
    plain["metrics"] = None
    drop = [key for key, value in plain.items() if value is None or value == []]
    plain = {key: value for key, value in plain.items() if key not in drop}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def _notes(cell: Cell) -> list[str]:
    notes = []
    if cell.model_compressors:
        names = " + ".join(c.label() for c in cell.model_compressors)
        notes.append(
            f"The cell's compressor, {names}, acts after training: the app trains the model that it is applied to."
        )
    parts: list[Aggregator | Defence] = [*cell.aggregators, *cell.defences]
    for part in parts:
        if type(part).inference not in (Aggregator.inference, Defence.inference):
            notes.append(
                f"{part.label()} acts at inference too, and `model.safetensors` is the network alone: whoever deploys "
                f"it has to put `inference` of the {part.kind} `{part.name}` around it. The accuracy that a simulation "
                "writes is that of both."
            )
    return notes


def _result(cell: Cell) -> str:
    """What the result of a simulation is, for the README."""
    if not cell.model_compressors:
        return "the result is its record's"
    return (
        "the trained model is its record's before\nthe compressor changes it, and so is the accuracy in `result.json`: "
        "the record's scores and guarantee are of the compressed model"
    )


def _privacy(cell: Cell) -> str:
    """The README's section on what is guaranteed."""
    if not any(defence.protects for defence in cell.defences):
        return PLAIN
    hides = discreet(cell.defences)
    return PRIVACY.format(counted=CLIENTS if hides else REPORTED, hidden=HIDDEN if hides else "")
