"""Single files as plugins: named, never found; hashed as they were; two of one name, and edited between runs."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import re
import sys
from importlib import resources
from importlib.util import module_from_spec, spec_from_file_location

import pytest

import harness
from harness import local_plugins
from harness.cli import main
from harness.errors import PluginError, ScenarioError
from harness.identity import identity_of
from harness.registry import Registry, registry
from harness.scenario import load, load_text

RULE = '''"""A rule."""

from harness.api import Aggregator, Field, hookimpl


class Rule(Aggregator):
    """The first update, times `scale`."""

    name = "local-rule"
    scale: float = Field({scale}, gt=0, description="factor")

    def aggregate(self, updates, context):
        return updates[0] * self.scale


@hookimpl
def harness_register(register):
    register(Rule)
'''
SCENARIO = """\
schema: 1
name: {name}
plugins: [{path}]
dataset: digits
model: {{mlp: {{hidden: [4]}}}}
federation: {{clients: 2, rounds: 1}}
aggregators: [{rule}]
"""


@pytest.fixture
def write(tmp_path):
    """write("a/rule.py", scale=2.0) -> the file; write.scenario("a/s.yaml") -> one that names rule.py."""

    def file(path, scale=1.0, source=RULE):
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(source.replace("{scale}", repr(scale)), encoding="utf-8")
        return place

    def scenario(path, name="local", plugin="rule.py", rule="local-rule"):
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(SCENARIO.format(name=name, path=plugin, rule=rule))
        return place

    file.scenario = scenario
    return file


@pytest.fixture(autouse=True)
def _nothing_stays_seen():
    seen = registry()._seen
    yield
    registry()._seen = seen


def rule_of(scenario):
    ((rule,),) = scenario.aggregators
    return rule


def test_a_scenario_names_the_file_and_the_record_its_hash(write, tmp_path):
    file, path = (
        write("methods/rule.py", 2.0),
        write.scenario("scenarios/s.yaml", plugin="../methods/rule.py"),
    )
    run = harness.run(path, device="cpu", jobs=0, store=tmp_path / "runs")
    (record,) = run.records
    assert record["status"] == "scored", record["error"]
    (item,) = [p for p in record["provenance"]["plugins"] if p["name"] == "local-rule"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert item == {
        "kind": "aggregator", "name": "local-rule", "distribution": "local:rule.py", "version": digest[:12],
        "source": digest,
    }  # fmt: skip
    assert str(tmp_path) not in str(record["provenance"]["plugins"])


def test_never_implicitly(write):
    """Neither by lying beside a scenario, nor because another scenario of the process names it."""
    write("rule.py")
    named = load(write.scenario("s.yaml"))
    assert rule_of(named).scale == 1.0
    with pytest.raises(ScenarioError, match="unknown aggregator 'local-rule'"):
        load(write.scenario("t.yaml", plugin=""))
    assert "local-rule" not in harness.plugins("aggregator")
    with pytest.raises(PluginError, match="unknown aggregator"):
        harness.create("aggregator", "local-rule")


def test_an_edited_file_is_another_one_in_the_same_process(write):
    write("rule.py", 1.0)
    path = write.scenario("s.yaml")
    before = load(path)
    write("rule.py", 3.0)
    after = load(path)
    assert (rule_of(before).scale, rule_of(after).scale) == (1.0, 3.0)
    old, new = identity_of(rule_of(before)), identity_of(rule_of(after))
    assert old["source"] != new["source"]  # and so other stage keys
    assert before.hash() != after.hash()  # a default has changed
    write("rule.py", 1.0)
    assert identity_of(rule_of(load(path))) == old


def test_stage_keys_follow_the_file(write, tmp_path):
    from harness.engine import plan

    path = write.scenario("s.yaml", rule="local-rule: {scale: 1.0}")
    write("rule.py")
    keys = []
    for source in (RULE, RULE, RULE.replace("updates[0]", "updates[1]")):
        write("rule.py", source=source)
        (found,) = plan(path, device="cpu", store=tmp_path / "none").to_dict()["scenarios"]
        keys.append(found["cells"][0]["stages"]["train"])
    assert keys[0] == keys[1] != keys[2]


def test_two_files_of_one_name_in_different_folders_work_in_worker_processes(write, tmp_path):
    write("a/rule.py")
    write("b/rule.py", source=RULE.replace("updates[0]", "updates.mean(0) * 0"))
    paths = [write.scenario("a/s.yaml", "first"), write.scenario("b/s.yaml", "second")]
    run = harness.run(paths, device="cpu", jobs=1, store=tmp_path / "runs")
    first, second = run.records
    assert (first["status"], second["status"]) == ("scored", "scored"), (first["error"], second["error"])
    sources = [
        {p["source"] for p in r["provenance"]["plugins"] if p["distribution"] == "local:rule.py"}
        for r in run.records
    ]
    expected = [{hashlib.sha256((tmp_path / f / "rule.py").read_bytes()).hexdigest()} for f in ("a", "b")]
    assert sources == expected
    assert first["history"] != second["history"]  # one trains, the other stays where it was


def test_instances_travel_by_their_content(write):
    write("rule.py", 2.0)
    rule = rule_of(load(write.scenario("s.yaml")))
    write("rule.py", 5.0)
    copy = pickle.loads(pickle.dumps(rule))
    assert copy == rule
    assert type(copy).model_fields["scale"].default == 2.0


def test_two_files_of_one_name_in_one_scenario(write):
    write("a/rule.py")
    write("b/rule.py", source=RULE.replace("local-rule", "other-rule"))
    scenario = load(write.scenario("s.yaml", plugin="a/rule.py, b/rule.py", rule="local-rule, other-rule"))
    assert [chain[0].name for chain in scenario.aggregators] == ["local-rule", "other-rule"]
    write("b/rule.py", 2.0)
    with pytest.raises(
        ScenarioError, match=r"'local-rule' is in two files of one name, .*a/rule.py and .*b/rule.py"
    ):
        load(write.scenario("s.yaml", plugin="a/rule.py, b/rule.py"))


def test_a_local_name_does_not_hide_an_installed_one(write):
    write("rule.py", source=RULE.replace("local-rule", "krum"))
    with pytest.raises(ScenarioError, match=r"say psr-harness/krum or local:rule\.py/krum"):
        load(write.scenario("s.yaml", rule="krum"))
    scenario = load(write.scenario("s.yaml", rule="psr-harness/krum, local:rule.py/krum: {scale: 2.0}"))
    assert [type(chain[0]).__name__ for chain in scenario.aggregators] == ["Krum", "Rule"]
    written = scenario.to_dict()["aggregators"]
    assert [next(iter(chain[0])) for chain in written] == ["psr-harness/krum", "local:rule.py/krum"]


FAULTS = {
    "no file": (None, r"s.yaml:3:11: rule.py: no such file in .*; did you mean 'rules.py'\?"),
    "syntax": ("x = 1\ndef f(:\n", r"s.yaml:3:11: rule.py:2:7: invalid syntax in 'def f\(:'"),
    "import": (
        "x = 1\nimport no_such_module\n",
        r"rule.py:2: ModuleNotFoundError: No module named 'no_such_module'\n",
    ),
    "neighbour": ("import rules\n", r"rule.py:1: .*'rules'; a local plugin is one file and cannot import its neigh"),
    "raises": ("def f():\n    raise ValueError('no')\nf()\n", r"rule.py:2: ValueError: no"),
    "file": ("open('no-such-file')\n", r"rule.py:1: FileNotFoundError: .*; what a local plugin reads is not in "),
    "exits": ("import sys\nsys.exit(3)\n", r"rule.py:2: SystemExit: 3"),
    "no hook": ("x = 1\n", r"rule.py: it implements no hook; mark harness_register\(register\) with"),
    "misnamed parameter": (
        RULE.replace("harness_register(register)", "harness_register(registry)"),
        r"rule.py: harness_register\(registry\) has to be harness_register\(register\)",
    ),
    "no parameter": (
        RULE.replace("harness_register(register)", "harness_register()"),
        r"rule.py: harness_register\(\) has to be harness_register\(register\)",
    ),
    "mistyped hook": (
        RULE.replace("harness_register", "harness_regster"),
        r"rule.py: unknown hook 'harness_regster'; did you mean 'harness_register'",
    ),
    "not a plugin": (RULE.replace("register(Rule)", "register(dict)"), r"rule.py:\d+: register\(\) takes plugin"),
    "not there": (RULE.replace("register(Rule)", "register(Rul)"), r"rule.py:\d+: NameError: name 'Rul' is not"),
    "observer": (
        RULE + "\n@hookimpl\ndef harness_run_started(run):\n    pass\n",
        r"rule.py: a local plugin has the hook harness_register alone, not harness_run_started; watch",
    ),
    "newer": ("requires_api = '>=99'\n" + RULE, r"rule.py: it requires harness.api >=99; this is version"),
    "not text": ("\0", r"rule.py: SyntaxError: source code string cannot contain null bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_wrong_is_one_message_at_the_place_that_names_the_file(case, write):
    source, message = FAULTS[case]
    write("rules.py")
    if source is not None:
        write("rule.py", source=source)
    with pytest.raises(ScenarioError, match=message) as caught:
        load(write.scenario("s.yaml"))
    assert str(caught.value).count("s.yaml:3:11:") == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("''", r"s.yaml:3:11: the path is empty; name a Python file, such as my_rule.py\n"),
        (r'"a\0b.py"', r"s.yaml:3:11: 'a\\x00b.py' cannot be the path of a file: "),
        (r'"\ud83d.py"', r"s.yaml:3:11: '\\ud83d.py' cannot be the path of a file: "),
        ("x" * 300 + ".py", r"s.yaml:3:11: x+.py: cannot be read: File name too long\n"),
    ],
)
def test_a_path_that_no_file_can_have_is_a_mistake_at_its_place(path, message, write):
    file = write.scenario("s.yaml")
    file.write_text(file.read_text().replace("rule.py", path, 1))
    with pytest.raises(ScenarioError, match=message):
        load(file)


def test_other_places_that_are_no_file(write, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    load_file = Registry().load_file
    with pytest.raises(PluginError, match="is a folder; a local plugin is one Python file"):
        load_file(tmp_path / "package")
    with pytest.raises(PluginError, match=r"its name must end with \.py"):
        load_file(tmp_path / "notes.txt")
    with pytest.raises(PluginError, match="there is no folder"):
        load_file(tmp_path / "absent" / "x.py")


def test_plugins_must_be_a_list_of_paths():
    text = "schema: 1\nname: s\nplugins: {}\ndataset: digits\nmodel: lenet5\n"
    with pytest.raises(ScenarioError, match="plugins must be a list"):
        load_text(text.format("rule.py"))
    with pytest.raises(ScenarioError, match="plugins must be text"):
        load_text(text.format("[3]"))


def test_the_command_line_takes_a_file(write, tmp_path, capsys):
    file = write("rule.py")
    assert main(["list", "aggregator", "--plugin", str(file)]) == 0
    assert "local-rule" in capsys.readouterr().out
    assert main(["show", "aggregator", "local:rule.py/local-rule", "--plugin", str(file)]) == 0
    assert "local:rule.py" in capsys.readouterr().out
    path = write.scenario("s.yaml", plugin="")
    assert main(["validate", str(path), "--no-data", "--plugin", str(file)]) == 0
    write("rule.py", 7.0)  # an edited file takes the place of what it was
    assert main(["show", "aggregator", "local-rule", "--plugin", str(file)]) == 0
    assert "7" in capsys.readouterr().out
    assert main(["list", "--plugin", str(tmp_path / "none.py")]) == 2
    assert "none.py: no such file" in capsys.readouterr().err


def test_results_of_a_local_file_are_not_official(write, tmp_path, monkeypatch, capsys):
    from harness.leaderboard.submit import collect
    from harness.store import Store

    write("rule.py")
    path = write.scenario("s.yaml")
    harness.run(path, device="cpu", jobs=0, store=tmp_path / "runs")
    with Store(tmp_path / "runs") as store:
        made = collect(store.records("local"), load(path), name="mine")
    assert not made.official
    assert any("aggregator local-rule: from a local file" in reason for reason in made.unofficial_because)
    monkeypatch.chdir(tmp_path)
    submit = [
        "leaderboard",
        "submit",
        "runs",
        "--scenario",
        str(path),
        "--name",
        "m",
        "--unofficial",
        "--out",
        ".",
    ]
    assert main(submit) == 0
    assert not capsys.readouterr().err
    rule = path.with_name("rule.py")
    rule.write_text(rule.read_text() + "\n# edited\n")
    assert main(submit) == 0
    assert re.search(
        "note: other code of local-rule in local:rule.py: .* here; the file describes",
        capsys.readouterr().err,
    )


def test_the_module_of_a_package_is_told_from_others_by_its_folder(write):
    file = Registry().load_file(write("src/my_rule/__init__.py"))
    assert file.distribution == "local:my_rule/__init__.py"
    path = write.scenario(
        "s.yaml", plugin="src/my_rule/__init__.py", rule="local:my_rule/__init__.py/local-rule"
    )
    assert rule_of(load(path)).name == "local-rule"


# what a file imports beside it --------------------------------------------------------------------

HELPER = "harness_test_helper"


def forget() -> None:
    """What a new process does not know."""
    for name in [n for n in sys.modules if n.startswith((HELPER, "harness_local_"))]:
        del sys.modules[name]
    finder = local_plugins._FINDER
    for known in (local_plugins._NEIGHBOURS, local_plugins._READ, finder.files, finder.beside):
        known.clear()
    importlib.invalidate_caches()


@pytest.fixture
def beside(write, tmp_path, monkeypatch):
    """beside(imports) -> rule.py, which imports from its folder. Python looks there, as with `python -m harness`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    write(f"{HELPER}.py", source="FACTOR = 1.0\n")
    write(f"{HELPER}_between.py", source=f"import {HELPER}\n")
    write(f"{HELPER}_package/__init__.py", source="")
    write(f"{HELPER}_package/inner.py", source=f"from . import other\nfrom {HELPER} import FACTOR\n")
    write(f"{HELPER}_package/other.py", source="x = 1\n")
    write(f"{HELPER}_folder/inner.py", source="from .other import y\n")
    write(f"{HELPER}_folder/other.py", source=f"import {HELPER}\ny = {HELPER}.FACTOR\n")
    write(f"{HELPER}_folder/data.txt", source="not code")
    forget()
    yield lambda imports: write("rule.py", source=f"{imports}\n{RULE}")
    forget()


