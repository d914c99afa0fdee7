"""From a store's records to a submission: what is in it, and when it is official."""

import copy
import json
import math
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.evaluation.masking import FLAG
from harness.grid import cells
from harness.leaderboard.check import contradictions, open_scenario
from harness.leaderboard.publishable import unportable, without_folders
from harness.leaderboard.submission import file_name, read, write
from harness.leaderboard.submit import collect, of_store
from harness.provenance import UNKNOWN
from harness.scenario import load, load_text
from harness.store import Store

PUBLISHED = Path(__file__).parents[2] / "leaderboard" / "records"


def of(records, **axes):
    """The records of the cells with these labels."""
    return [r for r in records if all(r["cell"][axis] == value for axis, value in axes.items())]


def cell_of(submission, **axes):
    (found,) = [c for c in submission.cells if all(getattr(c, axis) == value for axis, value in axes.items())]
    return found


def test_cells_are_grouped_over_seeds(made, records):
    assert made.official
    assert made.unofficial_because == ()
    assert len(records) == 24
    assert len(made.cells) == 12
    for record in of(records, attack="fgsm"):
        axes = {axis: record["cell"][axis] for axis in ("defence", "aggregator", "compressor", "attack")}
        cell = cell_of(made, **axes)
        seed = cell.seeds[str(record["cell"]["seed"])]
        assert seed.id == record["id"]
        broken = record["guarantee"] is not None and not record["guarantee"]["holds"]
        assert seed.undefined == ({"epsilon": "inf"} if broken else {})
        assert seed.scores == {
            name: value for name, value in record["scores"].items() if math.isfinite(value)
        }
        assert len(seed.scores) > 10
        assert seed.curve == tuple((e["round"], e["val_accuracy"]) for e in record["history"])
        assert len(seed.curve) == 2
        assert (cell.family, cell.eps, cell.norm, cell.threat) == ("evasion", 0.1, "linf", "evasion")
        assert cell.config["attack"] == {"fgsm": {"eps": None}}
        assert cell.config["threat"]["budget"] == {"norm": "linf", "eps": 0.1}
        assert set(cell.config) == {"defence", "aggregator", "compressor", "threat", "attack"}
    clean = cell_of(made, defence="none", compressor="none", attack="none")
    assert (clean.family, clean.eps, clean.norm, clean.guarantee) == ("clean", None, None, None)
    assert clean.lineage[0].stage == "data"
    assert clean.lineage[-1].stage == "release"


def test_scenario_environment_units_and_plugins(made, ran, records):
    facts = made.scenario
    assert facts.text == ran.text
    assert facts.hash == ran.scenario.hash()
    assert (facts.dataset, facts.model, facts.seeds) == ("digits", "logistic", (0, 1))
    assert facts.fingerprint == records[0]["provenance"]["dataset"]["fingerprint"]
    assert made.environment.commit == "1f" * 20
    assert made.environment.libraries == records[0]["provenance"]["libraries"]
    assert made.units["train_seconds"].measured
    assert made.units["robust_accuracy"].direction == "higher"
    assert not made.units["accuracy"].measured
    names = {(p.kind, p.name) for p in made.plugins}
    assert {
        ("defence", "dp-sgd"),
        ("compressor", "static-int8"),
        ("attack", "fgsm"),
        ("dataset", "digits"),
    } <= names
    (dp,) = [p for p in made.plugins if p.name == "dp-sgd"]
    assert "differential privacy" in dp.title
    assert dp.year == 2016
    assert len(names) == len(made.plugins)


def test_a_file_is_read_back_as_it_was_and_fits_its_scenario(made, tmp_path):
    path = tmp_path / "new" / file_name(made.name, made.scenario)
    write(made, path)
    assert path.name == "small-v1--base.json"
    assert read(path) == made
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written is left
    assert contradictions(made, open_scenario(made)) == []


def test_cells_that_make_no_sense_say_why(made):
    cell = cell_of(made, defence="none", compressor="none", attack="pgd-l2")
    assert cell.status == "not-applicable"
    assert "the budget of 'evasion' is in linf" in cell.reason
    assert all(not seed.scores and seed.error is None for seed in cell.seeds.values())


