"""set on files as people write them: what it prints as done is so, nothing else changes, and what
it cannot do it refuses, with the file as before.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from modelrollout.cli.errors import Refused
from modelrollout.cli.manifests.edit import Change, edit
from modelrollout.cli.manifests.files import rewrite

Cli = Callable[..., Result]
SHA = "ab" * 32
HEAD = "apiVersion: modelrollout.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: d}\nspec:\n"
PLAIN = HEAD + "  model:\n    uri: s3://a/m\n  serving: {replicas: 3}\n"
OTHER = Change("s3://a/n")
# each is a number, a date, a truth value or nothing to some reader of YAML
TRAPS = ["1.0", "yes", "n", "null", "~", "", "1e5", "12e3456", "0o17", "0x1F", "2026-01-01", "1:30", "1_0"]
TRAPS += [".inf", "=", "<<", "it's", 'a "b"', "a: b", "a #b", " a", "a\nb", "ä😀", "{x}", "[x", "*x", "%"]
TRAPS += ["-", "- a", "?", "C:\\data\\new", "7e1", "a,b", "v8", "True"]


def model_in(text: str) -> Any:
    return yaml.safe_load(text)["spec"]["model"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_stay_to_the_last_one(tmp_path: Path, cli: Cli, end: str, last: bool) -> None:
    file = tmp_path / "m.yaml"
    text = PLAIN.replace("\n", end).removesuffix("" if last else end)
    file.write_bytes(text.encode())
    assert cli("set", str(file), "--uri", "s3://a/n", "--sha256", SHA, "--lineage", "a=b").exit_code == 0
    added = f"s3://a/n{end}    sha256: {SHA}{end}    lineage: {{a: b}}{end}"
    assert file.read_bytes().decode() == text.replace(f"s3://a/m{end}", added)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("uri: >- \n      s3://a/m\n", "uri: s3://a/n\n    sha256: S\n    lineage: {a: b}\n"),
        ("uri: |+\n      s3://a/m\n\n\n", "uri: s3://a/n\n    sha256: S\n    lineage: {a: b}\n\n\n"),
        ("uri: s3://a/m\n    sha256: # soon\n", "uri: s3://a/n\n    sha256: S # soon\n    lineage: {a: b}\n"),
        ("uri: s3://a/m\n    lineage:\n", "uri: s3://a/n\n    sha256: S\n    lineage: {a: b}\n"),
        ("uri: s3://a/m\n    lineage: ~ # c\n", "uri: s3://a/n\n    sha256: S\n    lineage: {a: b} # c\n"),
        ("uri: s3://a/m\n    lineage: { }\n", "uri: s3://a/n\n    sha256: S\n    lineage: {a: b }\n"),
        ('"uri": "s3://a/m" # ü\n', '"uri": "s3://a/n" # ü\n    sha256: S\n    lineage: {a: b}\n'),
        (
            "uri: s3://a/m\n    credentials:\n      secretRef: {name: x}\n    # why\n",
            "uri: s3://a/n\n    sha256: S\n    lineage: {a: b}\n"
            "    credentials:\n      secretRef: {name: x}\n    # why\n",
        ),
    ],
)
def test_every_form_of_a_value(old: str, new: str) -> None:
    text = PLAIN.replace("uri: s3://a/m\n", old)
    made, _ = edit(text, Change("s3://a/n", SHA, lineage={"a": "b"}))
    assert made == PLAIN.replace("uri: s3://a/m\n", new.replace("S", SHA))


@pytest.mark.parametrize("indent", [None, 2, "\t"])
@pytest.mark.parametrize("lineage", [{}, {"lineage": {}}, {"lineage": {"a": "x", "c": "ü"}}])
def test_json_stays_json(indent: Any, lineage: dict[str, Any]) -> None:
    obj = {"apiVersion": "modelrollout.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "d"}}
    text = json.dumps(obj | {"spec": {"model": {"uri": "s3://a/m"} | lineage}}, indent=indent)
    made, _ = edit(text, Change("s3://a/n", SHA, lineage={"a": "yes", "b": "ü\n"}))
    kept = {k: v for k, v in lineage.get("lineage", {}).items() if k == "c"}
    expected = {"uri": "s3://a/n", "sha256": SHA, "lineage": {"a": "yes", "b": "ü\n"} | kept}
    assert json.loads(made)["spec"]["model"] == expected


def test_an_object_in_a_list_is_found() -> None:
    inner = "".join(f"  {line}\n" for line in PLAIN.splitlines())
    text = f"apiVersion: v1\nkind: List\nitems:\n-{inner[1:]}"
    assert edit(text, OTHER)[0] == text.replace("s3://a/m", "s3://a/n")


@pytest.mark.parametrize("value", TRAPS)
@pytest.mark.parametrize("old", ["", "    lineage: {run: old}\n", "    lineage:\n      run: 'old'\n"])
def test_lineage_is_text_whatever_it_looks_like(old: str, value: str) -> None:
    made, _ = edit(PLAIN.replace("  serving", f"{old}  serving"), Change(lineage={"run": value, "no": "1"}))
    assert model_in(made)["lineage"] == {"run": value, "no": "1"}
    # to some readers they are numbers and truth values, which those of YAML 1.1 take for texts
    assert value not in ("n", "1e5", "12e3456", "0o17", "7e1") or f"run: '{value}'" in made


def test_a_number_of_the_same_digits_is_no_text_yet() -> None:
    text = PLAIN.replace("  serving", "    lineage: {run: 118, ok: yes}\n  serving")
    made, lines = edit(text, Change(lineage={"run": "118", "ok": "yes"}))
    assert model_in(made)["lineage"] == {"run": "118", "ok": "yes"} and len(lines) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "  model: &m\n    uri: s3://a/m\n  other: *m\n", "rest of the file"),
        (f"x: &m {{uri: s3://a/m}}\n{HEAD}  model: *m\n", "rest of the file"),
        (f"x: &m {{sha256: {SHA}}}\n{HEAD}  model:\n    <<: *m\n    uri: s3://a/m\n", "merge key"),
        (PLAIN + "  model: {uri: s3://a/x}\n", "'model' stands twice"),
        (PLAIN + "spec: {model: {uri: s3://a/x}}\n", "'spec' stands twice"),
        (PLAIN.replace("uri", "uri: s3://a/x\n    uri"), "'uri' stands twice"),
        (PLAIN.replace("s3://a/m", "{{ .Values.uri }}"), "of a template"),
        ("{{- if .x }}\n" + PLAIN, "line 1"),
        (HEAD + "  model: {uri: s3://a/m, sha256}\n", "edit the file by hand"),
        (PLAIN + "  x: " + "[" * 5000 + "]" * 5000 + "\n", "nested too deeply"),
        (PLAIN + "  x: &a [*a]\n", "nested too deeply, or in itself"),
        (PLAIN.replace("s3://a/m", ">- # why\n      s3://a/m"), "comment"),
        (PLAIN.replace("  serving", "    lineage: []\n  serving"), "no mapping"),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_file_stays(
    tmp_path: Path, cli: Cli, text: str, words: str
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    result = cli("set", str(file), "--uri", "s3://a/n", "--sha256", SHA, "--lineage", "a=b")
    assert result.exit_code == 1 and words in result.stderr, result.output
    assert file.read_text() == text


def test_an_alias_bomb_takes_no_time() -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 60))
    bomb = f"l0: &l0 x\n{levels}---\n{PLAIN}"
    assert edit(bomb, OTHER)[0] == bomb.replace("s3://a/m", "s3://a/n")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--uri", ""), ("--uri", "/models/m.onnx"), ("--uri", "s3://u:p@a/m"), ("--sha256", ""),
     ("--sha256", SHA.upper()), ("--signature", "x"), ("--lineage", f"a={'x' * 1025}")],
)  # fmt: skip
def test_a_value_that_the_api_server_refuses_is_not_written(
    tmp_path: Path, cli: Cli, option: str, value: str
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(PLAIN)
    result = cli("set", str(file), option, value)
    assert result.exit_code == 1 and option in result.stderr and file.read_text() == PLAIN


def test_a_terminal_obeys_nothing_that_stands_in_the_file(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(PLAIN.replace("s3://a/m", '"s3://a/\\e[2J"'))
    assert "\x1b" not in cli("set", str(file), "--uri", "s3://a/n").output


def names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()]


class TestFile:
    def test_mode_and_links_stay(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        file, link, twin = tmp_path / "d" / "m.yaml", tmp_path / "l.yaml", tmp_path / "t.yaml"
        file.write_text("a")
        file.chmod(0o640)
        link.symlink_to(file)
        rewrite(link, lambda text: (text + "b", None))
        assert link.is_symlink() and file.read_text() == "ab"
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        os.link(file, twin)
        rewrite(file, lambda text: (text + "c", None))
        assert twin.read_text() == "abc" and names(file.parent) == ["m.yaml"]

    def test_who_reads_meanwhile_sees_one_of_both_and_no_change_is_lost(self, tmp_path: Path) -> None:
        file = tmp_path / "m.yaml"
        file.write_text("")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: rewrite(file, lambda text: (f"{text}{i}\n", None)), range(60)))
        assert sorted(map(int, file.read_text().split())) == list(range(60))
        with file.open() as before:
            rewrite(file, lambda text: ("", None))
            assert len(before.readlines()) == 60

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
    def test_a_file_that_may_not_be_written_stays(self, tmp_path: Path, cli: Cli) -> None:
        file = tmp_path / "m.yaml"
        file.write_text(PLAIN)
        file.chmod(0o444)
        result = cli("set", str(file), "--uri", "s3://a/n")
        assert result.exit_code == 1 and "Permission" in result.stderr and file.read_text() == PLAIN

    def test_a_mounted_file_is_written_in_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def busy(*_: Any) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy")

        monkeypatch.setattr(Path, "replace", busy)
        file = tmp_path / "m.yaml"
        file.write_text("a")
        rewrite(file, lambda text: ("b", None))
        assert file.read_text() == "b" and names(tmp_path) == ["m.yaml"]

    @pytest.mark.parametrize("fault", [Refused("no"), UnicodeError()])
    def test_a_fault_leaves_it_as_it_was(self, tmp_path: Path, fault: Exception) -> None:
        file = tmp_path / "m.yaml"
        file.write_bytes(b"a\r\n")

        def fails(text: str) -> tuple[str, None]:
            raise fault

        with pytest.raises(type(fault)):
            rewrite(file, fails)
        assert file.read_bytes() == b"a\r\n" and names(tmp_path) == ["m.yaml"]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    st.dictionaries(texts, texts, max_size=3),
    st.dictionaries(texts, texts, min_size=1, max_size=3),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, "'", '"']),
)
def test_the_model_is_as_asked_or_the_change_is_refused(
    present: dict[str, str], wanted: dict[str, str], flow: bool | None, style: str | None
) -> None:
    model = {"uri": "s3://a/m", "lineage": present, "interfaceChange": "Allowed"}
    dumped = yaml.safe_dump({"model": model}, default_flow_style=flow, default_style=style, width=1 << 20)
    text = HEAD + "".join(f"  {line}\n" for line in dumped.split("\n") if line)
    try:
        expected = model_in(text)
        made, _ = edit(text, Change("s3://a/n", lineage=wanted))
    except (Refused, yaml.YAMLError):
        return  # control characters, which YAML has no place for
    expected |= {"uri": "s3://a/n", "lineage": expected["lineage"] | wanted}
    assert model_in(made) == expected
