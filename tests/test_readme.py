"""The documentation names what there is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import typer

from harness import cli
from harness.api import __all__ as api

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_command_is_in_the_readme_and_no_other():
    documented = {
        match.group(1) for match in re.finditer(r"^\| `harness ([a-z-]+)", README, flags=re.MULTILINE)
    }
    assert documented == set(typer.main.get_group(cli.app).commands)


DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]


@pytest.mark.parametrize("file", DOCUMENTS)
def test_relative_links_lead_somewhere(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        target, _, anchor = link.partition("#")
        path = (ROOT / file).parent / target if target else ROOT / file
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
            assert anchor in {heading.replace(" ", "-") for heading in plain}, link
    assert links or file != "README.md"


def test_scenarios_named_in_the_readme_exist():
    for name in set(re.findall(r"scenarios/[\w-]+\.yaml", README)):
        assert (ROOT / name).is_file(), name


def test_the_quick_start_is_two_whole_commands():
    section = README.split("## Quick start")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    assert [block.count("\n") for block in blocks] == [1, 1]
    assert all(block.startswith("python3 -m venv .venv && .venv/bin/pip install") for block in blocks)


def test_the_readme_scenario_is_valid():
    from harness.scenario import load_text

    text, threats, inference, privacy, flower = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    scenario = load_text(text)
    assert len(scenario.defences) == 5  # none, three of the sweep, the stack
    assert scenario.threats[1].budget.eps == 8 / 255
    head = "schema: 1\nname: t\ndataset: digits\nmodel: {mlp: {hidden: [8]}}\nfederation: {rounds: 20}\n"
    assert load_text(head + threats).threats[0].stop_round == 20
    assert [t.budget.eps * 255 for t in load_text(head + inference).threats] == pytest.approx([0, 1, 2, 4])
    head = "schema: 1\nname: t\ndataset: digits\nmodel: {mlp: {hidden: [8]}}\n"
    assert [t.knowledge for t in load_text(head + privacy).threats] == ["black-box", "server", "server"]
    if importlib.util.find_spec("flwr") is not None:
        found = load_text(head + flower)
        assert found.engine == "flower"
        assert [chain[-1].name for chain in found.aggregators] == ["mean", "flower"]


def test_the_readme_lists_the_catalogue():
    import harness
    from harness.api import ByzantineAttack, EvasionAttack, PoisoningAttack, PrivacyAttack

    def built_in(kind, chosen):
        plugins = harness.plugins(kind).items()
        return {name for name, p in plugins if p.__module__.startswith("harness_plugins") and chosen(p)}

    rows = dict(re.findall(r"^\| ([a-z -]+) \| ([a-z0-9, -]+) \|$", README, flags=re.MULTILINE))
    told = {row: set(names.split(", ")) for row, names in rows.items()}
    assert told["rules"] == built_in("aggregator", lambda p: not p.pre)
    assert told["pre-aggregators"] == built_in("aggregator", lambda p: p.pre)
    assert told["crafted updates"] == built_in("attack", lambda p: issubclass(p, ByzantineAttack))
    assert told["evasion"] == built_in("attack", lambda p: issubclass(p, EvasionAttack))
    private = built_in("defence", lambda p: p.protects or p.server_view == "sum")
    assert told["private training"] == private
    assert told["defences"] == built_in("defence", lambda p: True) - private
    assert told["privacy attacks"] == built_in("attack", lambda p: issubclass(p, PrivacyAttack))
    assert told["compressors of the model"] == built_in("compressor", lambda p: p.acts_on == "model")
    assert told["compressors of the update"] == built_in("compressor", lambda p: p.acts_on == "update")
    assert told["poisoned data"] == built_in("attack", lambda p: issubclass(p, PoisoningAttack))


def test_the_readme_plugin_works():
    import torch

    from harness.registry import Registry

    (source,) = re.findall(r"```python\n(from harness\.api.*?)```", README, flags=re.DOTALL)
    module: dict[str, object] = {"__name__": "readme"}
    exec(compile(source, "README.md", "exec"), module)
    registry = Registry()
    registry.add(
        type("Module", (), {"harness_register": staticmethod(module["harness_register"])}),
        "main",
        "my-package",
    )
    assert registry.disabled == []
    rule = registry.create("aggregator", "my-package/geometric-mean")
    found = rule(torch.tensor([[1.0, -4.0], [4.0, -1.0]]))
    torch.testing.assert_close(found, torch.tensor([2.0, -2.0]))


def test_classes_named_in_the_guide_are_in_the_api():
    table = CONTRIBUTING.split("## Add a method")[1].split("## Tests")[0]
    classes = re.findall(r"^\| [a-z -]+ \| `(\w+)`", table, flags=re.MULTILINE)
    assert len(classes) == 14
    assert set(classes) <= set(api)