def test_the_guarantee_is_the_worst_over_seeds(made, records, ran):
    kept = cell_of(made, defence="dp-sgd(epsilon=2)", compressor="none", attack="none")
    broken = cell_of(made, defence="dp-sgd(epsilon=2)", compressor="static-int8", attack="none")
    own = of(records, defence="dp-sgd(epsilon=2)", compressor="none", attack="none")
    assert kept.guarantee.epsilon == max(r["guarantee"]["epsilon"] for r in own)
    assert kept.guarantee.holds
    assert (kept.guarantee.unit, kept.guarantee.by) == ("record", "dp-sgd")
    assert not broken.guarantee.holds
    assert "static-int8 reads the validation split" in broken.guarantee.broken_by[0]

    own[0]["guarantee"] |= {"epsilon": 1.5, "holds": False, "broken_by": ["the sun"], "delta": 1e-3}
    own[1]["guarantee"] |= {"epsilon": 3.0, "delta": 1e-5, "group_epsilon": 7.0, "largest_group": 4}
    claim = collect(records, ran.scenario, name="x")
    claim = cell_of(claim, defence="dp-sgd(epsilon=2)", compressor="none", attack="none").guarantee
    assert (claim.epsilon, claim.delta, claim.holds, claim.broken_by) == (3.0, 1e-3, False, ("the sun",))
    assert (claim.group_epsilon, claim.largest_group) == (7.0, 4)

    own[1]["guarantee"]["epsilon"] = math.inf
    claim = collect(records, ran.scenario, name="x")
    assert (
        cell_of(claim, defence="dp-sgd(epsilon=2)", compressor="none", attack="none").guarantee.epsilon
        is None
    )
    own[1]["guarantee"] = None  # a seed without a guarantee leaves none
    claim = collect(records, ran.scenario, name="x")
    assert cell_of(claim, defence="dp-sgd(epsilon=2)", compressor="none", attack="none").guarantee is None


def test_numbers_that_json_lacks_are_said_in_words(records, ran, tmp_path):
    record = of(records, defence="none", compressor="none", attack="fgsm", seed=1)[0]
    record["scores"] |= {"loss": math.nan, "auroc": math.inf, "macro_f1": -math.inf}
    record["intervals"] = {"accuracy": [0.25, 0.5], "loss": [0.0, math.inf]}
    record["history"][0]["val_accuracy"] = math.nan
    record["config"]["attack"] = {"fgsm": {"eps": math.inf}}
    of(records, defence="none", compressor="none", attack="fgsm", seed=0)[0]["config"]["attack"] = {
        "fgsm": {"eps": math.inf}
    }
    made = collect(records, ran.scenario, name="x")
    cell = cell_of(made, defence="none", compressor="none", attack="fgsm")
    seed = cell.seeds["1"]
    assert seed.undefined == {"loss": "nan", "auroc": "inf", "macro_f1": "-inf"}
    assert "loss" not in seed.scores
    assert seed.intervals == {"accuracy": (0.25, 0.5)}
    assert [number for number, _ in seed.curve] == [2]
    assert cell.config["attack"] == {"fgsm": {"eps": "inf"}}
    write(made, tmp_path / "x.json")
    assert read(tmp_path / "x.json") == made


def test_a_run_that_was_killed_before_it_looked_for_masking_is_flagged(records, ran):
    """A run puts this flag on its records in the end, and a grid can be whole before."""
    model = {"defence": "none", "compressor": "none", "seed": 0, "threat": "evasion"}
    weaker, attacked = sorted(of(records, **model), key=lambda record: record["status"] == "scored")
    for name, value in copy.deepcopy(attacked).items():
        if name not in ("id", "cell"):
            weaker[name] = value
    weaker["attack"]["access"] = "labels"
    for record, accuracy in ((attacked, 0.9), (weaker, 0.1)):
        record["scores"]["robust_accuracy"] = accuracy
        record["attack"].pop("ways", None)
        record["flags"] = []
    for made in (collect(records, ran.scenario, name="x"), of_store(records, "x")[0]):
        flags = {s.id: s.flags for cell in made.cells for s in cell.seeds.values()}
        assert FLAG in flags[attacked["id"]]