def hash_of(file, *first: str) -> str:
    """That of a new process, which has imported some modules before."""
    forget()
    for module in first:
        importlib.import_module(module)
    return Registry().load_file(file).sha256


BESIDE = {
    "at the top": f"import {HELPER}",
    "from": f"from {HELPER} import FACTOR",
    "star": f"from {HELPER} import *",
    "when it is called": f"def f():\n    import {HELPER}",
    "by another": f"import {HELPER}_between",
    "of a package": f"import {HELPER}_package.inner",
    "of a folder": f"from {HELPER}_folder import inner",
    "by a text": f"import importlib\nhelper = importlib.import_module('{HELPER}')",
    "by a name made up": f"import importlib\nhelper = importlib.import_module('{HELPER[:9]}' + '{HELPER[9:]}')",
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_a_file_imports_beside_it_is_in_its_hash(case, beside, write):
    file = beside(BESIDE[case])
    before = hash_of(file)
    assert before == hash_of(file, HELPER)  # something else imported it first
    assert before != hashlib.sha256(file.read_bytes()).hexdigest()
    write(f"{HELPER}.py", source="FACTOR = 10.0\n")
    edited = hash_of(file)
    assert edited not in (before, hash_of(beside("")))
    write(f"{HELPER}.py", source="FACTOR = 1.0\n")
    assert hash_of(beside(BESIDE[case])) == before
    write(f"{HELPER}_folder/data.txt", source="more")
    assert hash_of(file) == before


def test_a_file_may_add_its_folder_itself(beside, write, tmp_path):
    write("methods/harness_test_helper_far.py", source="FACTOR = 1.0\n")
    path = str(tmp_path / "methods")
    file = beside(f"import sys\nsys.path.insert(0, {path!r})\nimport {HELPER}_far\nsys.path.remove({path!r})")
    before = hash_of(file)
    write("methods/harness_test_helper_far.py", source="FACTOR = 10.0\n")
    assert hash_of(file) != before


def test_neighbours_are_in_what_keys_are_made_of(beside):
    own = Registry()
    file = own.load_file(beside(f"from {HELPER} import FACTOR"))
    with own.seeing([file]):
        entry = own.find("aggregator", "local-rule")
    assert entry.source_hash == file.sha256 != hashlib.sha256(file.source).hexdigest()
    assert entry.version == file.sha256[:12]


def test_libraries_and_the_engine_are_no_neighbours(beside):
    file = beside("import json, torch, yaml\nimport harness.errors\nfrom harness import nn")
    assert hash_of(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_program_that_imports_a_file_is_no_neighbour_of_it(beside, tmp_path, monkeypatch):
    """multiprocessing, which torch imports, gives what `python -m` runs another name: in some commands not before."""
    file = beside("import multiprocessing")
    before = hash_of(file, "multiprocessing")
    (tmp_path / "program.py").write_text("import harness\n")
    spec = spec_from_file_location("program", tmp_path / "program.py")
    program = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "__main__", program)
    monkeypatch.delitem(sys.modules, "__mp_main__", raising=False)
    monkeypatch.delitem(sys.modules, "multiprocessing")
    assert hash_of(file) == before
    assert sys.modules["__mp_main__"] is program


@pytest.mark.parametrize("case", ["at the top", "when it is called"])
def test_a_neighbour_edited_after_it_was_imported_asks_for_a_new_process(case, beside, write):
    path = beside(BESIDE[case])
    file = Registry().load_file(path)
    known = file.sha256
    write(f"{HELPER}.py", source="FACTOR = 10.0\n")
    with pytest.raises(
        PluginError, match=rf"{HELPER}.py, which it imports, changed after this process imported it"
    ):
        _ = Registry().load_file(path).sha256
    path.write_text(path.read_text() + "\n")
    with pytest.raises(PluginError, match="start Python, or the notebook's kernel, again"):
        Registry().load_file(path)
    write(f"{HELPER}.py", source="FACTOR = 1.0\n")
    assert file.sha256 == known


def test_a_neighbour_edited_since_something_else_imported_it(beside, write, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    importlib.import_module(HELPER)
    write(f"{HELPER}.py", source="FACTOR = 10.0\n")
    with pytest.raises(PluginError, match="changed after this process imported it"):
        Registry().load_file(beside(f"import {HELPER}"))


def test_workers_import_the_neighbours_that_were_hashed(beside, write):
    file = Registry().load_file(beside(f"import {HELPER}_package.inner as inner"))
    sent = pickle.dumps([file])
    forget()
    write(f"{HELPER}.py", source="FACTOR = 10.0\n")
    local_plugins.expect(pickle.loads(sent))
    assert importlib.import_module(file.module).inner.FACTOR == 1.0
    write(f"{HELPER}_package/data.txt", source="as ever")
    assert resources.files(f"{HELPER}_package").joinpath("data.txt").read_text() == "as ever"


def test_a_run_with_a_neighbour_in_worker_processes(beside, write, tmp_path):
    beside(f"def scaled(x):\n    import {HELPER}\n    return x * {HELPER}.FACTOR").write_text(
        (tmp_path / "rule.py").read_text().replace("updates[0]", "scaled(updates[0])")
    )
    run = harness.run(write.scenario("s.yaml"), device="cpu", jobs=1, store=tmp_path / "runs")
    (record,) = run.records
    assert record["status"] == "scored", record["error"]
