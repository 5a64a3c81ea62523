"""PURE: what the fault proxy does to one call, and the rules that choose it. A rule counts how
often it was applied.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Call:
    """One request as the proxy sees it."""

    method: str
    path: str
    query: str = ""

    @property
    def is_watch(self) -> bool:
        return self.method == "GET" and ("watch=true" in self.query or "watch=1" in self.query)

    @property
    def is_write(self) -> bool:
        return self.method in WRITES

    @property
    def is_lease(self) -> bool:
        return "/coordination.k8s.io/" in self.path

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Refusal:
    """An answer of the proxy's own; the call never reaches the server."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)


@dataclass(frozen=True)
class Treatment:
    """What happens to a call. The default lets it pass."""

    delay: float = 0.0  # seconds before it is passed on
    refusal: Refusal | None = None
    cut: bool = False  # passed on, but the connection ends instead of the answer
    # called when the server has answered and the caller does not know yet; then as cut
    killed: Callable[[], None] | None = None
    rewrite: Callable[[bytes], bytes] | None = None  # of the answer's body
    # For watch streams, also those that are open already:
    end_after: float | None = None  # seconds of age at which the stream ends
    gone: bool = False  # it ends with the event of 410 Gone
    stall: bool = False  # nothing comes through any more; the stream ends when the stall does


PASS = Treatment()


class Rule(Protocol):
    """Chooses the treatment of each call; ``tried`` counts the calls that were not let pass,
    ``seen`` may name them.
    """

    tried: int
    seen: list[str]

    def __call__(self, call: Call) -> Treatment: ...


@dataclass
class PassAll:
    """No fault."""

    tried: int = 0
    seen: list[str] = field(default_factory=list)

    def __call__(self, call: Call) -> Treatment:
        return PASS


@dataclass
class KillAfterWrites:
    """SIGKILL after every write has reached the API server and before the operator knows; writes of
    the Lease are left out after the first.
    """

    kill: Callable[[], None]
    tried: int = 0
    seen: list[str] = field(default_factory=list)
    _leases: int = 0

    def __call__(self, call: Call) -> Treatment:
        if not call.is_write:
            return PASS
        if call.is_lease:
            self._leases += 1
            if self._leases > 1:  # every life begins with one: none would come further
                return PASS
        self.tried += 1
        self.seen.append(str(call))
        return Treatment(killed=self.kill)


@dataclass
class EveryOther:
    """The treatment for every other call of the same method and path, so that each is tried and
    each gets through at the second time.
    """

    treatment: Treatment
    chosen: Callable[[Call], bool]
    tried: int = 0
    seen: list[str] = field(default_factory=list)
    _times: Counter[str] = field(default_factory=Counter)

    def __call__(self, call: Call) -> Treatment:
        if call.is_watch or not self.chosen(call):
            return PASS
        key = str(call)
        self._times[key] += 1
        if self._times[key] % 2 == 0:
            return PASS
        self.tried += 1
        return self.treatment


@dataclass
class Always:
    """The treatment for every chosen call."""

    treatment: Treatment
    chosen: Callable[[Call], bool]
    tried: int = 0
    seen: list[str] = field(default_factory=list)

    def __call__(self, call: Call) -> Treatment:
        if not self.chosen(call):
            return PASS
        self.tried += 1
        return self.treatment


def any_call(call: Call) -> bool:
    return not call.is_watch


def writes(call: Call) -> bool:
    return call.is_write


def writes_but_leases(call: Call) -> bool:
    """A PUT whose connection breaks is sent once more by aiohttp itself. Of two writes in a row one
    would always be lost, and no leader last.
    """
    return call.is_write and not call.is_lease


def watches(call: Call) -> bool:
    return call.is_watch


_REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError"}


def refused(status: int, retry_after: int | None = None) -> Treatment:
    """As the API server itself refuses, with a Status object."""
    body: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": status,
        "reason": _REASONS[status],
        "message": f"chaos: {status} from the fault proxy",
    }
    headers = [("Content-Type", "application/json")]
    if retry_after is not None:
        body["details"] = {"retryAfterSeconds": retry_after}
        headers.append(("Retry-After", str(retry_after)))
    return Treatment(refusal=Refusal(status, json.dumps(body).encode(), tuple(headers)))


GONE_EVENT = (
    json.dumps(
        {
            "type": "ERROR",
            "object": {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "code": 410,
                "reason": "Expired",
                "message": "too old resource version",
            },
        }
    ).encode()
    + b"\n"
)


# --- what a Prometheus may answer


def with_nan(body: bytes) -> bytes:
    """Every value is NaN."""
    return _results(body, lambda series: [{**s, "value": [s["value"][0], "NaN"]} for s in series])


def empty(body: bytes) -> bytes:
    """Nothing was found."""
    return _results(body, lambda _: [])


def several(body: bytes) -> bytes:
    """Every series comes twice, the second time with an unknown label and another
    value.
    """

    def twice(series: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            *series,
            *(
                {**s, "metric": {**s["metric"], "chaos": "second"}, "value": [s["value"][0], "12345"]}
                for s in series
            ),
        ]

    return _results(body, twice)


def garbage(body: bytes) -> bytes:
    """Cut in half, and no JSON."""
    return b"<html>chaos " + body[: len(body) // 2]


def _results(body: bytes, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> bytes:
    try:
        answer = json.loads(body)
        if answer["data"]["resultType"] == "vector":
            answer["data"]["result"] = change(answer["data"]["result"])
    except (ValueError, LookupError, TypeError):
        return body
    return json.dumps(answer).encode()
