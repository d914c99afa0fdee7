"""The interface that plugins are written against: what is in it, and how names leave it."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import harness
from harness import api
from harness.errors import HarnessError, PluginError
from harness.plugin_kit import reference

ROOT = Path(__file__).parent.parent


def test_every_name_is_there_once_and_at_run_time():
    assert sorted(set(api.__all__)) == sorted(api.__all__)
    for name in api.__all__:
        assert getattr(api, name) is not None


def test_names_of_annotations_resolve():
    import inspect
    import typing

    import torch

    class Mine(api.Defence):
        """A defence."""

        name = "mine"

        def loss(self, loss: api.LossFn, logits: api.LogitsFn) -> api.LossFn:
            return loss

    found = typing.get_type_hints(Mine.loss, localns={"Tensor": torch.Tensor, **vars(api)})
    assert found["return"] == found["loss"]
    assert inspect.signature(Mine.loss).parameters.keys() == {"self", "loss", "logits"}


def test_a_deprecated_name_works_and_says_what_to_use(monkeypatch):
    monkeypatch.setitem(api.DEPRECATED, "median_gradient", ("harness.api:mean_gradient", "1.1"))
    with pytest.warns(DeprecationWarning, match="median_gradient") as caught:
        from harness.api import median_gradient
    assert median_gradient is api.mean_gradient
    (warning,) = caught
    assert str(warning.message) == (
        "harness.api.median_gradient is deprecated since version 1.1 of harness.api: use harness.api.mean_gradient"
    )
    assert warning.filename == __file__  # it is this line that has to change


def test_names_that_never_were_are_an_error():
    with pytest.raises(ImportError, match="cannot import name 'median_gradient'"):
        from harness.api import median_gradient  # noqa: F401
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert api.mean_gradient


def test_deprecated_names_lead_somewhere_and_have_left_the_list():
    for name in api.DEPRECATED:
        assert name not in api.__all__
        with pytest.warns(DeprecationWarning, match=f"harness.api.{name} is deprecated since"):
            assert getattr(api, name) is not None


def test_the_reference_is_up_to_date():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == reference.reference(), (
        "docs/reference.md is out of date: run `python -m harness.plugin_kit.reference > docs/reference.md`"
    )
    assert set(re.findall(r"^### (harness_\w+)\(", page, flags=re.MULTILINE)) == {
        "harness_register", "harness_commands", "harness_run_started", "harness_run_finished",
        "harness_cell_started", "harness_cell_finished", "harness_round_finished",
    }  # fmt: skip
    listed = set(re.findall(r"^#### (\w+)$|^\| `(\w+)[(`].* \|$", page, flags=re.MULTILINE))
    assert set(api.__all__) <= {name for pair in listed for name in pair}
    assert "`harness plugin new KIND NAME`" in page
    assert "`harness leaderboard verify FILE...`" in page


def test_what_is_undocumented_is_refused(monkeypatch):
    monkeypatch.setattr(api, "__all__", [*api.__all__, "Nameless"])
    monkeypatch.setattr(api, "Nameless", type("Nameless", (), {}), raising=False)
    with pytest.raises(LookupError, match="Nameless has no documentation"):
        reference.reference()
    monkeypatch.setattr(api, "Nameless", 3)
    with pytest.raises(LookupError, match="without documentation: Nameless"):
        reference.reference()
    monkeypatch.undo()
    monkeypatch.setattr("harness.hookspecs.harness_silent", lambda x: None, raising=False)
    with pytest.raises(LookupError, match="harness_silent has no documentation"):
        reference.reference()


def test_the_interface_is_cheap_to_import():
    code = (
        "import sys, harness.api; print(sorted({'torch', 'pandas', 'sklearn', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("given", [{"schema": 1}, [{"schema": 1}], [3]])
def test_run_says_what_a_scenario_is(given, tmp_path):
    with pytest.raises(
        HarnessError, match=r"a scenario is a path, or what harness\.scenario\.load returned, not a"
    ):
        harness.run(given, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_calls_outside_a_federation_say_what_they_take():
    for rule in ("krum", "nnm"):
        with pytest.raises(PluginError, match="updates must be a torch tensor"):
            harness.create("aggregator", rule, f=0)([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(PluginError, match="honest must be a torch tensor"):
        harness.create("attack", "alie")(np.ones((4, 2)))
    with pytest.raises(PluginError, match="it is a sort of aggregator: say 'aggregator'"):
        harness.create("pre-aggregator", "nnm")
