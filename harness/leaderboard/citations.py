"""Which methods a row used, as BibTeX, and the command that computes the row again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.console.pooling import AXES
from harness.leaderboard.board import Row
from harness.leaderboard.escaping import link, tex
from harness.leaderboard.submission import Plugin

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SHARED = ("dataset", "model", "partitioner", "metric")  # kinds that every row of a submission uses
DEPTH = 20


def used(row: Row) -> list[Plugin]:
    """The plugins behind a row, by kind and name: those that its cells name, and those that all rows share."""
    names: set[str] = set()
    for cell in row.cells:
        for label in cell.axes:
            names.update(_NAME.findall(label))
        names.update(_keys(cell.config))
    found = {(p.kind, p.name): p for p in row.submission.plugins if p.kind in SHARED or p.name in names}
    return [found[key] for key in sorted(found)]


Publication = tuple[str, str, str, int | None, str]


def entries(plugins: Iterable[Plugin]) -> dict[Publication, str]:
    """Publication -> its BibTeX entry, with another key for each."""
    found: dict[Publication, str] = {}
    keys: set[str] = set()
    for plugin in plugins:
        if not plugin.title or _publication(plugin) in found:
            continue
        stem = f"{_surname(plugin.authors)}{plugin.year or ''}{_word(plugin.title)}" or "method"
        key = next(k for i in range(len(keys) + 1) if (k := f"{stem}-{i + 1}" if i else stem) not in keys)
        keys.add(key)
        fields = {"title": f"{{{tex(plugin.title)}}}"}
        if plugin.authors:
            fields["author"] = " and ".join(tex(name) for name in _authors(plugin.authors))
        if plugin.venue:
            fields["howpublished"] = tex(plugin.venue)
        if plugin.year:
            fields["year"] = str(plugin.year)
        if link(plugin.url):
            fields["url"] = plugin.url.replace("%", r"\%").replace("#", r"\#").replace("&", r"\&")
        lines = [f"  {name} = {{{value}}}" for name, value in fields.items()]
        found[_publication(plugin)] = "@misc{" + ",\n".join([key, *lines]) + "\n}"
    return found


def _publication(plugin: Plugin) -> Publication:
    # Two plugins may write one paper's title in two cases.
    return plugin.title.casefold(), plugin.authors, plugin.venue, plugin.year, plugin.url


def bibtex(plugins: Sequence[Plugin], known: Mapping[Publication, str] | None = None) -> list[str]:
    """One entry for each title; methods without one have none.

    known: the `entries` of more plugins, so that those of several rows can stand in one file.
    """
    written = entries(plugins) if known is None else known
    found: dict[str, str] = {}
    for plugin in plugins:
        if plugin.title:
            found.setdefault(plugin.title.casefold(), written[_publication(plugin)])
    return list(found.values())


def command(row: Row) -> str:
    """The command that computes the row again, given the scenario's text as a file."""
    scenario = row.submission.scenario
    return " ".join([f"harness run {scenario.name}-v{scenario.version}.yaml", *selection(row)])


def selection(row: Row) -> list[str]:
    """The options that pick the row's cells, each label quoted for the shell."""
    return [
        "--select '" + f"{axis}={selects(label)}".replace("'", "'\"'\"'") + "'"
        for axis, label in zip(AXES, row.axes, strict=True)
    ]


def selects(label: str) -> str:
    """A pattern of `--select` that matches the label: `?` stands for each character that is special in patterns."""
    text = re.sub(r"[\[\]{}*?\s]", "?", label)
    if text.count("(") != text.count(")"):
        text = re.sub(r"[(),]", "?", text)
    depth, kept = 0, []
    for character in text:
        depth += (character == "(") - (character == ")")
        kept.append("?" if character == "," and depth <= 0 else character)
    return "".join(kept)


def _keys(value: Any, depth: int = 0) -> Iterator[str]:
    """Every key and string in a configuration: the names of plugins are among them."""
    if depth > DEPTH:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _keys(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _keys(inner, depth + 1)


def _authors(text: str) -> list[str]:
    """The names in `Hinton, Vinyals, Dean` or `Hinton and Dean`; `et al.` becomes `others`."""
    names = [name.strip() for name in re.split(r",|;| and | & ", re.sub(r"\bet al\.?", ", others", text))]
    return [name for name in names if name]


def _surname(authors: str) -> str:
    """The first author's surname in lower-case ASCII letters; the author may be `Yin` or `Sebastian U. Stich`."""
    first = next(iter(_authors(authors)), "")
    plain = unicodedata.normalize("NFKD", first.rpartition(" ")[2])
    return re.sub(r"[^A-Za-z]", "", plain).lower()


def _word(text: str) -> str:
    """The first word of four or more ASCII letters, else the first word, in lower case: part of a key."""
    words = re.findall(r"[A-Za-z]+", text)
    return next((word.lower() for word in words if len(word) > 3), words[0].lower() if words else "")
