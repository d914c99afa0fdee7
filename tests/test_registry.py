"""Loading plugins: what is broken is named and left out, what is ambiguous is said where it is used."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

import harness
from harness.api import (
    Aggregator,
    Attack,
    ByzantineAttack,
    Canaries,
    Defence,
    EvasionAttack,
    Field,
    Metric,
    ModelCompressor,
    Observation,
    PrivacyAttack,
    Sampling,
    Score,
    hookimpl,
)  # fmt: skip
from harness.errors import PluginError
from harness.registry import Registry, split_spec

GOOD = '''
from harness.api import Aggregator, Field, hookimpl

class Mine(Aggregator):
    """The first update."""
    name = "{name}"
    aliases = {aliases}
    f: int = Field(0, ge=0, description="unused")

    def aggregate(self, updates, context):
        return updates[0]

@hookimpl
def harness_register(register):
    register(Mine)
'''


def module(name: str = "mine", aliases: tuple[str, ...] = ()) -> str:
    return GOOD.format(name=name, aliases=repr(aliases))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages: add(distribution, {entry point: source}) writes one into it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("HARNESS_LOAD_PLUGINS", raising=False)
    written: list[str] = []

    def add(distribution: str, sources: dict[str, str], version: str = "1.0") -> None:
        base = distribution.replace("-", "_").replace(".", "_")
        info = tmp_path / f"{base}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = ["[harness]"]
        for entry_point, source in sources.items():
            name = f"fake_{base}_{entry_point}"
            (tmp_path / f"{name}.py").write_text(source)
            written.append(name)
            lines.append(f"{entry_point} = {name}")
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        importlib.invalidate_caches()

    yield add
    for name in written:
        sys.modules.pop(name, None)


def load() -> Registry:
    registry = Registry()
    registry.load_entry_points()
    return registry


def only_disabled(registry: Registry) -> tuple[str, str]:
    """(distribution:name, reason) of the one plugin that is disabled."""
    (item,) = registry.disabled
    return f"{item.distribution}:{item.name}", item.reason


BROKEN = {
    "import error": ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "syntax error": ("def (:", "SyntaxError"),
    "exit at import": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "other base exception": ("class Panic(BaseException): pass\nraise Panic('dumped')", "Panic: dumped"),
    "mistyped hook": (module().replace("harness_register", "harness_regster"), "harness_regster"),
    "mistyped argument": (module().replace("(register)", "(registrar)"), "registrar"),
    "no hook at all": (module().replace("@hookimpl\n", ""), "mark harness_register(register) with @hookimpl"),
    "missing method": (module().replace("def aggregate", "def agregate"), "does not implement aggregate"),
    "not a class": (module().replace("register(Mine)", "register(Mine())"), "takes plugin classes"),
    "not a plugin": (module().replace("register(Mine)", "register(dict)"), "takes plugin classes"),
    "no name": (module(name=""), "Mine needs a name: `name = \"...\"` in the class"),
    "slash in the name": (module(name="a/b"), "without '/' and spaces"),
    "space in the name": (module(name="a b"), "without '/' and spaces"),
    "aliases as text": (module().replace("aliases = ()", "aliases = 'abc'"), "tuple of names"),
    "exit in register": (module().replace("register(Mine)", "register(Mine); exit(1)"), "SystemExit: 1"),
    "the same name twice": (module().replace("register(Mine)", "register(Mine); register(Mine)"), "twice"),
    "alias like the name": (module(aliases=("mine",)), "twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_disabled_with_its_reason_and_the_rest_works(site, case):
    source, reason = BROKEN[case]
    site("broken-one", {"main": source})
    site("fine-one", {"main": module("fine")})
    registry = load()
    where, said = only_disabled(registry)
    assert where == "broken-one:main"
    assert reason in said
    assert "mine" not in registry.names("aggregator")
    assert registry.create("aggregator", "fine").name == "fine"


def test_register_that_raises_half_way_registers_nothing_of_it(site):
    source = module().replace("register(Mine)", "register(Mine)\n    raise RuntimeError('half-way')")
    site("half", {"main": source})
    registry = load()
    assert only_disabled(registry) == ("half:main", "RuntimeError: half-way")
    with pytest.raises(PluginError, match="unknown aggregator 'mine'"):
        registry.find("aggregator", "mine")


def test_a_clash_in_the_last_class_leaves_the_first_one_out_too(site):
    # "first" is fine by itself; the class after it clashes, so neither may stay.
    second = "\nclass Two(Mine):\n    name = 'mine'\nclass Three(Mine):\n    name = 'mine'\n"
    source = module("first").replace("@hookimpl", second + "@hookimpl")
    source = source.replace("register(Mine)", "register(Mine); register(Two); register(Three)")
    site("clash", {"main": source})
    registry = load()
    assert only_disabled(registry)[1] == "PluginError: clash registers aggregator 'mine' twice"
    assert not {"first", "mine"} & set(registry.names("aggregator"))


def test_two_packages_with_one_name_clash_only_where_it_is_used(site):
    site("pack-a", {"main": module("same", ("alias-a",))})
    site("pack-b", {"main": module("same")}, version="2.0")
    registry = load()
    assert registry.disabled == []
    with pytest.raises(PluginError, match=r"'same' is in several packages; say pack-a/same or pack-b/same"):
        registry.find("aggregator", "same")
    a, b = (registry.find("aggregator", f"{d}/same") for d in ("pack-a", "pack-b"))
    assert (a.distribution, a.version, b.distribution, b.version) == ("pack-a", "1.0", "pack-b", "2.0")
    assert a.plugin.__module__ == "fake_pack_a_main"
    assert b.plugin.__module__ == "fake_pack_b_main"
    assert registry.find("aggregator", "alias-a").plugin is a.plugin
    # Classes of the same name in two packages keep their own origin.
    assert registry.entry_of(b.plugin()).distribution == "pack-b"
    assert registry.qualified(a.plugin()) == "pack-a/same"
    with pytest.raises(
        PluginError, match=r"'pack-c' has the aggregator 'same'; there is pack-a/same or pack-b/same"
    ):
        registry.find("aggregator", "pack-c/same")


def test_one_entry_point_name_in_two_packages_loads_both(site):
    site("pack-a", {"plugins": module("from-a")})
    site("pack-b", {"plugins": module("from-b")})
    registry = load()
    assert registry.disabled == []
    assert {"from-a", "from-b"} <= set(registry.names("aggregator"))


def test_two_entry_points_of_one_package_both_count(site):
    site("pack", {"one": module("first"), "two": module("second"), "three": "raise ValueError('no')"})
    registry = load()
    assert only_disabled(registry) == ("pack:three", "import failed: ValueError: no")
    assert {"first", "second"} <= set(registry.names("aggregator"))


def test_a_package_is_known_by_any_spelling_of_its_name(site):
    site("My_Pack.x", {"main": module("spelled")})
    registry = load()
    entry = registry.find("aggregator", "spelled")
    assert entry.distribution == "my-pack-x"
    assert registry.find("aggregator", "My_Pack.x/spelled") is entry


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", set()), ("pack-a", {"a"}), (" Pack_A , pack-b", {"a", "b"}), (None, {"a", "b"})],
)
def test_load_plugins_names_the_packages_beside_the_built_ins(site, monkeypatch, value, expected):
    site("pack-a", {"main": module("a")})
    site("pack-b", {"main": module("b")})
    if value is not None:
        monkeypatch.setenv("HARNESS_LOAD_PLUGINS", value)
    registry = load()
    assert {"a", "b"} & set(registry.names("aggregator")) == expected
    assert registry.find("aggregator", "mean").distribution == "psr-harness"


def test_a_disabled_package_is_named_where_it_is_asked_for(site):
    site("broken", {"main": "raise ValueError('needs a newer driver')"})
    with pytest.raises(PluginError, match=r"broken:main is disabled: import failed: .*needs a newer driver"):
        load().find("aggregator", "broken/mine")


def test_a_package_that_was_left_out_is_named_where_a_plugin_is_not_found(site, monkeypatch):
    """One faulty class takes all plugins of its package with it, whose names nobody knows then."""
    from harness.console import named

    site("many", {"main": module() + "\nraise ValueError('boom')"})
    registry = load()
    monkeypatch.setattr("harness.registry.registry", lambda: registry)
    words = r"\(disabled, so that its plugins are not found: many; see `harness list`\)"
    with pytest.raises(PluginError, match="unknown aggregator 'krumm'; did you mean 'krum'.* " + words):
        registry.find("aggregator", "krumm")
    with pytest.raises(PluginError, match="unknown plugin 'krumm'.* " + words):
        named.find(["krumm"])
    with pytest.raises(PluginError) as other:
        registry.find("aggregator", "psr-harness/krumm")
    assert "disabled" not in str(other.value)


def test_unknown_names_get_the_nearest_one():
    registry = Registry()
    registry.add(plugins_of(named("trimmed-mean"), named("median")), "main", "pack")
    with pytest.raises(PluginError, match=r"^unknown aggregator 'trimed-mean'; did you mean 'trimmed-mean'"):
        registry.find("aggregator", "trimed-mean")
    with pytest.raises(PluginError, match=r"^unknown aggregator 'zzz'; valid: median, trimmed-mean$"):
        registry.find("aggregator", "zzz")
    with pytest.raises(PluginError, match=r"^unknown kind 'agregator'; did you mean 'aggregator'\?$"):
        registry.find("agregator", "median")
    with pytest.raises(
        PluginError, match=r"^unknown defence 'median'; none is available \('median' is an aggregator\)$"
    ):
        registry.find("defence", "median")
    with pytest.raises(PluginError, match=r"has no parameter 'g'; .*'?f'?"):
        registry.create("aggregator", "median", {"g": 1})
    with pytest.raises(
        PluginError, match=r"^unknown defence 'none'; in a parameter that takes a list, \[\] is"
    ):
        registry.find("defence", "none")


def test_families_must_be_chosen():
    class Bare(Attack):
        """An attack of no family."""

        name = "bare"

    registry = Registry()
    registry.add(plugins_of(Bare), "main", "pack")
    assert "'bare' must subclass one of the families, such as EvasionAttack" in only_disabled(registry)[1]


def test_kinds_do_not_share_names():
    class Score(Metric):
        """Nothing."""

        name = "median"

        def score(self, context):
            return {}

    registry = Registry()
    registry.add(plugins_of(named("median"), Score), "main", "pack")
    assert registry.disabled == []
    assert registry.find("metric", "median").plugin is Score
    assert [e.plugin.kind for e in registry.entries("aggregator")] == ["aggregator"]


def test_commands_that_fail_disable_only_themselves():
    class Commands:
        @hookimpl
        def harness_commands(self, cli):
            raise RuntimeError("no commands today")

    registry = Registry()
    registry.add(Commands(), "main", "pack", "3.1")
    registry.add(plugins_of(named("median")), "main", "other")
    registry.add_commands(lambda hook, distribution: hook(None))
    (item,) = registry.disabled
    assert (item.distribution, item.version) == ("pack", "3.1")
    assert item.reason == "its commands are left out: RuntimeError: no commands today"
    assert registry.names("aggregator") == ["median"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("krum", ("krum", {})), ({"krum": None}, ("krum", {})), ({"krum": {"f": 2}}, ("krum", {"f": 2}))],
)
def test_specs(spec, expected):
    assert split_spec("aggregator", spec) == expected


@pytest.mark.parametrize("spec", [3, [], {}, {"a": 1}, {"a": None, "b": None}])
def test_bad_specs(spec):
    with pytest.raises(PluginError, match="aggregator"):
        split_spec("aggregator", spec)


def test_built_ins_load_through_their_entry_point():
    (entry_point,) = (
        e for e in importlib.metadata.entry_points(group="harness") if e.dist and e.dist.name == "psr-harness"
    )
    assert (entry_point.name, entry_point.value) == ("builtin", "harness_plugins")
    registry = load()
    assert [item for item in registry.disabled if item.distribution == "psr-harness"] == []
    for kind in ("dataset", "partitioner", "model", "aggregator", "compressor", "attack", "metric"):
        names = harness.plugins(kind)
        assert names, kind
        for plugin in names.values():
            assert plugin.kind == kind
            assert plugin.__doc__, plugin


HEAVY = (
    "torch", "torchvision", "opacus", "torchattacks", "torch_pruning", "torchao", "sklearn", "scipy", "pandas",
    "skimage", "matplotlib", "PIL", "flwr", "ray", "pyarrow", "jinja2", "sqlite3", "multiprocessing",
    "harness.engine", "harness.scenario", "harness.plan",
)  # fmt: skip


@pytest.mark.parametrize("command", ["--help", "list", "list attack", "run --help", "--version"])
def test_the_first_commands_import_no_heavy_library(command, tmp_path):
    code = (
        "import sys; from harness.cli import main; status = main(sys.argv[1:]);"
        f"print('heavy', status, sorted(set({HEAVY}) & set(sys.modules)))"
    )
    environment = {**os.environ, "HARNESS_LOAD_PLUGINS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "heavy 0 []"


def test_engine_and_built_ins_keep_their_distance():
    engine, built_in = (
        Path(harness.__file__).parent,
        Path(importlib.import_module("harness_plugins").__file__).parent,
    )
    for file in engine.rglob("*.py"):
        assert not {m for m in imports(file) if m.split(".")[0] == "harness_plugins"}, file
    for file in built_in.rglob("*.py"):
        own = {m for m in imports(file) if m.split(".")[0] == "harness"}
        assert own <= {"harness.api", "harness.nn"}, file


def imports(file: Path) -> set[str]:
    """Every module that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def named(plugin_name: str) -> type[Aggregator]:
    class Rule(Aggregator):
        """A rule."""

        name = plugin_name
        f: int = 0

        def aggregate(self, updates, context):
            return updates[0]

    return Rule


