"""`harness explain` and `harness audit`, as people call them."""

import io
import json
import math

import pytest
from rich.console import Console

from harness.cli import main
from harness.comparable import comparable_record
from harness.console.audits import render_audits
from harness.console.chain import find_record, render_chain
from harness.errors import HarnessError
from harness.store import Store

TEXT = """schema: 1
name: small
dataset: digits
model: logistic
federation: {clients: 4, rounds: 3, local: {batch_size: 64, optimizer: {sgd: {lr: 0.1}}}}
defences: [none, dp-sgd: {epsilon: 2}]
compressors: [none, static-int8, qsgd]
threats: [{name: none}]
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("privacy")
    path, store = folder / "small.yaml", folder / "runs"
    path.write_text(TEXT)
    assert main(["run", str(path), "--store", str(store), "--jobs", "0", "-q", "--device", "cpu"]) == 0
    return path, store


def test_explain_prints_the_chain(ran, capsys):
    _, store = ran
    with Store(store) as opened:
        records = opened.records("small")
    broken = next(r for r in records if r["guarantee"] and not r["guarantee"]["holds"])
    kept = next(r for r in records if r["guarantee"] and r["guarantee"]["holds"])
    capsys.readouterr()
    assert main(["explain", broken["id"][:8], "--store", str(store)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "breaks" in shown
    assert "guaranteed: nothing, broken by: static-int8 reads the validation split" in shown
    assert "if the validation records are the server's own" in shown
    assert "declare `unprotected: [val]`" in shown
    assert f"without what breaks it: epsilon {broken['guarantee']['epsilon']:.4g}" in shown
    assert main(["explain", kept["id"], "--store", str(store)]) == 0
    shown = capsys.readouterr().out
    assert "creates" in shown
    assert "breaks" not in shown
    assert "unprotected" not in shown
    assert f"guaranteed: epsilon {kept['guarantee']['epsilon']:.4g}" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert main(["explain", kept["id"], "--store", str(store), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["lineage"][0]["stage"] == "data"
    assert page["guarantee"]["holds"]


@pytest.mark.parametrize("holds", [True, False])
def test_explain_tells_what_a_whole_patient_is_left_with_broken_or_not(ran, holds):
    _, store = ran
    with Store(store) as opened:
        record = next(
            r for r in opened.records("small") if r["guarantee"] and r["guarantee"]["holds"] is holds
        )
    for epsilon, said in ((103410.2, "epsilon 103410"), (math.inf, "no finite epsilon")):
        record["guarantee"] |= {"group_epsilon": epsilon, "largest_group": 18}
        console = Console(file=io.StringIO(), width=200)
        render_chain(record, console)
        line = f"for the largest group, 18 records (such as the patient with most images): {said}"
        assert line in console.file.getvalue()
    record["guarantee"]["broken_by"] = ["top-k lets one client's update change what others send"]
    console = Console(file=io.StringIO(), width=200)
    render_chain(record, console)
    assert "unprotected: [val]" not in console.file.getvalue()  # it would not help


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({"malicious": [2], "capability": "data"}, ", who run the defences on records that they change"),
        ({"malicious": [2], "capability": "training"}, ", who control their training and run no defence"),
        ({"malicious": [2]}, ""),
        ({"family": "evasion"}, None),
        (None, None),
    ],
)
def test_explain_says_that_no_guarantee_is_for_malicious_clients(attack, said, ran):
    with Store(ran[1]) as opened:
        kept = next(r for r in opened.records("small") if r["guarantee"] and r["guarantee"]["holds"])
    for guarantee in (kept["guarantee"], None):
        console = Console(file=io.StringIO(), width=200)
        render_chain({**kept, "attack": attack, "guarantee": guarantee}, console)
        last = console.file.getvalue().splitlines()[-1]
        if said is None or guarantee is None:
            assert last.startswith("guaranteed: ")
        else:
            assert last == f"not for the malicious clients{said}"


def test_explain_says_which_cells_there_are(ran, capsys, tmp_path):
    _, store = ran
    assert main(["explain", "zzzz", "--store", str(store)]) == 2
    err = capsys.readouterr().err
    assert "CELL 'zzzz': this store has no such cell" in err
    assert err.count("defence=") == 6 + 1, "each cell, after an example"
    assert main(["explain", "abc", "--store", str(tmp_path / "nothing")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def stored(count):
    return [
        {
            "id": f"ab{i:010}",
            "scenario": {"name": "x"},
            "cell": {"defence": f"d{i % 2}", "threat": "none", "seed": i},
        }
        for i in range(count)
    ]


def test_a_cell_is_found_by_the_values_of_its_axes():
    assert find_record(stored(12), "seed=7")["id"] == "ab0000000007"
    assert find_record(stored(2), "defence=*1,threat=none")["id"] == "ab0000000001"


@pytest.mark.parametrize(
    ("cell", "first", "listed"),
    [
        ("ab", "CELL 'ab': 12 cells of this store match:", "ab0000000000  defence=d0, seed=0"),
        ("", "CELL '': 12 cells of this store", "ab0000000000  defence=d0, seed=0"),
        ("defence=d1", "CELL 'defence=d1': 6 cells of this store", "ab0000000001  seed=1"),
        ("ab000000001x", "this store has no such cell; give", "ab0000000010  defence=d0, seed=10"),
        ("d1", "this store has no such cell; give", "ab0000000001  defence=d1, seed=1"),
        ("defence=d2", "CELL defence=d2 matches no cell; valid: d0, d1", None),
    ],
)
def test_cells_that_may_be_meant_are_listed_with_their_ids_the_nearest_first(cell, first, listed):
    with pytest.raises(HarnessError) as error:
        find_record(stored(12), cell)
    said, *lines = str(error.value).splitlines()
    assert first in said
    assert [line.strip() for line in lines[:1]] == [listed] * (listed is not None)
    assert len(lines) <= 11


def test_audit_names_claims_beside_bounds(ran, capsys):
    path, store = ran
    capsys.readouterr()
    assert main(["audit", str(path), "--store", str(store), "--jobs", "0", "-q", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "small-audit" in shown
    assert "claims nothing" in shown
    assert "consistent*" in shown
    assert (
        "* per-record gradients: ghost clipping in the scored training, one by one (vmap) in the audited one; "
        "the audit says nothing about ghost clipping"
    ) in " ".join(shown.split())
    assert "static-int8" not in shown  # it comes after the training that is audited
    assert shown.count("qsgd") == 2
    with Store(store) as opened:
        audited = opened.records("small-audit")
        assert len(opened.records("small")) == 6  # the scenario's own records stay as they are
    assert len(audited) == 4
    for record in audited:
        bound = record["scores"]["epsilon_audited"]
        assert bound == record["attack"]["audit"]["epsilon"]
        assert record["units"]["epsilon_audited"]["direction"] == "lower"
        if record["guarantee"] is None:
            assert bound > 1
            assert "execution" not in record["attack"]["audit"]
        else:
            way = {"scored": ["ghost clipping"], "audited": ["one by one (vmap)"]}
            assert record["attack"]["audit"]["execution"] == {"ways": {"per-record gradients": way}}
            assert comparable_record(record)["attack"]["audit"]["execution"] == {}
            assert record["attack"]["audit"]["guarantee"]["epsilon"] <= 2


def test_trainings_of_one_program_tell_their_own_ways(tmp_path, capsys):
    """The audited training trains beside the scored one, and its per-record gradients are not the scored one's."""
    path = tmp_path / "small.yaml"
    text = TEXT.replace("[none, dp-sgd: {epsilon: 2}]", "[dp-sgd: {epsilon: 2}]")
    text = text.replace("[none, static-int8, qsgd]", "[none]").replace("rounds: 3", "rounds: 1")
    path.write_text(text + "compute: {clients: vectorised, trainings: 4}\n")
    assert main(["audit", str(path), "--store", str(tmp_path / "runs"), "--jobs", "0", "-q"]) == 0
    assert "the audit says nothing about ghost clipping" in " ".join(capsys.readouterr().out.split())
    with Store(tmp_path / "runs") as opened:
        (record,) = opened.records("small-audit")
    assert record["training"]["execution"]["trainings"] == 2
    way = {"scored": ["ghost clipping"], "audited": ["one by one (vmap)"]}
    assert record["attack"]["audit"]["execution"]["ways"] == {"per-record gradients": way}


