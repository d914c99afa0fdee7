"""What decides a plugin's behaviour: nested plugins, data sets and libraries."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, SecretStr
from small import write_images

from harness import identity
from harness.api import Aggregator, Dataset, Field, Split, Splits, find_file, hash_file, hookimpl
from harness.engine import plan
from harness.errors import PluginError, ScenarioError
from harness.identity import canonical, identity_of, libraries_of
from harness.nesting import plugins_in, with_nested
from harness.provenance import plugin_list
from harness.registry import registry
from harness.scenario import load_text

DIGITS = """schema: 1
name: small
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 4, rounds: 1, local: {epochs: 1, batch_size: 64}}
"""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True)
    rule: Aggregator


@dataclass(frozen=True)
class Pair:
    first: Aggregator


class Holder(Aggregator):
    """Holds rules in every way."""

    name = "identity-holder"
    one: Aggregator | None = Field(None, description="a rule")
    deep: tuple[tuple[Aggregator, ...], ...] = Field((), strict=False, description="tuples of rules")
    named: dict[str, Aggregator] = Field({}, description="rules by name")
    settings: Settings | None = Field(None, description="a model that holds a rule")
    pair: Pair | None = Field(None, description="a dataclass that holds a rule")

    def aggregate(self, updates, context):
        return updates.mean(0)


class Scaled(Dataset):
    """A file of images; `shift` is no part of its fingerprint."""

    name = "identity-scaled"
    path: str = Field(description="the file")
    shift: int = Field(0, ge=0, description="added to the labels")

    def load(self, root=None):
        arrays = np.load(find_file(self.path, root))
        images, labels = arrays["images"], (arrays["labels"] + self.shift) % 3
        parts = [Split(images[a:b], labels[a:b]) for a, b in ((0, 40), (40, 50), (50, 60))]
        return Splits(*parts, ("a", "b", "c"))

    def fingerprint(self, root=None):
        return hash_file(find_file(self.path, root))


@hookimpl
def harness_register(register):
    register(Holder)
    register(Scaled)
    register(Silent)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    if "identity-holder" not in registry().names("aggregator"):
        registry().add(sys.modules[__name__], "identity", "identity-tests")
    assert not [d for d in registry().disabled if d.distribution == "identity-tests"]


def rule(f: int):
    return registry().create("aggregator", "krum", {"f": f})


HELD = {
    "a field": lambda r: Holder(one=r),
    "nested tuples": lambda r: Holder(deep=((), (r,))),
    "a dict": lambda r: Holder(named={"x": r}),
    "a model": lambda r: Holder(settings=Settings(rule=r)),
    "a dataclass": lambda r: Holder(pair=Pair(r)),
    "within a held plugin": lambda r: Holder(deep=((Holder(one=r),),)),
}


@pytest.mark.parametrize("how", HELD)
def test_nested_plugins_are_found_at_any_depth(how):
    holder = HELD[how](rule(1))
    assert [p.name for p in with_nested(holder)][-1] == "krum"
    assert canonical(registry().entry_of(rule(1)).source_hash) in canonical(identity_of(holder))
    assert identity_of(holder) == identity_of(HELD[how](rule(1)))
    assert identity_of(holder) != identity_of(HELD[how](rule(2)))
    assert ("aggregator", "krum") in {(item["kind"], item["name"]) for item in plugin_list([holder])}


def test_what_holds_none_holds_none():
    assert list(plugins_in({"a": [1, ("b",)], "c": None})) == []
    assert Holder().parameters() == identity_of(Holder())["parameters"]


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True)
    shown: int = 0


class Excluding(Inner):
    scale: float = Field(1.0, exclude=True)


class More(Inner):
    scale: float = 1.0


class Silent(Aggregator):
    """Holds what JSON does not say."""

    name = "identity-silent"
    inner: Inner = Field(Inner(), description="whose subclasses may have more")
    many: tuple[Excluding, ...] = Field((), strict=False, description="with a field that is left out")
    secret: SecretStr | None = Field(None, description="written as stars")

    def aggregate(self, updates, context):
        return updates.mean(0)


UNSAID = {
    "inner.scale": lambda: Silent(inner=More(scale=2.0)),
    "many[0].scale": lambda: Silent(many=(Excluding(), Excluding(scale=2.0))),
    "secret": lambda: Silent(secret=SecretStr("a")),
}


@pytest.mark.parametrize("where", UNSAID)
def test_parameters_that_are_not_written_in_full_have_no_key(where):
    identity_of(Silent(inner=Inner(shown=1)))
    with pytest.raises(PluginError, match=re.escape(f"'identity-silent': {where} is left out where")):
        identity_of(UNSAID[where]())


# data -----------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> Path:
    return write_images(tmp_path / "edge.npz")


def stages(text: str, folder: Path, name: str = "small.yaml") -> dict[str, str]:
    found = plan(load_text(text, folder / name), device="cpu", jobs=1, store=folder / "none").to_dict()
    return found["scenarios"][0]["cells"][0]["stages"]


def edge_case(path: str) -> str:
    attack = f"edge-case: {{images: {{npz: {{path: {path}}}}}, source: 1, target: 0}}"
    return DIGITS + f"threats: [{{name: b, malicious: 0.25, attacks: [{attack}]}}]\n"


def test_the_content_of_a_nested_data_set_is_in_the_keys_and_its_place_is_not(images, tmp_path):
    before = stages(edge_case("edge.npz"), tmp_path)
    (tmp_path / "else").mkdir()
    shutil.copy(images, tmp_path / "else" / "copy.npz")
    assert stages(edge_case("else/copy.npz"), tmp_path) == before
    assert stages(edge_case(str(images)), tmp_path / "else") == before
    changed = dict(np.load(images))
    changed["train_images"] = 255 - changed["train_images"]
    np.savez(images, **changed)
    after = stages(edge_case("edge.npz"), tmp_path)
    assert {role for role in before if before[role] == after[role]} == set()


def test_a_nested_data_set_that_is_missing_is_told_before_a_run(tmp_path):
    import harness

    text = edge_case("no-such.npz").replace("threats: [", "threats: [{name: none}, ")
    with pytest.raises(ScenarioError, match=r"no-such\.npz is not there"):
        harness.run(load_text(text, tmp_path / "s.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")


def test_records_name_the_content_of_nested_data_sets(images, tmp_path):
    import harness

    text = edge_case("edge.npz").replace("threats: [", "threats: [{name: none}, ")
    run = harness.run(load_text(text, tmp_path / "s.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    plain, poisoned = (record["provenance"]["nested_datasets"] for record in run.records)
    assert plain == []
    mark = registry().create("dataset", "npz", {"path": str(images)}).fingerprint()
    assert poisoned == [{"name": "npz", "distribution": "psr-harness", "fingerprint": mark}]


@pytest.fixture
def scaled(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 1, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(60) % 3)
    return tmp_path / "mine.npz"


def test_a_training_is_told_by_the_code_and_parameters_of_its_data_set_but_not_by_its_path(
    scaled, tmp_path, monkeypatch
):
    def key(dataset: str) -> str:
        return stages(DIGITS.replace("digits", f"{{identity-scaled: {dataset}}}"), tmp_path)["train"]

    first = key("{path: mine.npz}")
    shutil.copy(scaled, tmp_path / "moved.npz")
    assert key("{path: moved.npz}") == first
    assert key("{path: mine.npz, shift: 1}") != first
    entry = type(registry().entry_of(Scaled(path="x")))
    real = entry.source_hash.fget
    edited = property(lambda self: "ab" * 32 if self.plugin is Scaled else real(self))
    monkeypatch.setattr(entry, "source_hash", edited)
    assert key("{path: mine.npz}") != first


# libraries ------------------------------------------------------------------------------------------


def with_versions(monkeypatch, **changed: str) -> None:
    real = identity.library_version.__wrapped__
    monkeypatch.setattr(
        identity, "library_version", lambda name: changed.get(name.replace("-", "_"), real(name))
    )


def test_a_library_is_in_the_keys_of_the_stages_that_need_it_alone(tmp_path, monkeypatch):
    text = DIGITS + "compressors: [dynamic-int8]\n"
    plain, quantised = stages(DIGITS, tmp_path), stages(text, tmp_path)
    with_versions(monkeypatch, torchao="0.0.1")
    assert stages(DIGITS, tmp_path) == plain
    after = stages(text, tmp_path)
    assert after["train"] == quantised["train"]
    assert after["compress"] != quantised["compress"]


@pytest.mark.parametrize(
    "library", ["torch", "torchvision", "numpy", "scipy", "scikit_learn", "pillow", "opacus", "torchattacks"]
)
def test_general_libraries_are_in_every_key(library, tmp_path, monkeypatch):
    before = stages(DIGITS, tmp_path)
    with_versions(monkeypatch, **{library: "0.0.1"})
    assert before.items().isdisjoint(stages(DIGITS, tmp_path).items())


def test_libraries_follow_from_what_plugins_require():
    create = registry().create
    assert "torchattacks" in libraries_of(create("attack", "one-pixel"))
    assert "torch-pruning" in libraries_of(create("compressor", "structured-pruning"))
    assert set(libraries_of(create("aggregator", "signguard"))) == {"scikit-learn"}
    plain = {"epsilon": 8.0, "max_grad_norm": 1.0}
    assert set(libraries_of(create("defence", "dp-sgd", plain))) == {"opacus"}
    asked = create("defence", "dp-sgd", {**plain, "accountant": "pld"})
    assert set(libraries_of(asked)) == {"opacus", "dp-accounting"}
