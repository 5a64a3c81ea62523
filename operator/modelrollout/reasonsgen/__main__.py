"""``python -m modelrollout.reasonsgen [--check] [--out DIR]``: write the pages on reasons from
``modelrollout.reasons`` and the templates in ``pages``.

In a template's row that begins with a reason, ``{code}`` and ``{help}`` stand for its exit code and
its help.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from modelrollout.generated import put
from modelrollout.reasons import Place, Reason

DEFAULT_OUT = Path("docs/reference")
TEMPLATES = Path(__file__).parent / "pages"
PAGES = {
    "reasons.md": Place.JOB,
    "reasons-analysis.md": Place.VERDICT,
    "reasons-rollout.md": Place.ROLLOUT,
}
HEADER = (
    "<!-- Written by `python -m modelrollout.reasonsgen` from operator/modelrollout/reasons.py and"
    " operator/modelrollout/reasonsgen/pages; do not edit. -->\n"
)
_ROW = re.compile(r"^\| `(\w+)`.*$", re.MULTILINE)
_REASONS = {str(reason): reason for reason in Reason}


class TemplateError(Exception):
    """A template names a reason that does not exist, or leaves one out."""


def render(name: str) -> str:
    """A page. Raises TemplateError if it lacks a reason of its place."""
    template = (TEMPLATES / name).read_text()
    missing = [r for r in Reason if PAGES[name] in r.places and f"`{r}`" not in template]
    if missing:
        raise TemplateError(f"{TEMPLATES / name} explains none of: {', '.join(missing)}")
    return HEADER + _ROW.sub(_fill_in, template)


def _fill_in(row: re.Match[str]) -> str:
    text = row.group()
    if "{code}" not in text and "{help}" not in text:
        return text
    reason = _REASONS.get(row.group(1))
    if reason is None:
        raise TemplateError(f"{row.group(1)} is no reason: {text}")
    return text.replace("{code}", str(reason.exit_code)).replace("{help}", reason.help)


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 when --check finds drift."""
    parser = argparse.ArgumentParser(prog="python -m modelrollout.reasonsgen", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help=f"folder to write to (default: {DEFAULT_OUT})"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 when a page differs from what would be written",
    )
    args = parser.parse_args(argv)
    pages = {args.out / name: render(name) for name in PAGES}
    complaint = "is not up to date; run: python -m modelrollout.reasonsgen"
    return put(pages, check=args.check, complaint=complaint)


if __name__ == "__main__":
    sys.exit(main())
