"""One table of kinds, and the rights that the chart grants for them."""

from __future__ import annotations

import re
from pathlib import Path

from modelrollout.api import names
from modelrollout.kube.kinds import KINDS, POD, WATCHED

CHART = Path(__file__).resolve().parents[3] / "charts" / "model-rollout-operator" / "templates"
_WORDS = re.compile(r"\{\{.*?\}\}")  # of the template
_RULE = re.compile(r"- apiGroups: \[(.*)\]\n\s*resources: \[(.*)\]\n(?:  .*\n)*?\s*verbs: \[(.*)\]")


def granted() -> dict[tuple[str, str], set[str]]:
    """Verbs by group and resource, over all roles of the operator."""
    actual: dict[tuple[str, str], set[str]] = {}
    for name in ("_helpers.tpl", "rbac.yaml"):
        for group, resources, verbs in _RULE.findall(_WORDS.sub("", (CHART / name).read_text())):
            for resource in resources.split(", "):
                actual.setdefault((group.strip('"'), resource), set()).update(verbs.split(", "))
    return actual


def test_the_chart_grants_the_verbs_of_the_table_and_no_others() -> None:
    rights = granted()
    for r in KINDS:
        assert rights.get((r.group, r.plural)) == set(r.verbs.split()), r.kind


def test_every_watched_kind_may_be_listed_and_watched() -> None:
    assert all({"list", "watch"} <= set(r.verbs.split()) for r in WATCHED)


def test_all_that_is_watched_is_ours_a_child_or_a_pod() -> None:
    assert all(r.watch_all or r.child or r == POD for r in WATCHED)
    assert all(r.child for r in KINDS if r.pruned or r.guarded)


def test_the_author_of_each_verb_is_stamped() -> None:
    """One that is left out has no author, and anyone may write one beside it."""
    (stamped,) = re.findall(
        r"name: verbs\n\s*expression: \"\[(.*)\]\"", (CHART / "verb-authors.yaml").read_text()
    )
    assert tuple(verb.strip("'") for verb in stamped.split(", ")) == names.VERBS
