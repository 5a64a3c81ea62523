"""Confines PromQL that a namespace wrote itself to that namespace's series, and bounds its cost.

The query that Prometheus gets is rendered from the syntax tree, never the given text. So even where
two parsers would read that text differently, only text that is written here reaches Prometheus.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import promql_parser as promql

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.reasons import Reason

NAMESPACE_LABEL = "namespace"  # as most scrapes set it (scrape.namespaceLabel)
USE_A_TEMPLATE = "use a template (spec.rollout.analysis.templates)"
MAX_CHARS = 2000
MAX_SIGNS = 200  # operators and brackets: the parser recurses natively and takes quadratic time
MAX_DEPTH = 50
LONGEST_OFFSET_SECONDS = 7 * 86400.0
# of each series: ranges times the steps of the subqueries around them, over all selectors
MOST_READ_SECONDS = 86400.0
INSTANT_SECONDS = 60.0  # what a selector without a range counts for

_SIGN = re.compile(r"[-+*/%^]|[<>=!~]+|[({\[]|\b(?:and|or|unless|atan2)\b", re.IGNORECASE)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_OPERATORS = frozenset(
    ["+", "-", "*", "/", "%", "^", "atan2", "==", "!=", "<", "<=", ">", ">=", "and", "or", "unless"]
)
_AGGREGATIONS = frozenset(
    ["sum", "avg", "count", "min", "max", "group", "stddev", "stdvar", "topk", "bottomk", "count_values",
        "quantile"]
)  # fmt: skip
# Pairs, because the parser's enumerations have no hash.
_MATCHES = (
    (promql.MatchOp.Equal, "="),
    (promql.MatchOp.NotEqual, "!="),
    (promql.MatchOp.Re, "=~"),
    (promql.MatchOp.NotRe, "!~"),
)
_SIDES = (
    (promql.VectorMatchCardinality.ManyToOne, "group_left"),
    (promql.VectorMatchCardinality.OneToMany, "group_right"),
)


class _RefusedError(Exception):
    """Why the query cannot be confined: the fact and the remedy."""


@functools.lru_cache(maxsize=1024)  # called in every pass over a spec
def confine(query: str, namespace: str, label: str = NAMESPACE_LABEL) -> str | MeasurementProblem:
    """The query with the namespace's matcher in every selector; ``QueryNotAllowed`` where that is
    impossible, or where it would read too much.

    ``label``: the label by which the scrape says where a target runs; any other label a target
    could set itself.
    """
    try:
        if len(query) > MAX_CHARS:
            raise _RefusedError(
                f"it has {len(query)} characters, an own query at most {MAX_CHARS}: shorten it, or"
                f" {USE_A_TEMPLATE}"
            )
        if len(_SIGN.findall(query)) > MAX_SIGNS:
            raise _RefusedError(
                f"it has more than {MAX_SIGNS} operators and brackets: simplify it, or {USE_A_TEMPLATE}"
            )
        if "`" in query and "\\" in query:  # raw to Prometheus, an escape to the parser
            raise _RefusedError(
                "a string in backticks and a backslash do not go together in an own query: write the string"
                " in quotes"
            )
        writer = _Writer(namespace, label)
        text = writer.write(_parsed(query))
        if not writer.selectors:
            raise _RefusedError(
                f"it selects no series, so nothing binds it to namespace {namespace}: {USE_A_TEMPLATE}"
            )
        if writer.read_seconds > MOST_READ_SECONDS:
            raise _RefusedError(
                f"it reads {_span(writer.read_seconds)} of each series, an own query at most"
                f" {_span(MOST_READ_SECONDS)}: shorter ranges, longer subquery steps, or {USE_A_TEMPLATE}"
            )
        if not all(_bound(selector, namespace, label) for selector in _selectors(_parsed(text))):
            raise _RefusedError(f"it cannot be bound to namespace {namespace}: {USE_A_TEMPLATE}")
    except _RefusedError as e:
        return MeasurementProblem(Reason.QUERY_NOT_ALLOWED, str(e))
    return text


def _parsed(query: str) -> promql.Expr:
    try:
        return _parse(query)
    except ValueError as e:
        raise _RefusedError(f"{e}: correct it, or {USE_A_TEMPLATE}") from None


def _parse(query: str) -> promql.Expr:
    """Raises ValueError with the fact."""
    try:
        return promql.parse(query)
    except ValueError as e:
        raise ValueError(f"it is no PromQL that can be read ({str(e)[:200]})") from None
    except BaseException as e:
        # of the parser: no Exception, and nowhere to be imported from
        if type(e).__name__ != "PanicException":
            raise
        raise ValueError("it has a number that cannot be read") from None


def vector_fault(query: str) -> str | None:
    """Why a query of the platform's gives no instant vector; None: it does, as far as its syntax
    shows.
    """
    if len(query) > MAX_CHARS or len(_SIGN.findall(query)) > MAX_SIGNS:
        return f"it is longer than {MAX_CHARS} characters or {MAX_SIGNS} operators and brackets"
    try:
        parsed = _parse(query)
    except ValueError as e:
        return str(e)
    while isinstance(parsed, promql.ParenExpr):
        parsed = parsed.expr
    ranged = isinstance(parsed, promql.MatrixSelector | promql.SubqueryExpr)
    constant = isinstance(parsed, promql.NumberLiteral | promql.StringLiteral)
    return "it gives no instant vector, but a range or a constant" if ranged or constant else None


@dataclass
class _Writer:
    """Writes a syntax tree, and counts what it reads."""

    namespace: str
    label: str
    selectors: int = 0
    read_seconds: float = 0.0
    _steps: list[float] = field(default_factory=list)  # of the subqueries around

    def write(self, e: promql.Expr, depth: int = 0) -> str:
        if depth > MAX_DEPTH:
            raise _RefusedError(f"it is nested more than {MAX_DEPTH} deep: simplify it, or {USE_A_TEMPLATE}")
        below = depth + 1
        match e:
            case promql.VectorSelector():
                return self._selector(e, INSTANT_SECONDS) + _moved(e.offset, e.at)
            case promql.MatrixSelector():
                inner, length = e.vector_selector, e.range.total_seconds()
                return f"{self._selector(inner, length)}[{_span(length)}]{_moved(inner.offset, inner.at)}"
            case promql.SubqueryExpr():
                return self._subquery(e, below)
            case promql.NumberLiteral():
                return _number(e.val)
            case promql.StringLiteral():
                return _quoted(e.val)
            case promql.ParenExpr():
                return self.write(e.expr, below)  # writes its own brackets where they are needed
            case promql.UnaryExpr():
                return f"-({self.write(e.expr, below)})"
            case promql.AggregateExpr():
                return self._aggregation(e, below)
            case promql.BinaryExpr():
                return f"({self.write(e.lhs, below)}) {_operator(e)} ({self.write(e.rhs, below)})"
            case promql.Call():
                # info() reads series that no selector names
                if e.func.experimental or e.func.name == "info":
                    raise _RefusedError(
                        f"{e.func.name}() is not for own queries: leave it out, or {USE_A_TEMPLATE}"
                    )
                return f"{e.func.name}({', '.join(self.write(a, below) for a in e.args)})"
        raise _RefusedError(f"it has something that is not for own queries: {USE_A_TEMPLATE}")

    def _selector(self, e: promql.VectorSelector, length: float) -> str:
        if e.matchers.or_matchers:
            raise _RefusedError(
                'a selector with "or" is not for own queries: write two, with or between them'
            )
        names = (
            [e.name]
            if e.name
            else [
                m.value for m in e.matchers.matchers if m.name == "__name__" and m.op == promql.MatchOp.Equal
            ]
        )
        if not names:
            raise _RefusedError(
                f"a selector without the name of a metric would read everything: name it, or {USE_A_TEMPLATE}"
            )
        matchers = [f"{self.label}={_quoted(self.namespace)}"]
        for m in e.matchers.matchers:
            if m.name == self.label:
                if m.op != promql.MatchOp.Equal or m.value != self.namespace:
                    raise _RefusedError(
                        f"it selects by the label {self.label}, which is always {self.namespace} in an own"
                        f" query: leave the matcher out, or {USE_A_TEMPLATE}"
                    )
                continue
            sign = next(sign for op, sign in _MATCHES if op == m.op)
            matchers.append(f"{_label(m.name)}{sign}{_quoted(m.value)}")
        self.selectors += 1
        self.read_seconds += max(length, INSTANT_SECONDS) * functools.reduce(
            lambda a, b: a * b, self._steps, 1.0
        )
        return f"{_name(e.name) if e.name else ''}{{{', '.join(matchers)}}}"

    def _subquery(self, e: promql.SubqueryExpr, below: int) -> str:
        if e.range is None or e.step is None or e.step <= timedelta(0):
            raise _RefusedError("a subquery of an own query needs its step: write for example [30m:1m]")
        length, step = e.range.total_seconds(), e.step.total_seconds()
        self._steps.append(max(1.0, length / step))
        inner = self.write(e.expr, below)
        self._steps.pop()
        return f"({inner})[{_span(length)}:{_span(step)}]{_moved(e.offset, e.at)}"

    def _aggregation(self, e: promql.AggregateExpr, below: int) -> str:
        operation = str(e.op)
        if operation not in _AGGREGATIONS:
            raise _RefusedError(f"{operation} is not for own queries: leave it out, or {USE_A_TEMPLATE}")
        param = f"{self.write(e.param, below)}, " if e.param is not None else ""
        by = ""
        if e.modifier is not None:
            kind = "by" if e.modifier.type == promql.AggModifierType.By else "without"
            by = f" {kind} ({', '.join(map(_label, e.modifier.labels))}) "
        return f"{operation}{by}({param}{self.write(e.expr, below)})"


def _operator(e: promql.BinaryExpr) -> str:
    operator, m = str(e.op), e.modifier
    if operator not in _OPERATORS:
        raise _RefusedError(f"the operator {operator} is not for own queries: {USE_A_TEMPLATE}")
    if m is None:
        return operator
    if m.fill_values.lhs is not None or m.fill_values.rhs is not None:
        raise _RefusedError(f"fill is not for own queries: leave it out, or {USE_A_TEMPLATE}")
    words = [operator, *(["bool"] if m.return_bool else [])]
    if m.matching is not None:
        kind = "on" if m.matching.type == promql.LabelModifierType.Include else "ignoring"
        words.append(f"{kind} ({', '.join(map(_label, m.matching.labels))})")
    words += [
        f"{side} ({', '.join(map(_label, m.group_labels or []))})" for card, side in _SIDES if card == m.card
    ]
    return " ".join(words)


def _moved(offset: timedelta | None, at: promql.AtModifier | None) -> str:
    if at is not None:
        raise _RefusedError("@ is not for own queries: leave it out, or use offset")
    if offset is None:
        return ""
    if abs(offset.total_seconds()) > LONGEST_OFFSET_SECONDS:
        raise _RefusedError(
            f"its offset is longer than {_span(LONGEST_OFFSET_SECONDS)}: shorten it, or {USE_A_TEMPLATE}"
        )
    return f" offset {'-' if offset < timedelta(0) else ''}{_span(abs(offset.total_seconds()))}"


def _span(seconds: float) -> str:
    whole = round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if abs(seconds - whole) < 1e-9 and whole and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s" if abs(seconds - whole) < 1e-9 else f"{round(1000 * seconds)}ms"


def _number(value: float) -> str:
    text = repr(value)
    return {"inf": "Inf", "-inf": "-Inf", "nan": "NaN"}.get(text, text)


def _quoted(text: str) -> str:
    """A PromQL string: what JSON escapes in it, Go reads in the same way."""
    return json.dumps(text, ensure_ascii=False)


def _label(name: str) -> str:
    if not _LABEL.fullmatch(name):
        raise _RefusedError(
            f"the label {name!r} is not for own queries, only letters, digits and underscores are:"
            f" {USE_A_TEMPLATE}"
        )
    return name


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise _RefusedError(
            f"the metric {name!r} is not for own queries, only letters, digits, underscores and colons are:"
            f" {USE_A_TEMPLATE}"
        )
    return name


def _selectors(e: promql.Expr) -> Iterator[promql.VectorSelector]:
    selectors: list[promql.VectorSelector] = []

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.VectorSelector):
            selectors.append(node)
        elif isinstance(node, promql.MatrixSelector):
            selectors.append(node.vector_selector)

    promql.walk(e, visit)
    return iter(selectors)


def _bound(selector: promql.VectorSelector, namespace: str, label: str) -> bool:
    matchers = [m for m in selector.matchers.matchers if m.name == label]
    return [(m.op, m.value) for m in matchers] == [
        (promql.MatchOp.Equal, namespace)
    ] and not selector.matchers.or_matchers
