"""The guide for plugin authors: its commands run as they stand, and print what it shows."""

from __future__ import annotations

import re

import pytest
from fresh_environment import ROOT
from guide import Step, agrees, blocks, follow, fresh, steps

GUIDE = ROOT / "docs" / "plugins.md"


@pytest.mark.slow
def test_the_guide_runs_as_it_stands(tmp_path):
    text = GUIDE.read_text(encoding="utf-8")
    (tmp_path / "work").mkdir()
    printed = follow(text, tmp_path / "work", fresh(tmp_path))
    for (_, kind, shown), (_, _, found) in zip(blocks(text), blocks(printed), strict=True):
        if kind == "console":
            for there, here in zip(steps(kind, shown), steps(kind, found), strict=True):
                assert agrees(there.shown, here.shown), f"$ {here.command}\n{here.shown}"


def test_it_knows_every_kind():
    from harness.plugin_kit.scaffold import KINDS

    text = GUIDE.read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:\$ )?harness plugin new ([a-z-]+) ", text, flags=re.MULTILINE)) == set(KINDS)


def test_how_a_block_is_read():
    assert steps("console", "$ a\n1\n2\n$ b\n") == [Step("a", "1\n2\n"), Step("b", "")]
    assert steps("sh", "# note\na\nb\n") == [Step("a", None), Step("b", None)]
    assert agrees("mean  9.2  none\n──\n", "mean   10  none\n────\n")
    assert agrees("first\n...\nlast\n", "first\nx\ny\nlast\n")
    assert not agrees("first\nlast\n", "first\nx\nlast\n")
    assert not agrees("mean 9.2 none\n", "median 9.2 none\n")
    assert not agrees("a\n...\n", "b\n")