def fail(record, message="the disk is full\nat line 3"):
    record.update(status="failed", scores={}, units={}, intervals={}, guarantee=None, lineage=[], attack=None)
    del record["history"]
    record["error"] = {
        "stage": "train: none",
        "type": "OSError",
        "message": message,
        "traceback": 'Traceback:\n  File "/home/someone/secret/run.py", line 3',
    }


def test_failures_are_named_without_what_is_of_this_machine(records, ran):
    first, second = of(records, defence="none", compressor="none", attack="none")
    fail(first, "cannot read '/home/someone/data/x.npz': gone\nmore")
    made = collect(records, ran.scenario, name="x")
    cell = cell_of(made, defence="none", compressor="none", attack="none")
    assert made.official  # a failed cell is named, not hidden, and the grid is whole
    assert cell.status == "scored"
    assert cell.seeds["0"].error == "OSError: cannot read 'x.npz': gone"
    assert cell.seeds["0"].scores == {}
    assert cell.seeds["1"].error is None
    assert cell.lineage[0].stage == "data"  # of the seed that was scored
    fail(second)
    made = collect(records, ran.scenario, name="x")
    cell = cell_of(made, defence="none", compressor="none", attack="none")
    assert (cell.status, cell.reason, cell.lineage) == ("failed", "OSError: cannot read 'x.npz': gone", ())
    assert "secret" not in made.model_dump_json()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/x.npz is not there (tried /data/a/x.npz)", "x.npz is not there (tried x.npz)"),
        ("~/runs/store is locked", "store is locked"),
        ("C:\\Users\\me\\x.npz is gone", "x.npz is gone"),
        ("8/255 of https://example.org/a/b and a/b/c", "8/255 of https://example.org/a/b and a/b/c"),
        ("${HARNESS_DATA}/x/y.npz is gone", "${HARNESS_DATA}/x/y.npz is gone"),
    ],
)
def test_folders_of_this_machine_are_left_out(text, left):
    assert without_folders(text) == left


def test_a_partial_grid_is_unofficial(records, ran):
    lost = of(records, defence="none", compressor="none", attack="fgsm", seed=1)[0]
    made = collect([r for r in records if r is not lost], ran.scenario, name="x")
    assert not made.official
    assert made.unofficial_because == ("1 of 24 cells is missing: none / mean / none, evasion fgsm, seed 1",)
    assert list(cell_of(made, defence="none", compressor="none", attack="fgsm").seeds) == ["0"]
    made = collect(records[:2], ran.scenario, name="x")
    assert made.unofficial_because[0].startswith("22 of 24 cells are missing: ")
    assert made.unofficial_because[0].endswith(" and 19 more")


def _set(*path, to):
    def change(records):
        for record in records:
            inner = record["provenance"]
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = to

    return change


def _engine(field, to):
    """Of the record itself and of its stages."""

    def change(records):
        for record in records:
            origin = record["provenance"]
            for state in (origin["engine"], *origin.get("engines", ())):
                state[field] = to

    return change


def _one_stage(to):
    """One of the stages behind the records is of another state of the engine."""
    return lambda records: records[-1]["provenance"]["engines"].append(
        {**records[-1]["provenance"]["engine"], **to}
    )


def _older(records):
    for record in records:
        record["provenance"].pop("engines", None)


def _first(change):
    """In one record alone, that of the scenario's last cell with a score."""
    return lambda records: change([r for r in records if r["scores"]][-1:])