def plugins_of(*classes):
    class Package:
        @hookimpl
        def harness_register(self, register):
            for each in classes:
                register(each)

    return Package()


def shadowing(annotations, **attributes):
    """An aggregator with these attributes, made by hand: a class body would not let some of them be written."""
    body = {"__module__": __name__, "__annotations__": annotations, "name": "shadow", **attributes}
    return type("Shadow", (Aggregator,), {"aggregate": lambda self, updates, context: updates[0], **body})


@pytest.mark.filterwarnings("ignore:Field name")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: shadowing({"label": str}, label="x"),
         "the parameter 'label' hides Aggregator.label; rename it"),
        (lambda: shadowing({"create": int}, create=1), "'create' hides Aggregator.create; rename it"),
        (lambda: shadowing({"check": float}, check=1.0), "'check' hides Aggregator.check; rename it"),
        (lambda: shadowing({"data_access": str}, data_access="none"), "'data_access' hides"),
        (lambda: shadowing({"model_dump": int}, model_dump=1), "'model_dump' hides"),
        (lambda: shadowing({"kind": str}, kind="aggregator"),
         "the parameter 'kind' hides Aggregator.kind; as an attribute it has no annotation: `kind = ...`"),
        (lambda: shadowing({"name": str}, name="mine"), "no annotation: `name = ...`"),
        (lambda: shadowing({"label": ClassVar[str]}, label="x"), "'label' must stay a method, not 'x'"),
        (lambda: shadowing({"rate": float}, rate=Field(1.0, alias="speed")),
         "the parameter 'rate' has an alias; a parameter has one name"),
        (lambda: shadowing({"rate": float}, rate=Field(1.0, serialization_alias="label")),
         "the parameter 'rate' has an alias"),
        (lambda: shadowing({"rate": float}, rate=Field(1.0, exclude=True)),
         "the parameter 'rate' is declared with `exclude`, so that scores of two of its values could"),
        (lambda: shadowing({"rate": Annotated[float, Field(exclude=True)]}, rate=1.0),
         "the parameter 'rate' is declared with `exclude`"),
    ],
)  # fmt: skip
def test_a_parameter_that_hides_the_contract_disables_its_package_alone(make, reason):
    registry = Registry()
    registry.add(plugins_of(make()), "main", "pack")
    registry.add(plugins_of(named("median")), "main", "other")
    where, said = only_disabled(registry)
    assert where == "pack:main"
    assert reason in said
    assert registry.names("aggregator") == ["median"]