def test_an_audit_of_the_code_that_is_scored_needs_no_note(tmp_path, capsys):
    path = tmp_path / "same.yaml"
    text = TEXT.replace("[none, dp-sgd: {epsilon: 2}]", "[dp-sgd: {epsilon: 2, per_sample: vmap}]")
    path.write_text(text.replace("[none, static-int8, qsgd]", "[none]"))
    assert main(["audit", str(path), "--store", str(tmp_path / "runs"), "--jobs", "0", "-q"]) == 0
    shown = capsys.readouterr().out
    assert "consistent" in shown
    assert "*" not in shown
    with Store(tmp_path / "runs") as opened:
        (record,) = opened.records("small-audit")
    way = ["one by one (vmap)"]
    ways = record["attack"]["audit"]["execution"]["ways"]
    assert ways == {"per-record gradients": {"scored": way, "audited": way}}
    assert record["training"]["execution"]["ways"] == {"per-record gradients": way}


def test_audit_refuses_what_is_no_audit(ran, capsys):
    path, store = ran
    assert main(["audit", str(path), "--attack", "pgd", "--store", str(store)]) == 2
    assert "an audit is an attack of the privacy family" in capsys.readouterr().err
    assert main(["audit", str(path), "--attack", "loss-threshold", "--store", str(store), "--jobs", "0"]) == 2
    assert "loss-threshold does not audit" in capsys.readouterr().err