def _other_source(records):
    for item in records[0]["provenance"]["plugins"]:
        if item["name"] == "logistic":
            item["source"] = "ee" * 32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_engine("dirty", to=True), "the engine's files had changes that are in no commit"),
        (_engine("dirty", to=None), "the engine's files had changes that are in no commit"),
        (
            _engine("commit", to=None),
            "the engine's commit is not known: it did not run from a checkout",
        ),
        (
            _first(_engine("commit", to="2e" * 20)),
            "the records are of different states of the engine: 1f1f1f1f1f1f, 2e2e2e2e2e2e",
        ),
        (
            _first(_one_stage({"commit": "2e" * 20})),
            "different states of the engine: 1f1f1f1f1f1f, 2e2e2e2e2e2e",
        ),
        (_first(_one_stage(UNKNOWN)), "which engine computed some stages is not known"),
        (_older, "which engine computed some stages is not known"),
        (_first(_set("libraries", "torch", to="1.0")), "the records are of different versions of torch"),
        (_first(_set("device_name", to="another")), ", cpu (another)"),
        (_first(_set("dataset", "fingerprint", to="ff" * 32)), "different contents of the data set"),
        (_other_source, "the records are of different code of logistic"),
    ],
)
def test_only_one_clean_state_of_everything_is_official(records, ran, change, reason):
    for record in records:  # as JSON has it, without shared parts
        record["provenance"] = json.loads(json.dumps(record["provenance"]))
    change(records)
    made = collect(records, ran.scenario, name="x")
    assert not made.official
    assert len(made.unofficial_because) == 1
    assert reason in made.unofficial_because[0]


@pytest.mark.parametrize(
    ("origin", "installer", "official"),
    [
        ('{"dir_info": {}, "url": "file:///home/me/mine"}', "pip", False),
        ('{"dir_info": {"editable": true}, "url": "file:///home/me/mine"}', "uv", False),
        ('{"archive_info": {}, "url": "file:///home/me/mine-1.0-py3-none-any.whl"}', "pip", False),
        ('{"vcs_info": {"vcs": "git"}, "url": "https://example.org/mine"}', "pip", True),
        ('{"dir_info": {}, "url": "file:///build/work"}', "conda", True),  # of the machine that built it
        ("[]", "pip", True),  # a damaged note
        (None, "pip", True),  # from an index
    ],
)
def test_packages_that_only_this_machine_has_are_unofficial(
    records, ran, tmp_path, monkeypatch, origin, installer, official
):
    facts = tmp_path / "site" / "mine-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (facts / "INSTALLER").write_text(f"{installer}\n")
    if origin is not None:
        (facts / "direct_url.json").write_text(origin)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for record in records:
        record["provenance"] = json.loads(json.dumps(record["provenance"]))
        for item in record["provenance"]["plugins"]:
            if item["name"] == "logistic":
                item |= {"distribution": "mine", "version": "1.0"}
    made = collect(records, ran.scenario, name="x")
    assert made.official is official
    if not official:
        (reason,) = made.unofficial_because
        assert reason.startswith("mine 1.0: installed from a file or folder, which others do not have; ")
    for record in records:  # what is installed here is not what was run: nobody knows where that came from
        for item in record["provenance"]["plugins"]:
            if item["name"] == "logistic":
                item["version"] = "0.9"
    assert collect(records, ran.scenario, name="x").official


def test_an_engine_with_changes_in_its_tree_is_unofficial(ran, tmp_path, monkeypatch):
    from harness.engine import run

    state = {"version": "0.1.0", "commit": "1f" * 20, "dirty": True}
    monkeypatch.setattr("harness.provenance.engine", lambda: state)
    text = TINY
    (tmp_path / "tiny.yaml").write_text(text)
    result = run(tmp_path / "tiny.yaml", device="cpu", jobs=0, store=tmp_path / "runs")
    made = collect(result.records, load(tmp_path / "tiny.yaml"), name="x")
    assert made.unofficial_because == ("the engine's files had changes that are in no commit",)