def test_parameters_and_overrides_that_hide_nothing_are_fine():
    class Fine(Aggregator):
        """A rule with an f of its own, and constants for what is computed elsewhere."""

        name = "fine"
        sum_only = True
        data_access: ClassVar[str] = "none"  # a property of the contract
        f: int = 0

        def aggregate(self, updates, context):
            return updates[0]

    registry = Registry()
    registry.add(plugins_of(Fine), "main", "pack")
    assert registry.disabled == []


@pytest.mark.parametrize(
    ("base", "attributes", "reason"),
    [
        (Aggregator, {"aggregate": lambda self, updates: updates},
         "aggregate(self, updates) must take what it is given: aggregate(self, updates, context)"),
        (Aggregator, {"aggregate": staticmethod(lambda updates: updates)}, "aggregate(updates) must take"),
        (Aggregator, {"aggregate": lambda self, updates, context, more: updates}, "context, more) must take"),
        (Defence, {"update": lambda self, delta: delta}, "update(self, delta) must take what it is given"),
        (Defence, {"protects": lambda self: "record"}, "'protects' is no method: write `@property` above it"),
        (Defence, {"gradeint": lambda self, local: None},
         "implements nothing of Defence, and would change nothing; it has 'gradeint': did you mean 'gradient'"),
    ],
)  # fmt: skip
def test_what_could_only_fail_or_do_nothing_in_a_run_disables_its_package(base, attributes, reason):
    registry = Registry()
    registry.add(
        plugins_of(type("Wrong", (base,), {"name": "wrong", "__module__": __name__, **attributes})), "m", "p"
    )
    assert reason in only_disabled(registry)[1]


