"""A namespace's own PromQL: what is sent reads its series only, however the query tries to get out
of it, and costs no more than is said.
"""

from __future__ import annotations

import promql_parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus import confinement
from modelrollout.analysis.providers.prometheus.confinement import confine

OURS = 'namespace="ours"'


def text(query: str) -> str:
    confined = confine(query, "ours")
    assert isinstance(confined, str), confined
    return confined


def refused(query: str) -> str:
    confined = confine(query, "ours")
    assert isinstance(confined, MeasurementProblem), confined
    assert confined.reason == "QueryNotAllowed"
    return confined.message


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    return list(confinement._selectors(promql_parser.parse(query)))


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("up", f"up{{{OURS}}}"),
        ('up{job="x", a!="1", b=~"2.*", c!~"3"}', f'up{{{OURS}, job="x", a!="1", b=~"2.*", c!~"3"}}'),
        ('up{namespace="ours"}', f"up{{{OURS}}}"),
        ('{__name__="up"}', f'{{{OURS}, __name__="up"}}'),
        ('sum by (pod) (rate(x[5m])) / on (pod) group_left (node) max without () (y)',
         f"(sum by (pod) (rate(x{{{OURS}}}[5m]))) / on (pod) group_left (node) (max without () (y{{{OURS}}}))"),  # noqa: E501
        ("max_over_time(rate(x[1m])[10m:30s] offset 1h)",
            f"max_over_time((rate(x{{{OURS}}}[1m]))[10m:30s] offset 1h)"),
        ("x offset -90s > bool 1e-9", f"(x{{{OURS}}} offset -90s) > bool (1e-09)"),
        ("-x ^ 2 or absent(y)", f"(-((x{{{OURS}}}) ^ (2.0))) or (absent(y{{{OURS}}}))"),
        ("x and ignoring (a) y unless z",
            f"((x{{{OURS}}}) and ignoring (a) (y{{{OURS}}})) unless (z{{{OURS}}})"),
        ("x * Inf + NaN", f"((x{{{OURS}}}) * (Inf)) + (NaN)"),
        ("quantile(0.9, x) # y", f"quantile(0.9, x{{{OURS}}})"),
        ("x[1ms]", f"x{{{OURS}}}[1ms]"),
    ],
)  # fmt: skip
def test_every_selector_gets_the_matcher(query: str, sent: str) -> None:
    assert text(query) == sent
    assert text(sent) == sent, "and has it only once"


@pytest.mark.parametrize(
    "query",
    [
        # a string that would end ours, where a tree is written out without care
        'x{a=`"} or up{b="`}',
        r'x{a="\"} or up{b=\""}',
        'x{a="\'} or up"}',
        'x{a="\\\\"} + on () y{b="\\\\"}',
        'label_replace(x, "a", `"} or up{b="`, "c", "(.*)")',
        'count_values("namespace", x)',
        'label_replace(x, "namespace", "theirs", "", "")',
        'x{a="\\n"}',
        'x{a="é😀"}',
    ],
)
def test_strings_do_not_get_out(query: str) -> None:
    actual = selectors(text(query))
    assert {s.name for s in actual} <= {"x", "y"}
    assert all(str(s.matchers).count(OURS) == 1 for s in actual)


@pytest.mark.parametrize(
    "query", ["vector(1)", "time()", "1", "NaN", '"x"', "vector(1) < bool vector(2)", "scalar(vector(3))"]
)
def test_what_selects_nothing_is_for_templates(query: str) -> None:
    assert "use a template" in refused(query)


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ('up{namespace="theirs"}', "always ours"),
        ('up{namespace=~".+"}', "always ours"),
        ('up{namespace!="ours"}', "always ours"),
        ('{__name__=~".+"}', "name of a metric"),
        ('{job="x"}', "name of a metric"),
        ("up @ 1600000000", "@"),
        ("up @ end()", "@"),
        ("max_over_time(up[5m:1m] @ start())", "@"),
        ("up offset 8d", "7d"),
        ("up offset -8d", "7d"),
        ("info(up)", "info()"),
        ("limitk(3, up)", "limitk"),
        ("sort_by_label(up, 'a')", "sort_by_label()"),
        ('up{a="b" or c="d"}', '"or"'),
        ("up * fill(0) up", "fill"),
        ('up{"a.b"="c"}', "a.b"),
        ("sum(up", "no PromQL"),
        (r"up{a=~`\d`}", "quotes"),
        ("up offset NaN", "number"),  # the parser panics
        ("nosuch(up)", "nosuch"),
        ("up[5m:]", "step"),
        ("sum(count_over_time(up[600m:1s]))", "of each series"),
        ("rate(up[2d])", "2d of each series"),
        ("rate(up[20h]) + rate(up[20h])", "40h of each series"),
        ("max_over_time(rate(up[1h])[1h:1m])", "60h of each series"),
        ("max_over_time(max_over_time(up[1h:1s])[1h:1s])", "of each series"),
        ("up[9999y]", "of each series"),
        ("(" * 60 + "up" + ")" * 60, "deep"),
        ("(" * 900 + "up" + ")" * 900, "operators and brackets"),
        ("up" + "+up" * 300, "operators and brackets"),
        ("-" * 1999 + "1", "operators and brackets"),
        (f'up{{a="{"x" * 3000}"}}', "2000"),
    ],
)
def test_what_cannot_be_confined_or_costs_too_much_is_refused(query: str, word: str) -> None:
    assert word in refused(query)


# fmt: off
_WORDS = st.sampled_from(
    ["x", "y", "up", "sum", "by", "(", ")", "[", "]", "{", "}", '"a"', "`", "'", '"', "\\", "a", "=", "=~",
        "!=", ",", "5m", "1s", ":", "@",
     "offset", "-", "+", "^", "/", "or", "and", "on", "ignoring", "group_left", "bool", "1", "Inf", "rate",
     "topk", "namespace", "__name__", "#",
     "\n", "count_values", 'namespace="theirs"', "9999999999y", "é", "\x00", "info", "end", "start",
     "label_replace", "absent"]
)
# fmt: on


@settings(max_examples=400, deadline=None)
@given(st.lists(_WORDS, min_size=1, max_size=20).map(" ".join))
def test_whatever_is_written_nothing_gets_out_and_nothing_is_raised(query: str) -> None:
    confined = confine(query, "ours")
    if isinstance(confined, str):
        assert all(
            str(s.matchers).count("namespace") == 1 and OURS in str(s.matchers) for s in selectors(confined)
        )
        assert selectors(confined)


def test_what_is_sent_is_looked_at_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matcher that was forgotten anywhere is no query."""
    monkeypatch.setattr(
        confinement._Writer, "_selector", lambda self, e, length: setattr(self, "selectors", 1) or e.name
    )
    assert "cannot be bound" in refused("forgotten")
