"""What `make docs` gives to Sphinx: every page has its place, and links lead where the site has
their targets. Sphinx itself is not in this environment.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hack import docs_site

ROOT = Path(__file__).resolve().parents[2]


def test_every_page_has_one_place_in_the_navigation() -> None:
    placed = [page for pages in docs_site.navigation().values() for page in pages]
    assert len(placed) == len(set(placed)) and [p for p in placed if not (ROOT / p).is_file()] == []
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    unplaced = {p for p in pages - set(placed) if not p.startswith(docs_site.ASIDE)}
    assert unplaced == {docs_site.INDEX}


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("docs/how-to/install.md", "../reference/stores.md#s3", "../reference/stores.md#s3"),
        ("docs/how-to/install.md", "../README.md", "../index.md"),
        ("docs/how-to/install.md", "../../examples/full.yaml", "../repository/examples/full.yaml.md"),
        ("docs/README.md", "../CONTRIBUTING.md#tests", "repository/CONTRIBUTING.md#tests"),
        ("CONTRIBUTING.md", "docs/glossary.md", "../glossary.md"),
        ("CONTRIBUTING.md", "LICENSE", "LICENSE.md"),
        ("docs/explanation/calibration.md", "calibration.svg", "calibration.svg"),
        ("docs/glossary.md", "#objects", "#objects"),
        ("docs/glossary.md", "https://example.com/a.md", "https://example.com/a.md"),
    ],
)
def test_a_link_leads_to_where_the_site_has_its_target(page: str, link: str, on_the_site: str) -> None:
    assert docs_site.staged(page, f"see [it]({link}).") == f"see [it]({on_the_site})."


def test_code_is_left_as_it_is() -> None:
    page = "[a](../README.md)\n```sh\n[b](../README.md)\n```\n[c](../README.md)\n"
    made = docs_site.staged("docs/how-to/install.md", page)
    assert made == "[a](../index.md)\n```sh\n[b](../README.md)\n```\n[c](../index.md)\n"
    assert docs_site.links("docs/how-to/install.md", page) == ["docs/README.md", "docs/README.md"]


def test_a_file_becomes_a_page_whose_code_ends_where_the_file_ends() -> None:
    assert docs_site.as_page("examples/a.yaml", "a: ```\n") == "# examples/a.yaml\n\n````yaml\na: ```\n````\n"


def test_what_is_linked_comes_with_the_pages(tmp_path: Path) -> None:
    docs_site.stage(tmp_path)
    index = (tmp_path / "index.md").read_text()
    assert all(f":caption: {part}\n" in index for part in docs_site.navigation())
    example = (tmp_path / "repository" / "examples" / "smallest.yaml.md").read_text()
    assert (ROOT / "examples" / "smallest.yaml").read_text().rstrip() in example
    assert (tmp_path / "explanation" / "calibration.svg").is_file()
    assert (tmp_path / "repository" / "LICENSE.md").read_text().startswith("---\norphan: true\n---\n")


@pytest.mark.parametrize(
    ("html", "needs_the_network"),
    [
        ('<script src="https://cdn.example.com/a.js"></script>', True),
        ('<link href="https://fonts.example.com/a.css" rel="stylesheet" />', True),
        ('<link rel="stylesheet" href="https://fonts.example.com/a.css" />', True),
        ('<link rel="stylesheet" href="_static/a.css" />', False),
        ('<a href="https://example.com/">there</a>', False),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_seen(html: str, needs_the_network: bool) -> None:
    assert bool(docs_site.LOADED.search(html)) is needs_the_network