@pytest.mark.parametrize(
    ("base", "attribute", "value", "reason"),
    [
        (EvasionAttack, "access", "logit", "Made (EvasionAttack): access = 'logit'; did you mean 'logits'?"),
        (EvasionAttack, "access", "blackbox", "access = 'blackbox'; valid: gradients, labels, logits, none"),
        (EvasionAttack, "norm", "Linf", "norm = 'Linf'; did you mean 'linf'"),
        (ByzantineAttack, "knowledge", "omnicient", "knowledge = 'omnicient'; did you mean 'omniscient'?"),
        (PrivacyAttack, "knowledge", "blackbox", "knowledge = 'blackbox'; did you mean 'black-box'?"),
        (Defence, "protects", "records", "protects = 'records'; did you mean 'record'?"),
        (Defence, "neighbours", "replaced", "neighbours = 'replaced'; did you mean 'replace'?"),
        (Defence, "server_view", "update", "server_view = 'update'; did you mean 'updates'?"),
        (Aggregator, "data_access", "publik", "data_access = 'publik'; did you mean 'public'?"),
        (ModelCompressor, "data_access", ["public"], "data_access = ['public']; did you mean 'public'?"),
    ],
)  # fmt: skip
def test_an_attribute_that_is_none_of_its_contracts_choices_disables_its_package(
    base, attribute, value, reason
):
    methods = dict.fromkeys(base.__abstractmethods__, lambda *given: None)
    body = {"__module__": __name__, "gradient": lambda self, local: None, **methods}
    registry = Registry()
    for name, said in (("right", getattr(base, attribute)), ("wrong", value)):
        declared = {"__annotations__": {attribute: ClassVar[str]}, attribute: said, "name": name}
        registry.add(plugins_of(type("Made", (base,), {**body, **declared})), "main", name)
    where, why = only_disabled(registry)
    assert where == "wrong:main"
    assert reason in why


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Score("hihger"), "Score: direction = 'hihger'; did you mean 'higher'?"),
        (lambda: Observation(at="begin"), "Observation: at = 'begin'; valid: end, start"),
        (lambda: Observation(batch_norm="evaluate"), "batch_norm = 'evaluate'; did you mean 'eval'?"),
        (lambda: Canaries(3, unit="clients"), "unit = 'clients'; did you mean 'client'?"),
        (lambda: Sampling("poison", 0.5), "Sampling: method = 'poison'; did you mean 'poisson'?"),
        (lambda: type("Odd", (Metric,), {"__module__": __name__, "needs": ("logit",)}),
         "Odd: needs = 'logit'; did you mean 'logits'"),
    ],
)  # fmt: skip
def test_what_a_plugin_says_in_values_of_the_contracts_is_held_to_their_choices(make, reason):
    with pytest.raises(PluginError, match=re.escape(reason)):
        make()


