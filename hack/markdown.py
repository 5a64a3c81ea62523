"""Wrap the prose of Markdown pages at 100 columns.

``python hack/markdown.py [FILE ...]`` rewrites pages (all that Git knows, if none is named) and
prints which. ``--check`` only prints them, and ends with 1 if there are any. Paragraphs and list
items with a line that is too long are filled again; tables, code, headings and HTML stay as they
are.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
_ITEM = re.compile(r"(\s*)(?:[-*+]|\d+[.)])\s+")
_FENCE = re.compile(r"\s*(```|~~~)")
_VERBATIM = re.compile(r"\s*(\||#|<|!\[|\[[^\]]+\]:|---$)")
# Never broken: a code span with its neighbours, and the address of a link.
_ATOM = re.compile(r"(?:`[^`]*`|\]\([^)]*\)|\S)+")
# At the beginning of a line these would begin a list, a heading, a quotation or a table.
_MARKUP = re.compile(r"([-+*>|]|#+|\d+[.)])$")


def fill(text: str, first: str, rest: str) -> list[str]:
    """The words of ``text`` in lines of WIDTH columns, indented by ``first`` and then ``rest``."""
    lines, line = [], first
    for word in _ATOM.findall(text):
        joined = (
            line + word if line in (first, rest) and not line.strip(" -*+0123456789.)") else f"{line} {word}"
        )
        if len(joined) > WIDTH and line not in (first, rest) and not _MARKUP.match(word):
            lines.append(line)
            line = rest + word
        else:
            line = joined
    return [*lines, line]


def wrap(text: str) -> str:
    """The page with its prose wrapped."""
    wrapped: list[str] = []
    paragraph: list[str] = []
    lines = text.split("\n")

    def flush() -> None:
        if any(len(line) > WIDTH for line in paragraph):
            item = _ITEM.match(paragraph[0])
            first = item.group(0) if item else re.match(r"\s*", paragraph[0]).group(0)  # type: ignore[union-attr]
            rest = " " * len(first)
            words = " ".join([paragraph[0][len(first) :], *(line.strip() for line in paragraph[1:])])
            wrapped.extend(fill(words, first, rest))
        else:
            wrapped.extend(paragraph)
        paragraph.clear()

    fenced = matter = False
    for number, line in enumerate(lines):
        if line == "---" and (number == 0 or matter):
            matter = number == 0
        elif _FENCE.match(line):
            flush()
            fenced = not fenced
        elif not (fenced or matter):
            code = line.startswith("    ") and not paragraph and not _in_list(wrapped)
            if line.strip() and not code and not _VERBATIM.match(line):
                if _ITEM.match(line):
                    flush()
                paragraph.append(line)
                continue
            flush()
        wrapped.append(line)
    flush()
    return "\n".join(wrapped)


def _in_list(before: list[str]) -> bool:
    """Whether an indented line after these belongs to a list item: otherwise it is code."""
    for line in reversed(before):
        if _ITEM.match(line):
            return True
        if line.strip() and not line.startswith(" "):
            return False
    return False


def pages() -> Iterable[Path]:
    """Every Markdown page of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(p for line in listed.stdout.splitlines() if (p := ROOT / line).is_file())


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    named = [Path(a) for a in arguments if not a.startswith("-")]
    long = [
        (page, wrapped)
        for page in named or pages()
        if (wrapped := wrap(page.read_text())) != page.read_text()
    ]
    for page, wrapped in long:
        sys.stdout.write(f"{page}\n")
        if not check:
            page.write_text(wrapped)
    return 1 if check and long else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
