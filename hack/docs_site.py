"""Build the documentation as a site that needs no network: `make docs`.

    python hack/docs_site.py [--out build/site]

The pages are staged beside the output, with the files of the repository that they link to, and
Sphinx makes HTML of them. A broken link or anchor, and a page that stands nowhere in `NAV`, fail
the build.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STYLE = ROOT / "hack" / "docs_site.css"
INDEX = "docs/README.md"
# What a reader finds at the left, in the order of the pages; paths from the root of the repository.
NAV: Mapping[str, tuple[str, ...]] = {
    "Tutorials": (
        "docs/tutorial/first-rollout.md",
        "docs/tutorial/bad-model.md",
        "docs/tutorial/from-git.md",
    ),
    "How-to guides": (
        "docs/how-to/install.md",
        "docs/how-to/air-gapped.md",
        "docs/how-to/follow.md",
        "docs/how-to/few-gpus.md",
        "docs/how-to/gpus.md",
        "docs/how-to/tensorrt.md",
        "docs/how-to/network.md",
        "docs/how-to/upgrade.md",
        "docs/how-to/backup.md",
        "docs/how-to/gitops.md",
        "docs/how-to/side-by-side.md",
        "docs/how-to/golden-data-and-feedback.md",
        "docs/how-to/training-image.md",
        "docs/how-to/debug-a-stuck-rollout.md",
        "docs/how-to/demo.md",
    ),
    "Reference": (
        "docs/reference/api-modeldeployment.md",
        "docs/reference/api-rolloutpolicy.md",
        "docs/reference/status.md",
        "docs/reference/verbs.md",
        "docs/reference/cli.md",
        "docs/reference/reasons-rollout.md",
        "docs/reference/reasons.md",
        "docs/reference/reasons-analysis.md",
        "docs/reference/metrics.md",
        "docs/reference/alerts.md",
        "docs/reference/policies.md",
        "docs/reference/feedback-api.md",
        "docs/reference/optimization.md",
        "docs/reference/formats.md",
        "docs/reference/stores.md",
        "docs/reference/gateways.md",
        "docs/reference/pods.md",
        "docs/reference/endpoints.md",
        "docs/reference/configuration.md",
        "charts/model-rollout-operator/README.md",
        "docs/compatibility.md",
    ),
    "Explanation": (
        "docs/architecture.md",
        "docs/explanation/strategies.md",
        "docs/explanation/analysis.md",
        "docs/explanation/calibration.md",
        "docs/explanation/gate.md",
        "docs/explanation/shadow.md",
        "docs/explanation/tuning.md",
        "docs/explanation/fleets.md",
        "docs/explanation/safety.md",
        "docs/explanation/threat-model.md",
        "docs/explanation/comparison.md",
        "docs/explanation/failures-elsewhere.md",
        "docs/explanation/invariants.md",
        "docs/glossary.md",
    ),
    "Contributing": (
        "CONTRIBUTING.md",
        "docs/contributing/README.md",
        "docs/contributing/testing.md",
        "docs/contributing/chaos.md",
        "docs/contributing/adding-a-model-format.md",
        "docs/contributing/adding-an-optimizer-step.md",
        "docs/contributing/adding-a-store-scheme.md",
        "docs/contributing/adding-a-router.md",
        "docs/contributing/adding-a-metrics-provider.md",
        "docs/contributing/adding-an-evidence-source.md",
        "docs/contributing/adding-a-reason.md",
        "docs/design/README.md",
    ),
}
# Reached from the pages that link to them, not from the navigation.
ASIDE = ("docs/design/",)
CODE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2[ \t]*$|(`+)[^`]+\3", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\(\s*)([^)\s]+)(\s*\))")
LANGUAGES = {".yaml": "yaml", ".py": "python", ".sh": "bash", ".json": "json"}
# What a page that needs the network to be read would have.
LOADED = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="https?:|<link[^>]*\shref="https?:')


def site_path(path: str) -> str:
    """Where the site has a file of the repository. What is no page of Markdown becomes one."""
    if path == INDEX:
        return "index.md"
    inside = path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"
    return inside if inside.endswith((".md", ".svg", ".png")) else f"{inside}.md"


def target(page: str, link: str) -> str | None:
    """The path in the repository that a link of a page leads to; None if it leads elsewhere."""
    address = link.partition("#")[0]
    if not address or re.match(r"[a-z]+:", address):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), address))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text, changed where it is no code."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def links(page: str, text: str) -> list[str]:
    """The files of the repository that a page links to."""
    found: list[str] = []

    def collect(prose: str) -> str:
        found.extend(path for _, link, _ in LINK.findall(prose) if (path := target(page, link)))
        return prose

    outside_code(text, collect)
    return found


def staged(page: str, text: str) -> str:
    """The text of a page of Markdown, with links to where the site has their targets."""
    here = posixpath.dirname(site_path(page))

    def rewritten(link: re.Match[str]) -> str:
        path = target(page, link[2])
        if path is None:
            return link[0]
        _, sharp, anchor = link[2].partition("#")
        return f"{link[1]}{posixpath.relpath(site_path(path), here or '.')}{sharp}{anchor}{link[3]}"

    return outside_code(text, lambda prose: LINK.sub(rewritten, prose))


def as_page(path: str, text: str) -> str:
    """A file that is no page, as one."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def examples() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.yaml"))