@pytest.mark.parametrize(
    "aggregate",
    [
        lambda self, rows, given: rows[0],
        lambda self, *given: given[0][0],
        lambda self, updates, context, more=1: updates[0],
        staticmethod(lambda updates, context: updates[0]),
    ],
)
def test_a_method_may_name_what_it_takes_and_take_more(aggregate):
    registry = Registry()
    registry.add(plugins_of(type("Fine", (Aggregator,), {"name": "fine", "aggregate": aggregate})), "m", "p")
    assert registry.disabled == []


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ("'>=99.0'", "it requires harness.api >=99.0; this is version 1.0: upgrade psr-harness"),
        ("'<1.0'", "it requires harness.api <1.0; this is version 1.0"),
        ("'newest'", "requires_api must be text such as '>=1.0', not 'newest'"),
        ("3", "requires_api must be text such as '>=1.0', not 3"),
    ],
)
def test_a_package_for_another_interface_says_so_instead_of_how_its_import_fails(site, declared, reason):
    site("newer", {"main": f"from harness.api import NotYetThere\nrequires_api = {declared}\n" + module()})
    where, said = only_disabled(load())
    assert where == "newer:main"
    assert reason in said
    assert "import failed" not in said


@pytest.mark.parametrize("line", ["requires_api = '>=1.0'", "requires_api: str = '>=1, <2'", ""])
def test_a_package_for_this_interface_is_loaded(site, line):
    site("fitting", {"main": line + "\n" + module("fitting")})
    registry = load()
    assert registry.disabled == []
    assert "fitting" in registry.names("aggregator")