def test_a_record_names_the_engine_that_computed_its_stages_not_the_one_that_wrote_it(tmp_path, monkeypatch):
    """A bug was tried out, uncommitted; then the scenario's version was raised, and records were written anew."""
    from harness.engine import run

    clean = {"version": "0.1.0", "commit": "1f" * 20, "dirty": False}
    path = tmp_path / "tiny.yaml"

    def collected(state, text):
        path.write_text(text)
        monkeypatch.setattr("harness.provenance.engine", lambda: state)
        result = run(path, device="cpu", jobs=0, store=tmp_path / "runs")
        return result, collect(result.records, load(path), name="x")

    _, made = collected({**clean, "dirty": True}, TINY)
    assert not made.official
    again, made = collected(clean, TINY + "version: 2\n")
    assert not again.executed["train"]
    assert again.records[0]["provenance"]["engine"]["dirty"] is True
    assert made.unofficial_because == ("the engine's files had changes that are in no commit",)
    # An attack more is computed by the clean engine, on a model that the other one trained.
    more, made = collected(clean, TINY + "version: 3\nthreats: [{name: e, attacks: [fgsm: {eps: 0.1}]}]\n")
    origin = more.records[0]["provenance"]
    assert [state["dirty"] for state in origin["engines"]] == [True, False]
    assert origin["engine"] == {"version": "0.1.0", "commit": None, "dirty": None}
    assert (
        "different states of the engine: one commit, with and without changes" in made.unofficial_because[0]
    )
    assert made.environment.commit is None


@pytest.mark.usefixtures("clean_checkout")
def test_stages_of_an_older_store_count_as_computed_by_an_unknown_engine(tmp_path):
    from harness.engine import run

    path, store = tmp_path / "tiny.yaml", tmp_path / "runs"
    path.write_text(TINY)
    run(path, device="cpu", jobs=0, store=store)
    with Store(store) as opened:
        rows = opened.stage_rows()
        facts = ("engine", "python", "platform")
        old = [row._replace(result={k: v for k, v in row.result.items() if k not in facts}) for row in rows]
        opened.adopt(old, [], {})
    path.write_text(TINY + "version: 2\n")
    result = run(path, device="cpu", jobs=0, store=store)
    assert not any(result.executed.values())
    assert result.records[0]["provenance"]["engine"] == UNKNOWN
    made = collect(result.records, load(path), name="x")
    assert not made.official
    assert "which engine computed some stages is not known" in made.unofficial_because[0]


TINY = """schema: 1
name: tiny
dataset: digits
model: logistic
federation: {clients: 2, rounds: 1, local: {steps: 1}}
metrics: [accuracy]
"""


def test_records_of_a_scenario_as_it_was_before_are_refused(records, ran, tmp_path):
    changed = tmp_path / "small.yaml"
    changed.write_text(ran.text.replace("rounds: 2", "rounds: 3"))
    with pytest.raises(
        HarnessError, match="the store's 24 records of small are of another content of the scenario"
    ):
        collect(records, load(changed), name="x")
    changed.write_text(ran.text.replace("What is left of it?", "Another description."))
    assert collect(records, load(changed), name="x").official  # which decides no score
    changed.write_text(ran.text.replace("name: small", "name: other"))
    with pytest.raises(HarnessError, match=r"the store has no record of other; run it first"):
        collect(records, load(changed), name="x")


def test_a_package_whose_defaults_may_have_changed_is_named(records, ran, tmp_path):
    for record in records:
        record["provenance"] = json.loads(json.dumps(record["provenance"]))
        for item in record["provenance"]["plugins"]:
            if item["name"] == "logistic":
                item["source"] = "ab" * 32
    (tmp_path / "other.yaml").write_text(ran.text.replace("rounds: 2", "rounds: 3"))
    with pytest.raises(HarnessError) as caught:
        collect(records, load(tmp_path / "other.yaml"), name="x")
    assert (
        "another content of the scenario (other code of logistic in psr-harness: 0.1.0, source abab"
        in str(caught.value)
    )
    assert ": with other defaults, the same text is another scenario); run it again" in str(caught.value)