def test_a_refuted_guarantee_is_said_aloud(capsys, ran):
    from harness.console.output import make_console
    from harness.console.pooling import pool
    from harness.console.tables import render_leaderboard

    path, store = ran
    assert main(["audit", str(path), "--store", str(store), "--jobs", "0", "-q", "--device", "cpu"]) == 0
    capsys.readouterr()
    with Store(store) as opened:
        record = next(r for r in opened.records("small-audit") if r["guarantee"])
    record["attack"]["audit"]["epsilon"] = record["scores"]["epsilon_audited"] = 3.5
    record["flags"] = ["audit-violation"]
    console = make_console()
    assert render_audits([record], console) == 1
    assert "refuted: suspect a bug in the defence" in " ".join(capsys.readouterr().out.split())
    render_leaderboard([record], console)
    shown = capsys.readouterr().out
    assert "3.50!" in shown
    assert "!: an audit refutes the guarantee" in shown
    assert pool([record])[0].values["audited"].violated


def audited(unit="record", **cell):
    """A record of an audit whose guarantee is neither refuted nor broken."""
    guarantee = {"epsilon": 8.0, "holds": True, "unit": unit}
    found = {
        "guarantee": guarantee,
        "epsilon": 1.5,
        "facts": {"correct": 9, "guesses": 10},
        "confidence": 0.95,
    }
    axes = {"defence": "none", "aggregator": "mean", "compressor": "none", "seed": 0}
    return {"status": "scored", "flags": [], "cell": axes | cell, "attack": {"audit": found}}


@pytest.mark.parametrize("width", [40, 50, 80, 120])
def test_the_verdict_of_an_audit_is_whole_on_every_console(width):
    records = [
        audited(defence=f"dp-sgd(epsilon={epsilon},max_grad_norm=1.0)", aggregator=rule, compressor=how)
        for epsilon in (1, 8)
        for rule in ("krum", "nnm + trimmed-mean")
        for how in ("qsgd(bits=8)", "top-k(ratio=0.1)")
    ]
    records[0]["attack"]["audit"]["guarantee"] = None
    records[1]["flags"] = ["audit-violation"]
    records[2]["attack"]["audit"]["guarantee"]["holds"] = False
    console = Console(file=io.StringIO(), width=width)
    assert render_audits(records, console) == 1
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    # What folds is read downwards: the last column without the others, and without the spaces.
    head = next(line for line in lines if "ver" in line)
    start = head.index("ver")
    last = "".join(line[start:] for line in lines if len(line) > start).replace(" ", "")
    for verdict in ("claimsnothing", "refuted:suspectabuginthedefence", "brokenbeforetheaudit", "consistent"):
        assert verdict in last
    if width >= 80:
        text = " ".join(" ".join(lines).split())
        assert all(word in text for word in ("claims nothing", "consistent", "krum", "trimmed-mean", "8.00"))


def test_the_sign_of_clients_is_explained_where_an_audit_shows_it():
    for unit, told in (("record", False), ("client", True)):
        console = Console(file=io.StringIO(), width=80)
        render_audits([audited(unit)], console)
        assert ("§" in console.file.getvalue()) is told