def test_the_version_needed_is_found_in_a_module_below_a_package(tmp_path, monkeypatch):
    from harness.plugin_checks import declared_api

    (tmp_path / "outer_pack").mkdir()
    (tmp_path / "outer_pack" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (tmp_path / "outer_pack" / "plugins.py").write_text("import torch\nrequires_api = '>=3'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert declared_api("outer_pack.plugins") == ">=3"
    assert declared_api("outer_pack") is None
    assert declared_api("outer_pack.absent") is None
    assert declared_api("no_such_package.x") is None
    assert "outer_pack" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (None, "empty"),
        (["digits"], "a list"),
        ({}, "an empty mapping"),
        ({"digits": {}, "npz": {}}, r"a mapping of 2 keys \(digits, npz\)"),
        (3, "3"),
    ],
)
def test_what_is_no_plugin_is_named_in_words(spec, found):
    with pytest.raises(PluginError, match=rf"^an attack is `name` or .*, not {found}$"):
        split_spec("attack", spec)


class _Low(Aggregator):
    """A mean whose default its own bound excludes."""

    name = "low"
    f: int = Field(-1, ge=0, description="unused")
    g: int = Field(1, ge=0, description="unused")

    def aggregate(self, updates, context):
        return updates.mean(0)


class _Old(Aggregator):
    """A mean that is written as a class of its own would be."""

    name = "old"

    def __init__(self, trim=3):
        self.trim = trim

    def aggregate(self, updates, context):
        return updates.mean(0)


class _Remembering(Aggregator):
    """A mean that keeps what it saw."""

    name = "remembering"

    def aggregate(self, updates, context):
        self.last = updates.mean(0)
        return self.last


def test_a_default_that_the_class_itself_excludes_is_the_fault_of_the_class():
    excluded = (
        r"^aggregator low: its own default is not allowed: f must be at least 0, not -1\. .* class _Low$"
    )
    with pytest.raises(PluginError, match=excluded):
        _Low.create()
    with pytest.raises(PluginError, match=excluded):
        _Low.create({"g": -1})  # the class is wrong whatever is given
    with pytest.raises(PluginError, match=r"^aggregator low: f must be at least 0, not -2$"):
        _Low.create({"f": -2})
    assert _Low.create({"f": 0}).f == 0


class _Chosen(Aggregator):
    """A mean whose parameter is a function."""

    name = "chosen"
    by: Any = Field(len, description="how to choose")

    def aggregate(self, updates, context):
        return updates.mean(0)


def test_a_parameter_that_no_scenario_can_hold_is_named():
    with pytest.raises(
        PluginError, match=r"^aggregator chosen: the parameter 'by' is <built-in function len>, which"
    ):
        _Chosen.create()
    assert _Chosen.create({"by": 2}).by == 2


class _Unbounded(Aggregator):
    """A mean with a threshold that may be infinite, and one that may not."""

    name = "unbounded"
    tau: float = Field(math.inf, allow_inf_nan=True)
    nu: float = 0.1

    def aggregate(self, updates, context):
        return updates.mean(0)


def test_infinity_is_refused_unless_a_parameter_is_declared_to_take_it():
    assert _Unbounded.create({"tau": math.inf}).tau == math.inf
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(PluginError, match=r"nu must be a finite number such as 0\.5"):
            _Unbounded.create({"nu": value})


def test_a_plugin_that_sets_an_attribute_of_its_own_is_told_where_the_value_belongs():
    import torch

    parameter = (
        r"^_Old sets its attribute 'trim', .* field of the class, `trim: int = Field\(.* without an __init__"
    )
    with pytest.raises(PluginError, match=parameter):
        _Old.create({"trim": 2})
    with pytest.raises(
        PluginError, match=r"_Remembering sets its attribute 'last', .* `state` of the context"
    ):
        _Remembering()(torch.ones(3, 2))
