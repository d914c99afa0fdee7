"""Files of strangers: each that is no submission ends in one sentence, and what is one is text and nothing else."""

import json
import os
import time

import handmade
import pytest

import harness
from harness.errors import HarnessError
from harness.leaderboard.submission import MAX_BYTES, Submission, parse, read, write

SCRIPT = "<script>alert(1)</script>"
GOOD_NAME = "hand-v1--row.json"


def at(data, *path):
    for key in path:
        data = data[key]
    return data


def texts(value, path=()):
    """(path, text) of every string in decoded JSON."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(inner, (*path, key))


def rich():
    """A submission in which every field that may hold a text holds one."""
    data = handmade.plain()
    data |= {"url": "https://example.org", "note": "a note", "official": False, "unofficial_because": ["why"]}
    data["scenario"]["description"] = "about"
    data["plugins"][0] |= {"title": "t", "authors": "a", "venue": "v", "year": 2024, "url": "u"}
    cell = data["cells"][0]
    cell |= {"reason": "because", "norm": "linf"}
    cell["guarantee"] = {
        "unit": "record",
        "epsilon": 1.0,
        "delta": 0.1,
        "accountant": "rdp",
        "broken_by": ["b"],
    }
    cell["lineage"] = [{"stage": "s", "part": "p", "reads": "r", "effect": "e", "why": "w"}]
    seed = cell["seeds"]["0"]
    seed |= {"flags": ["flag"], "error": "e", "undefined": {"loss": "nan"}}
    data["verification"] = {
        "verdict": "verified",
        "when": "now",
        "cells": 1,
        "environment": dict(data["environment"]),
        "differences": ["d"],
    }
    return data


@pytest.fixture
def refused(call, tmp_path):
    """Writes a file, and returns the one sentence with which `check` refuses it."""

    def run(content, name=GOOD_NAME):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        status, out, err = call("check", path)
        assert status == 2
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        start = f"error: {path}: "
        assert err.startswith(start)
        with pytest.raises(HarnessError):
            read(path)
        return err.removeprefix(start).strip()

    return run


# texts --------------------------------------------------------------------------------------------

CLOSED = {"kind", "family", "status", "direction", "verdict"}  # one of a few words
FORMED = {"hash", "fingerprint", "commit", "id", "source"}  # hexadecimal


def test_script_tags_are_text_and_stay_as_they_are(tmp_path):
    names = [path for path, _ in texts(rich())]
    assert len(names) > 60
    kept = 0
    for path in names:
        data = rich()
        at(data, *path[:-1])[path[-1]] = SCRIPT
        slug = path in (("name",), ("scenario", "name"))
        closed = (
            (path[-1] in CLOSED and path[0] != "plugins")
            or path[-1] in FORMED
            or path[-2:-1] == ("undefined",)
        )
        if slug or closed:
            with pytest.raises(HarnessError, match="not a submission: "):
                parse(data, "x")
            continue
        write(parse(data, "x"), tmp_path / "x.json")
        assert at(json.loads((tmp_path / "x.json").read_text()), *path) == SCRIPT, path
        kept += 1
    assert kept > 40


def test_script_tags_in_names_of_scores_are_text(tmp_path):
    data = rich()
    data["cells"][0]["seeds"]["0"]["scores"] = {SCRIPT: 0.5}
    data["units"][SCRIPT] = {"direction": "higher"}
    write(parse(data, "x"), tmp_path / "x.json")
    assert read(tmp_path / "x.json").cells[0].seeds["0"].scores == {SCRIPT: 0.5}


INVISIBLE = {
    "bidi override": "\u202e",
    "bidi isolate": "\u2066",
    "right-to-left mark": "\u200f",
    "zero width space": "\u200b",
    "zero width joiner": "\u200d",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "tag": "\U000e0041",
    "escape": "\x1b",
    "bell": "\x07",
    "null": "\x00",
    "newline": "\n",
    "line separator": "\u2028",
    "next line": "\x85",
}


@pytest.mark.parametrize("character", INVISIBLE.values(), ids=INVISIBLE)
@pytest.mark.parametrize(
    "path",
    [
        ("authors",),
        ("cells", 0, "defence"),
        ("plugins", 0, "title"),
        ("environment", "device_name"),
        ("unofficial_because", 0),
        ("cells", 0, "seeds", "0", "flags", 0),
    ],
    ids=str,
)
def test_invisible_characters_are_refused(path, character):
    data = rich()
    at(data, *path[:-1])[path[-1]] = f"mean{character}x"
    with pytest.raises(HarnessError) as caught:
        parse(data, "x")
    assert str(caught.value) == (
        f"x: not a submission: {'.'.join(map(str, path))}: it holds the invisible character "
        f"U+{ord(character):04X}; write plain text"
    )


@pytest.mark.parametrize(
    "path", [("note",), ("scenario", "text"), ("cells", 0, "reason"), ("scenario", "description")]
)
def test_paragraphs_may_have_lines_and_nothing_else(path):
    for text, good in (
        ("two\nlines\tof it", True),
        ("a\u202eb", False),
        ("a\x1b[2Jb", False),
        ("a\u200bb", False),
    ):
        data = rich()
        at(data, *path[:-1])[path[-1]] = text
        if good:
            assert isinstance(parse(data, "x"), Submission)
        else:
            with pytest.raises(HarnessError, match="it holds the invisible character"):
                parse(data, "x")


def test_invisible_names_of_scores_and_parameters_are_refused():
    data = rich()
    data["cells"][0]["seeds"]["0"]["scores"] = {"accuracy\u200b": 1.0}
    with pytest.raises(HarnessError, match=r"invisible character U\+200B"):
        parse(data, "x")
    for config in ({"a\u202e": 1}, {"a": ["b\u202e"]}, {"a": {"b": "\x1b[31m"}}):
        data = rich()
        data["cells"][0]["config"] = config
        with pytest.raises(HarnessError, match=r"cells\.0\.config: it holds the invisible character"):
            parse(data, "x")


def test_letters_of_all_languages_are_welcome():
    data = rich()
    data["authors"] = "Zoë Müller, Łukasz, Нина, 李雷, Ève — “quoted” ε ≤ 8"
    assert parse(data, "x").authors == data["authors"]


def test_messages_do_not_repeat_what_a_terminal_would_obey(refused):
    said = refused({**handmade.plain(), "\x1b[2J\u202e": 1})
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "extra inputs are not permitted" in said
    said = refused('{"\\u001b[2J": 1, "\\u001b[2J": 2}')
    assert "\x1b" not in said
    assert "stands twice in one object" in said


# names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".hidden", "/etc/passwd", "a/b", "a\\b", "", "a b", "é", "a" * 81, "x\n", "con\x00", "-x"],
)
@pytest.mark.parametrize("path", [("name",), ("scenario", "name")], ids=str)
def test_names_that_are_paths_are_refused(path, name):
    data = handmade.plain()
    at(data, *path[:-1])[path[-1]] = name
    with pytest.raises(HarnessError, match=rf"^x: not a submission: {'.'.join(path)}: .* cannot be a name"):
        parse(data, "x")


# forms --------------------------------------------------------------------------------------------


def test_a_huge_file_is_refused_by_its_size(refused, tmp_path, monkeypatch):
    from pathlib import Path

    path = tmp_path / GOOD_NAME
    with path.open("wb") as file:
        file.truncate(100 * 2**20)  # sparse: nothing is written

    def opened(*_, **__):
        raise AssertionError("the file was read")

    harness.plugins("metric")  # so that the command does not have to look for plugins then
    monkeypatch.setattr(Path, "read_text", opened)
    monkeypatch.setattr(Path, "read_bytes", opened)
    monkeypatch.setattr(Path, "open", opened)
    assert refused(None) == f"100 MiB; a submission has at most {MAX_BYTES >> 20} MiB"


def test_a_file_that_is_not_there_is_told_from_one_that_is_wrong(tmp_path):
    (tmp_path / "privacy-v3--ours.json").write_text("{}")
    with pytest.raises(
        HarnessError,
        match=r"privcy-v3--ours.json: there is no such file; did you mean 'privacy-v3--ours.json'\?$",
    ):
        read(tmp_path / "privcy-v3--ours.json")
    with pytest.raises(HarnessError, match=r"x\.json: there is no such file$"):
        read(tmp_path / "nowhere" / "x.json")


def test_what_is_no_json_object(refused):
    assert "not a submission: the file is empty" in refused("\n")
    assert "not a submission: no JSON: Expecting value" in refused("schema: 1\n")
    assert "not a submission: " in refused("{")
    assert "not a submission: " in refused("[1, 2]")
    assert "not a submission: " in refused("null")
    assert "not a submission: " in refused('"text"')
    assert "not a submission: no JSON: Extra data" in refused("{} {}")
    assert "codec can't decode byte 0xff" in refused(b'{"name": "\xff"}')
    assert "not a submission: " in refused(json.dumps(handmade.plain()).encode("utf-16"))
    assert "not a submission: " in refused(b"\x00" * 100)


def test_what_is_no_file(refused, tmp_path):
    (tmp_path / "folder.json").mkdir()
    assert refused(None, "folder.json") == "not a submission: not a file"
    assert refused(None, "gone.json") == "there is no such file"
    os.mkfifo(tmp_path / "pipe.json")  # opening it would wait for ever
    assert refused(None, "pipe.json") == "not a submission: not a file"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_json(refused, number):
    text = json.dumps(handmade.plain()).replace("0.5", number, 1)
    assert refused(text) == f"not a submission: {number} is not a number in JSON"


def test_numbers_that_are_too_large(refused):
    text = json.dumps(handmade.plain())
    assert refused(text.replace("0.5", "1e999", 1)) == "not a submission: 1e999 is too large for a number"
    assert "Exceeds the limit" in refused(text.replace('"schema": 1', '"schema": 1' + "0" * 5000, 1))
    assert "scenario.version: input should be less than" in refused(
        text.replace('"version": 1', '"version": ' + "9" * 400, 1)
    )
    data = handmade.plain()
    data["cells"][0]["config"] = {"steps": 10**400}
    assert "cells.0.config: it holds a number that is not finite, or far too large" in refused(data)
    data = handmade.plain()
    data["cells"][0]["seeds"]["0"]["curve"] = [[10**400, 0.5]]
    assert "cells.0.seeds.0.curve.0.0: " in refused(data)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("schema",), 2, "schema: input should be 1, not 2"),
        (("schema",), "one", "schema: input should be 1, not 'one'"),
        (("kind",), "something else", "kind: input should be 'psr-harness submission'"),
        (("verdict",), "mine", "verdict: extra inputs are not permitted"),
        (("scenario", "extra"), 1, "scenario.extra: extra inputs are not permitted"),
        (("cells", 0, "onclick"), "x()", "cells.0.onclick: extra inputs are not permitted"),
        (("cells",), [], "cells: tuple should have at least 1 item"),
        (("cells", 0, "family"), "best", "cells.0.family: input should be 'clean', 'evasion'"),
        (
            ("cells", 0, "seeds"),
            {"-1": {"id": "ab" * 6}},
            "cells.0.seeds.-1.[key]: string should match pattern",
        ),
        (
            ("cells", 0, "seeds"),
            {"01": {"id": "ab" * 6}},
            "cells.0.seeds.01.[key]: string should match pattern",
        ),
        (("cells", 0, "seeds"), {"\u0663": {"id": "ab" * 6}}, "string should match pattern"),
        (("cells", 0, "seeds", "0", "id"), "xyz", "cells.0.seeds.0.id: string should match pattern"),
        (
            ("cells", 0, "seeds", "0", "scores"),
            {"a": "b"},
            "cells.0.seeds.0.scores.a: input should be a valid number",
        ),
        (("cells", 0, "seeds", "0", "scores"), {"a" * 121: 1}, "string should have at most 120 characters"),
        (("cells", 0, "seeds", "0", "undefined"), {"a": "none"}, "input should be 'inf', '-inf' or 'nan'"),
        (("cells", 0, "seeds", "0", "scores"), {str(i): 1 for i in range(201)}, "at most 200 items"),
        (("cells", 0, "eps"), -1, "cells.0.eps: input should be greater than or equal to 0"),
        (("cells", 0, "config"), {"a": [0] * 3000}, "cells.0.config: it holds more than 2000 values"),
        (
            ("cells", 0, "config"),
            {"a": "b" * 4001},
            "cells.0.config: it holds a text of more than 4000 characters",
        ),
        (("authors",), "a" * 401, "authors: string should have at most 400 characters"),
        (("scenario", "text"), "a" * 200_001, "scenario.text: string should have at most 200000 characters"),
        (("scenario", "hash"), "AB" * 32, "scenario.hash: string should match pattern"),
        (("official",), False, "official submissions have no reason to be unofficial, the others do"),
        (("unofficial_because",), ["because"], "official submissions have no reason to be unofficial"),
    ],
)
def test_fields_are_typed_and_bounded(refused, path, value, said):
    data = handmade.plain()
    at(data, *path[:-1])[path[-1]] = value
    assert said in refused(data)


def test_what_stands_twice(refused):
    data = handmade.plain()
    data["cells"].append(data["cells"][0])
    assert "two cells have the same axes: none, mean, none, none, none" in refused(data)
    data = handmade.plain()
    first, second = data["cells"][0]["seeds"]["0"], data["cells"][1]["seeds"]["0"]
    second["id"] = first["id"]
    assert f"the cell id {first['id']} is used twice" in refused(data)
    text = json.dumps(handmade.plain())
    twice = text.replace('"official": true', '"official": false, "official": true')
    assert refused(twice) == "not a submission: the key 'official' stands twice in one object"


@pytest.mark.parametrize("depth", [30, 300, 900, 100_000])
def test_deep_nesting(refused, depth):
    text = json.dumps(handmade.plain()).replace(
        '"config": {', '"config": {"a": ' + "[" * depth + "]" * depth + ", ", 1
    )
    said = refused(text)
    assert "nested too deeply" in said or "cells.0.config: it is nested deeper than 20 levels" in said


def test_deep_nesting_instead_of_everything(refused):
    assert refused("[" * 200_000) == "not a submission: nested too deeply"
    assert refused('{"name":' * 200_000) == "not a submission: nested too deeply"


def test_many_cells_with_one_id_are_refused_at_once():
    data = handmade.plain()
    ids = [f"{number:012x}" for number in range(40_000)]
    seeds = [{str(i): {"id": ids[40 * c + i]} for i in range(40)} for c in range(1000)]
    seeds[-1]["39"] = {"id": ids[0]}
    data["cells"] = [
        {**data["cells"][0], "defence": f"d{c}", "seeds": seeds[c], "config": {}} for c in range(1000)
    ]
    started = time.perf_counter()
    with pytest.raises(HarnessError, match=f"the cell id {ids[0]} is used twice"):
        parse(data, "x")
    assert time.perf_counter() - started < 5


# lies ---------------------------------------------------------------------------------------------


def lie(data, kind):
    cell = data["cells"][0]
    if kind == "left out":
        del data["cells"][0]
    elif kind == "renamed":
        cell["defence"] = "my-own-method"
    elif kind == "parameters":
        data["cells"][2]["config"]["defence"] = [{"label-smoothing": {"smoothing": 0.9}}]
    elif kind == "another id":
        cell["seeds"]["0"]["id"] = "ab" * 6
    elif kind == "seed":
        cell["seeds"]["5"] = cell["seeds"].pop("0")
    elif kind == "board":
        data["scenario"]["hash"] = "ab" * 32
    elif kind == "data":
        data["scenario"]["dataset"] = "cifar-10"
    return data


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "left out",
            "it says that it is official, and 3 of 12 cells are missing: none / mean / none, seed 0; ",
        ),
        ("renamed", "is none / mean / none, seed 0"),
        ("parameters", "label-smoothing / mean / none, seed 0: its parameters are not the scenario's"),
        ("another id", "its scenario has no cell abababababab"),
        ("seed", "is none / mean / none, seed 0"),
        ("board", "its scenario has the hash "),
        ("data", "its scenario's text says data set digits, the file cifar-10"),
    ],
)
def test_what_does_not_fit_its_own_scenario(call, tmp_path, kind, said):
    path = tmp_path / GOOD_NAME
    path.write_text(json.dumps(lie(handmade.plain(), kind)))
    status, out, err = call("check", path)
    assert (status, out) == (2, "")
    assert f"{path}: " in err
    assert said in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dataset: {npz: {path: /etc/passwd}}", "its text holds the absolute path '/etc/passwd'"),
        ('dataset: {npz: {path: "${AWS_SECRET}/x"}}', "its text uses the variable AWS_SECRET"),
        ("!!python/object/apply:os.system ['true']", "its scenario cannot be used here: "),
        ("a: &a [1]\nb: &b [*a, *a]", "its scenario cannot be used here: "),
        ("[" * 5000, "its scenario cannot be used here: "),
    ],
)
def test_hostile_scenarios_are_neither_run_nor_followed(call, tmp_path, text, said):
    data = handmade.plain()
    data["scenario"]["text"] = text
    path = tmp_path / GOOD_NAME
    path.write_text(json.dumps(data))
    for command in (("check", path), ("verify", path, "--jobs", "0", "-q")):
        status, out, err = call(*command)
        assert (status, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
    assert read(path).verification is None


def test_the_unchanged_example_is_in_order(call, tmp_path):
    path = tmp_path / GOOD_NAME
    path.write_text(json.dumps(handmade.plain()))
    assert call("check", path) == (0, f"{path}: ok, official\n", "")
    path.write_text(json.dumps(rich()))
    assert call("check", path)[0] == 0