def navigation() -> dict[str, list[str]]:
    """``NAV``, with the examples as their own part."""
    return {part: list(pages) for part, pages in NAV.items()} | {"Examples": examples()}


def toctrees(parts: Mapping[str, Iterable[str]]) -> str:
    blocks = []
    for caption, pages in parts.items():
        lines = "\n".join(site_path(page).removesuffix(".md") for page in pages)
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n")
    return "\n".join(["", *blocks])


def closure(listed: Iterable[str]) -> list[str]:
    """These pages and all files that they, or those, link to. Sphinx names links to no file."""
    known: dict[str, None] = {}
    waiting = list(listed)
    while waiting:
        page = waiting.pop(0)
        if page in known or not (ROOT / page).is_file():
            continue
        known[page] = None
        if page.endswith(".md"):
            waiting += links(page, (ROOT / page).read_text())
    return list(known)


def stage(source: Path) -> None:
    """Write what Sphinx reads."""
    (source / "_static").mkdir(parents=True)
    shutil.copy(STYLE, source / "_static")
    parts = navigation()
    listed = [INDEX, *(page for pages in parts.values() for page in pages)]
    for path in closure(listed):
        goal = source / site_path(path)
        goal.parent.mkdir(parents=True, exist_ok=True)
        if goal.suffix != ".md":
            shutil.copy(ROOT / path, goal)
            continue
        text = (ROOT / path).read_text()
        text = staged(path, text) if path.endswith(".md") else as_page(path, text)
        if path == INDEX:
            text += toctrees(parts)
        elif path not in listed and not (path.startswith("docs/") and not path.startswith(ASIDE)):
            text = f"---\norphan: true\n---\n\n{text}"
        goal.write_text(text)


def version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: str = project["version"]
    return found


def build(source: Path, out: Path) -> int:
    """The HTML; the number that the process ends with."""
    from sphinx.application import Sphinx  # only in the environment of `make docs`

    name = f"model-rollout-operator {version()}"
    app = Sphinx(
        srcdir=source,
        confdir=None,
        outdir=out,
        doctreedir=source.parent / "doctrees",
        buildername="html",
        confoverrides={
            "project": "model-rollout-operator",
            "release": version(),
            "html_title": name,
            "html_theme": "furo",
            "html_static_path": ["_static"],
            "html_css_files": [STYLE.name],
            "html_show_sphinx": False,
            "html_copy_source": False,
            "html_permalinks_icon": "#",
            "extensions": ["myst_parser"],
            "myst_heading_anchors": 6,
            "highlight_language": "none",
            "pygments_style": "tango",
            "language": "en",
            "smartquotes": False,  # texts of the code stand as they are
        },
        status=None,  # warnings are enough
        warningiserror=True,
        freshenv=True,
    )
    app.build(force_all=True)
    needing = [
        str(page.relative_to(out)) for page in sorted(out.rglob("*.html")) if LOADED.search(page.read_text())
    ]
    if needing:
        sys.stderr.write(f"these pages load something from the network: {', '.join(needing)}\n")
    return app.statuscode or bool(needing)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python hack/docs_site.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder (build/site)")
    out: Path = parser.parse_args(argv).out.resolve()
    for folder in ("source", "doctrees", "html"):
        shutil.rmtree(out / folder, ignore_errors=True)
    stage(out / "source")
    failed = build(out / "source", out / "html")
    sys.stdout.write(f"{os.path.relpath(out / 'html' / 'index.html')}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
