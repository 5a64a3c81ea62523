"""Label matchers of the operator's configuration: whose counters are trusted. Only matchers that
include (= and =~), never those that exclude.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

# Labels that a scraped process writes itself, so any other process can write them too.
_WRITTEN_BY_TARGETS = frozenset(
    (
        "service",
        "code",
        "method",
        "protocol",
        "le",
        "model_namespace",
        "name",
        "version",
        "slice",
        "result",
        "canary",
        "stable",
        "model",
        "reason",
    )
)
LABEL_NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
_MATCHER = re.compile(rf',\s*({LABEL_NAME})\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*")\s*')
_EXAMPLE = 'for example namespace="gateways"'


@dataclass(frozen=True, slots=True)
class Matcher:
    """``label="value"``, or with ``pattern`` ``label=~"value"``, which has to fit as a whole."""

    label: str
    value: str
    pattern: bool = False

    def fits(self, labels: Mapping[str, str]) -> bool:
        """Whether Prometheus would select a series with these labels."""
        actual = labels.get(self.label, "")
        return re.fullmatch(self.value, actual) is not None if self.pattern else actual == self.value

    def __str__(self) -> str:
        return f"{self.label}{'=~' if self.pattern else '='}{json.dumps(self.value, ensure_ascii=False)}"


def parse(text: str) -> tuple[Matcher, ...]:
    """Matchers, separated by commas; no text is none. Raises ValueError with the remedy."""
    matchers: list[Matcher] = []
    rest = text.strip() and f",{text}"
    while rest:
        match = _MATCHER.match(rest)
        if match is None:
            unread = repr(rest.strip(", ")[:100])
            raise ValueError(
                f'{unread} is not a label matcher; write LABEL="VALUE" or LABEL=~"REGEX", separated by'
                f" commas, {_EXAMPLE}"
            )
        matchers.append(_checked(*match.groups()))
        rest = rest[match.end() :]
    return tuple(matchers)


def _checked(label: str, operator: str, quoted: str) -> Matcher:
    if operator not in ("=", "=~"):
        raise ValueError(f"{label}{operator}{quoted} excludes; say with = or =~ who may count, {_EXAMPLE}")
    if label in _WRITTEN_BY_TARGETS or label.startswith(("exported_", "__")):
        raise ValueError(
            f"{label} can be written by any scraped process; name a label that the scrape itself sets,"
            f" {_EXAMPLE}"
        )
    try:
        matcher = Matcher(label, json.loads(quoted), operator == "=~")
        fits_no_label = matcher.fits({})
    except (ValueError, re.error) as e:
        raise ValueError(
            f"{label}{operator}{quoted} cannot be read ({e}); correct the value, {_EXAMPLE}"
        ) from None
    if fits_no_label:
        raise ValueError(
            f"{label}{operator}{quoted} also fits series without that label; give a value, {_EXAMPLE}"
        )
    return matcher


def fit(matchers: tuple[Matcher, ...], labels: Mapping[str, str]) -> bool:
    """Whether all of them fit."""
    return all(m.fits(labels) for m in matchers)


def promql(text: str) -> str:
    """The matchers as text for a query, separated by commas."""
    return ",".join(map(str, parse(text)))
