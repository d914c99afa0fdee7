"""Text from strangers, made safe for each place that it is written to."""

from __future__ import annotations

import json
import re
from typing import Any

from harness.errors import HarnessError

_JSON_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_MARKDOWN = re.compile(r"[\\`*_{}\[\]#!|~$@:]|(?<=www)\.|^(?:[-+=]|\d+(?=[.)]))", re.IGNORECASE)
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\textbraceleft{}", "}": r"\textbraceright{}", "$": r"\$", "&": r"\&",
    "#": r"\#", "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
_URL = re.compile(r"https://[A-Za-z0-9.-]+(:\d+)?([/?#][^\s\"'<>\\^`{|}]*)?", re.ASCII)


def script_json(value: Any) -> str:
    """JSON for the inside of a script element: nothing in it can end the element or begin a comment in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_JSON_ESCAPES)


def script(text: str, name: str) -> str:
    """Code of ours or of a library for the inside of a script element. Raises HarnessError if it ends the element."""
    if re.search(r"</script|<!--", text, re.IGNORECASE):
        raise HarnessError(
            f"{name} holds a tag that ends a script element, so it cannot be put into the page"
        )
    return text


def markdown(text: str) -> str:
    """One line of GitHub's Markdown in which nothing is markup, a link, a mention or the end of a table's cell."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(lambda found: "".join(f"&#{ord(sign)};" for sign in found[0]), flat)


def cell(text: str) -> str:
    """A text cell of a CSV file. Text that a spreadsheet would take for a formula is prefixed with an apostrophe."""
    return (
        f"'{text}"
        if text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
        else text
    )


def tex(text: str) -> str:
    """Text for TeX, on one line and with every special character escaped.

    Braces are written as words: BibTeX counts them even where they are escaped.
    """
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))


def link(url: str) -> str:
    """The address if it is a plain https one, else an empty text."""
    return url if _URL.fullmatch(url) else ""
