"""Host names and wildcards as the Gateway API compares them."""

from __future__ import annotations

import pytest

from modelrollout.api.hostnames import allowed, covers, overlap, wildcards_over


@pytest.mark.parametrize(
    ("pattern", "name", "within"),
    [
        ("a.example.com", "a.example.com", True),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "b.a.example.com", True),
        ("*.example.com", "*.a.example.com", True),
        ("*.example.com", "*.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.a.example.com", "*.example.com", False),
        ("a.example.com", "*.example.com", False),
        ("*", "*.example.com", True),
    ],
)
def test_what_lies_in_a_pattern(pattern: str, name: str, within: bool) -> None:
    assert covers(pattern, name) is within


def test_two_overlap_where_one_lies_in_the_other() -> None:
    assert (
        overlap("*.example.com", "a.example.com")
        and overlap("a.example.com", "*.example.com")
        and overlap("*.b.a.com", "*.a.com")
    )
    assert (
        not overlap("a.example.com", "b.example.com")
        and not overlap("*.a.com", "*.b.com")
        and not overlap("*.a.com", "a.com")
    )


def test_every_wildcard_that_covers_a_name_is_found() -> None:
    assert list(wildcards_over("x.a.example.com")) == ["*.a.example.com", "*.example.com", "*.com"]
    assert list(wildcards_over("*.example.com")) == ["*.com"]


def test_a_pattern_may_name_the_namespace() -> None:
    patterns = ["*.{{namespace}}.models.example.com", "{{namespace}}.example.com"]
    assert allowed(patterns, "ml", "digits.ml.models.example.com") and allowed(
        patterns, "ml", "ml.example.com"
    )
    assert not allowed(patterns, "ml", "digits.other.models.example.com") and not allowed(
        patterns, "ml", "other.example.com"
    )