def test_without_a_file_there_is_no_text(records, ran):
    with pytest.raises(HarnessError, match="a submission holds the scenario's file"):
        collect(records, load_text(ran.text), name="x")
    assert collect(records, load_text(ran.text), name="x", text=ran.text).scenario.text == ran.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dataset: {npz: {path: /data/x.npz}}", "absolute path '/data/x.npz'"),
        ("dataset: {npz: {path: ~/x.npz}}", "absolute path '~/x.npz'"),
        ("dataset: {npz: {path: 'C:\\x.npz'}}", "absolute path"),
        ("dataset: {npz: {path: 'file:///x.npz'}}", "absolute path"),
        ('dataset: {"npz":{"path":"/data/x.npz"}}', "absolute path '/data/x.npz'"),
        ('dataset: {npz: {path: "${HOME}/x.npz"}}', "uses the variable HOME"),
        ('dataset: {npz: {path: "$SECRET/x.npz"}}', "uses the variable SECRET"),
        ("name: x  # see /home/me/notes", "names this machine's home, /home/me"),
    ],
)
def test_texts_of_one_machine_are_refused(text, said, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert said in unportable(text)


@pytest.mark.parametrize(
    "text",
    [
        'dataset: {npz: {path: "${HARNESS_DATA}/x.npz"}}',
        "dataset: {npz: {path: data/x.npz}}",
        "budget: {eps: 8/255}  # or /home/you, which is not here; see https://example.org/x",
        'dataset: {imagefolder: {groups: "/(person[0-9]+)_"}}',
        "description: about ~5 minutes and/or more",
        "x: ~",
    ],
)
def test_texts_for_everybody_pass(text, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert unportable(text) is None


def test_a_scenario_with_an_absolute_path_is_not_collected(records, ran):
    text = ran.text.replace("dataset: digits", "dataset: {npz: {path: /data/x.npz}}")
    with pytest.raises(HarnessError, match=r"small.yaml: its text holds the absolute path '/data/x.npz'"):
        collect(records, ran.scenario, name="x", text=text)


def test_names_and_notes_must_be_fit_to_print(records, ran):
    for name in ("../up", "/etc/x", "a b", "", "-x", "a" * 81, "x\n", "bäse"):
        with pytest.raises(HarnessError, match=r"not a submission: name: .* cannot be a name: use letters"):
            collect(records, ran.scenario, name=name)
    with pytest.raises(
        HarnessError, match=r"authors: it holds the invisible character U\+202E; write plain text"
    ):
        collect(records, ran.scenario, name="x", authors="A\u202eB")
    assert collect(records, ran.scenario, name="x", note="two\nlines").note == "two\nlines"


def test_records_of_two_cells_never_become_one_row(tmp_path, records):
    text = TINY + "defences: [label-smoothing: {smoothing: {sweep: [0.1, 0.10000001]}}]\n"
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    scenario = load(path)
    twins = list(cells(scenario))
    made = [
        records[0] | {"id": c.id, "cell": c.axes, "scenario": {"name": "tiny", "hash": scenario.hash()}}
        for c in twins
    ]
    labels = ["label-smoothing(smoothing=0.1)", "label-smoothing(smoothing=0.10000001)"]
    assert [cell.defence for cell in collect(made, scenario, name="x").cells] == labels
    # As an older store has them, whose labels left the last digits out.
    alike = [r | {"cell": twins[0].axes, "scenario": {**r["scenario"], "version": 1}} for r in made]
    with pytest.raises(HarnessError, match="two cells are called label-smoothing"):
        of_store(alike, "x")


@pytest.mark.parametrize("file", sorted(PUBLISHED.glob("*.json")), ids=lambda file: file.stem)
def test_published_scenarios_keep_their_hashes(file):
    facts = json.loads(file.read_text(encoding="utf-8"))["scenario"]
    assert load_text(facts["text"]).hash() == facts["hash"]


@pytest.mark.parametrize("file", sorted(PUBLISHED.glob("*.json")), ids=lambda file: file.stem)
def test_published_cells_keep_their_ids(file):
    data = json.loads(file.read_text(encoding="utf-8"))
    published = {seed["id"] for cell in data["cells"] for seed in cell["seeds"].values()}
    assert published == {cell.id for cell in cells(load_text(data["scenario"]["text"]))}
