"""The repository and its server, with the real git."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gitops import GitopsError
from gitops.git import GitServer, Repository


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "git")


@pytest.fixture
def url(repository: Repository) -> Iterator[str]:
    with GitServer(repository.bare.parent) as server:
        yield server.url(repository.bare)


def test_what_is_committed_can_be_cloned_over_http(repository: Repository, url: str, tmp_path: Path) -> None:
    pushed = repository.commit("first", {"models/digits.yaml": "a: 1\n", "fleet/one/model.yaml": "b: 1\n"})
    assert git(tmp_path, "ls-remote", url, "main").split()[0] == pushed
    git(tmp_path, "clone", "--quiet", url, "clone")
    assert (tmp_path / "clone" / "fleet" / "one" / "model.yaml").read_text() == "b: 1\n"
    second = repository.commit("second", {"models/digits.yaml": "a: 2\n"})
    git(tmp_path / "clone", "fetch", "--quiet", "--depth=1", "origin", second)
    assert git(tmp_path / "clone", "show", f"{second}:models/digits.yaml") == "a: 2"


def test_a_revert_is_a_commit_with_the_former_files(repository: Repository) -> None:
    repository.commit("first", {"models/digits.yaml": "a: 1\n"})
    bad = repository.commit("bad", {"models/digits.yaml": "a: 2\n", "models/policy.yaml": "p: 1\n"})
    reverted = repository.revert()
    assert reverted != bad
    assert git(repository.bare, "show", f"{reverted}:models/digits.yaml") == "a: 1"
    assert git(repository.bare, "ls-tree", "--name-only", f"{reverted}:models") == "digits.yaml"


def test_a_commit_says_the_whole_of_its_folders(repository: Repository) -> None:
    repository.commit("first", {"models/digits.yaml": "a: 1\n", "fleet/one/model.yaml": "b: 1\n"})
    repository.commit("policy", {"models/digits.yaml": "a: 1\n", "models/policy.yaml": "p: 1\n"})
    last = repository.commit("no policy", {"models/digits.yaml": "a: 2\n"})
    assert git(repository.bare, "ls-tree", "-r", "--name-only", last).split() == [
        "fleet/one/model.yaml",
        "models/digits.yaml",
    ]


def test_a_commit_without_a_change_says_so(repository: Repository) -> None:
    repository.commit("first", {"models/digits.yaml": "a: 1\n"})
    with pytest.raises(GitopsError, match="nothing to commit"):
        repository.commit("again", {"models/digits.yaml": "a: 1\n"})


def test_the_server_takes_no_pushes(repository: Repository, url: str, tmp_path: Path) -> None:
    repository.commit("first", {"models/digits.yaml": "a: 1\n"})
    git(tmp_path, "clone", "--quiet", url, "clone")
    pushed = subprocess.run(
        ["git", "push", "--quiet", "origin", "HEAD:other"],
        cwd=tmp_path / "clone",
        capture_output=True,
        check=False,
    )
    assert pushed.returncode != 0
