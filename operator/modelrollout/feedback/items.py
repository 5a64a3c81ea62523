"""What may be sent to the feedback service: labels, and the messages for what is wrong with
them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

from modelrollout import nesting

MAX_ITEMS = 1000
MAX_ID = 128
MAX_MODELS = 16  # in one request: each costs a request to the API server
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_SLICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.:/=+-]{0,63}")
_FIELDS = frozenset({"namespace", "name", "version", "id", "correct", "prediction", "label", "slice"})


class BadRequestError(ValueError):
    """The request cannot be used; ``field`` names the place, the text what to change."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled answer. ``slice`` is empty when none was given."""

    namespace: str
    name: str
    version: int
    id: str
    right: bool
    slice: str = ""

    @property
    def model(self) -> tuple[str, str]:
        return self.namespace, self.name


def parse(body: bytes) -> list[Item]:
    """The items of a request body: one object, or ``{"items": [...]}``. Raises BadRequestError for
    the first invalid one.
    """
    try:
        data = nesting.parse(body, parse_constant=_no_constant)
    except ValueError as e:
        raise BadRequestError("", f"the body is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise BadRequestError("", 'send one JSON object, or {"items": [...]}')
    if "items" not in data:
        return [_item(data, "")]
    rows = data["items"]
    if not isinstance(rows, list) or len(data) > 1:
        raise BadRequestError("items", 'send {"items": [...]} with a list and nothing beside it')
    if not 0 < len(rows) <= MAX_ITEMS:
        raise BadRequestError("items", f"{len(rows)} items: send 1 to {MAX_ITEMS} in one request")
    items = [_item(row, f"items[{i}].") for i, row in enumerate(rows)]
    if len({i.model for i in items}) > MAX_MODELS:
        raise BadRequestError(
            "items", f"they name more than {MAX_MODELS} models: send them in several requests"
        )
    return items


def _item(row: Any, at: str) -> Item:
    if not isinstance(row, dict):
        raise BadRequestError(at.rstrip("."), "must be an object")
    unknown = sorted(set(row) - _FIELDS)
    if unknown:
        raise BadRequestError(
            f"{at}{unknown[0][:64]}", f"unknown field; known are {', '.join(sorted(_FIELDS))}"
        )
    namespace, name = (_text(row, at, f, _NAME, "of the ModelDeployment") for f in ("namespace", "name"))
    identity = row.get("id")
    if not isinstance(identity, str) or not 0 < len(identity) <= MAX_ID:
        raise BadRequestError(
            f"{at}id", f"must be a string of 1 to {MAX_ID} characters, the same each time this label is sent"
        )
    part = (
        ""
        if row.get("slice") in (None, "")
        else _text(row, at, "slice", _SLICE, "1 to 64 letters, digits, spaces or _.:/=+-")
    )
    return Item(namespace, name, _version(row, at), identity, _right(row, at), part)


def _text(row: dict[str, Any], at: str, field: str, pattern: re.Pattern[str], what: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadRequestError(
            f"{at}{field}", f"must be the {field} {what}" if pattern is _NAME else f"must be {what}"
        )
    return value


def _version(row: dict[str, Any], at: str) -> int:
    """A number, or its text: that is how Triton's HTTP answer has it in ``model_version``."""
    value = row.get("version")
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**9:
        raise BadRequestError(
            f"{at}version", "must be the positive number that the answer has as model_version"
        )
    return value


def _right(row: dict[str, Any], at: str) -> bool:
    correct, pair = row.get("correct"), ("prediction" in row, "label" in row)
    if correct is not None:
        if any(pair):
            raise BadRequestError(f"{at}correct", "send either correct, or prediction and label, not both")
        if not isinstance(correct, bool):
            raise BadRequestError(f"{at}correct", "must be true or false")
        return correct
    if not all(pair):
        missing = "correct" if not any(pair) else "label" if pair[0] else "prediction"
        raise BadRequestError(
            f"{at}{missing}", "missing: send correct (true or false), or both prediction and label"
        )
    prediction, label = row["prediction"], row["label"]
    if _kind(prediction) is None:
        raise BadRequestError(f"{at}prediction", "must be a string, a number, true or false")
    if _kind(label) != _kind(prediction):
        raise BadRequestError(
            f"{at}label",
            f"must be of the kind of prediction ({_kind(prediction)}), or the two can never be equal",
        )
    return bool(prediction == label)


def _kind(value: object) -> str | None:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
