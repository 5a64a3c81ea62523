"""What all API types are made of: the base classes, marks for the schema, and scalars with their
patterns.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from modelrollout.api import uris


@dataclass(frozen=True)
class Rule:
    """One ``x-kubernetes-validations`` entry."""

    rule: str
    message: str


@dataclass(frozen=True)
class PlainUri(Rule):
    """A text that is a place and carries no secret: the API server refuses others by the rule, and
    the types by the same pattern and words.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, uri: str) -> str:
        if uris.carries_more(uri):
            raise PydanticCustomError("uri_carries_more", self.message)
        return uri


def plain_uri(message: str) -> PlainUri:
    """The rule with these words."""
    return PlainUri(f"!{_matches(uris.CARRIES_MORE)}", message)


def _matches(pattern: str) -> str:
    """The condition in CEL, which writes a backslash twice."""
    return "self.matches('{}')".format(pattern.replace("\\", "\\\\"))


@dataclass(frozen=True)
class ListMapKey:
    """``x-kubernetes-list-type: map`` with this key."""

    key: str


@dataclass(frozen=True)
class ShapeOf:
    """A part that the operator carries through as it is written, so its type here is a plain map;
    the API server checks it by the schema of ``type``.

    ``type``: MODULE:CLASS, a pydantic type of ours or of the package kubernetes. ``bare``: only
    types and bounds, without rules, defaults and what is required: for what the operator itself
    wrote, perhaps years ago, and must get back unchanged.
    """

    type: str
    bare: bool = False


@dataclass(frozen=True)
class LateDefault:
    """The default stands in the types and not in the schema: the operator fills it in, after those
    of RolloutPolicies.
    """


class ApiModel(BaseModel):
    """Base of all API types: camelCase on the wire, unknown fields refused, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    def wire(self) -> dict[str, Any]:
        """The object as JSON-able dict with wire names and without what is unset or None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(ApiModel):
    """Base of status types: fields of a newer or an older operator are dropped, not refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )


# Every text, list and map has a bound, so that no object is larger than the operator can hold: in
# spec each its own, in status these.
STATUS_TEXT = 32768
STATUS_ITEMS = 4096
_URI_PATTERN = Rule(_matches(uris.PATTERN), f"unsupported URI: write {uris.FORMS}")
Uri = Annotated[str, Field(max_length=2048), _URI_PATTERN, plain_uri(uris.INSTEAD)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253)]
DURATION_RE = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
Argument = Annotated[str, StringConstraints(max_length=4096)]
# A schema cannot bound the keys of a map, a rule can. A label's key is a DNS name, a slash and 63
# characters.
KEYS = Rule("self.all(k, k.size() <= 317)", "a key is at most 317 characters")
Labels = Annotated[dict[str, Annotated[str, StringConstraints(max_length=63)]], Field(max_length=64), KEYS]
Duration = Annotated[str, StringConstraints(pattern=DURATION_RE, max_length=32)]
QUANTITY_RE = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
Quantity = Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(pattern=QUANTITY_RE, max_length=32)]
Quantities = Annotated[dict[str, Quantity], Field(max_length=32), KEYS]
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_SECONDS = 100 * 365.25 * 86400


@functools.lru_cache(maxsize=1024)
def seconds(duration: str) -> float:
    """Seconds of a duration such as ``90s``, ``1h30m`` or ``2ms``; a hundred years at most, so that
    it can be added to any time.
    """
    if not re.match(DURATION_RE, duration):
        raise ValueError(f"not a duration: {duration!r}; write for example 90s, 10m or 1h30m")
    return min(
        _LONGEST_SECONDS,
        sum(
            float(n) * _UNIT_SECONDS[u] for n, _, u in re.findall(r"([0-9]+(\.[0-9]+)?)(ms|s|m|h)", duration)
        ),
    )


class LocalName(ApiModel):
    """A reference to an object in the same namespace."""

    name: Name = Field(description="Name of the object.")


class Resources(ApiModel):
    """Requests and limits as in a container."""

    limits: Quantities | None = Field(
        None, description="The most that the container may use; GPUs are requested here."
    )
    requests: Quantities | None = Field(
        None, description="What is set aside for the container; left out: the limits."
    )
