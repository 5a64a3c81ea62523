"""One Job of a fleet does the work, the others wait for it: claims ``claim-1.json``, ``claim-2.json``, ... beside the artifact that is to be made.

Who creates the claim of the next number does the work; it overwrites its claim every few seconds, and a last time when it has ended. A claim that has
ended, or that nobody overwrites any more, is over, and the next number is free. Only creating is what two could do at once, and the store lets one
win; nothing is ever deleted, and no clock is compared with another's. While a user's container works nobody can overwrite the claim: it says so
before, and may be silent for longer. Nothing but double work depends on claims: an artifact is what its manifest says, whoever made it. A store
that cannot create conditionally lets everybody work, and so does one that is away.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from modelrollout.api.tasks import ExitCode, TaskResult
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import LOGGER, Progress
from modelrollout.optimizer.fetch import Store

BEAT_SECONDS = 10.0
DEAD_SECONDS = 60.0  # without a beat: the node is lost, or a native call holds the interpreter; then two do the work
HANDED_SECONDS = 600.0  # while a user's container works: one that takes longer may be doubled, and one that died is waited for as long
POLL_SECONDS = 5.0
MOST_CLAIMS = 100  # work that failed so often is not waited for any more: finding the last claim would take too many requests
_LIMIT_BYTES = 65536

# Of equal work equal for all: what was measured of the result. Bad input may be that of one Job's places and credentials only.
_VERDICTS = frozenset({ExitCode.GATE_FAILED, ExitCode.GATE_INCONCLUSIVE})


class _Written(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    owner: str
    nonce: str
    beat: int = 0
    handed: bool = False  # to the containers that follow in the pod
    ended: bool = False
    code: Literal[12, 13] | None = None  # with ``result``: the gate's verdict
    result: TaskResult | None = None


@dataclass
class Claim:
    """The right to do the work, kept by a thread until ``end``."""

    store: Store
    name: str
    mine: _Written
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        beat = 0
        while not self._over.wait(BEAT_SECONDS):
            beat += 1
            self._write(self.mine.model_copy(update={"beat": beat}))

    def end(self, error: JobError | None = None) -> None:
        """Let the others go on; with the gate's verdict, those who waited for it take it as theirs."""
        self._over.set()
        self._thread.join()  # a late beat would bring the claim back
        verdict = error if error is not None and error.code in _VERDICTS else None
        told = {"code": int(verdict.code), "result": verdict.result()} if verdict else {}
        self._write(self.mine.model_copy(update={"ended": True, **told}))

    def hand_over(self) -> str:
        """Beat no more, for this container ends and a user's follows; returns what ``resumed`` needs in the container after that."""
        self._over.set()
        self._thread.join()
        self._write(self.mine.model_copy(update={"handed": True}))
        return f"{self.name}\n{self.mine.model_dump_json()}"

    def _write(self, content: _Written) -> None:
        try:
            self.store.write(self.name, content.model_dump_json(exclude_defaults=True).encode())
        except JobError as error:
            LOGGER.warning("cannot write the claim", extra={"fields": {"reason": error.reason}})


def resumed(store: Store, handed: str) -> Claim:
    """The claim that ``hand_over`` told of. Should somebody have taken it over meanwhile, two do the work."""
    name, _, mine = handed.partition("\n")
    return Claim(store, name, _Written.model_validate_json(mine))


class Ended(Exception):
    """The Job that was waited for has ended: look for what it made."""


def take(store: Store, owner: str, progress: Progress, give_up: float) -> Claim | None:
    """The claim, as soon as nobody else works; None: work without one, for nobody is to be waited for any more.

    ``owner``: NAMESPACE/REVISION, ``give_up``: a time of ``time.monotonic``.

    Raises Ended, or the JobError with which the gate of the Job ended that was waited for.
    """
    mine = _Written(owner=owner, nonce=uuid.uuid4().hex)
    for number in range(1, MOST_CLAIMS + 1):
        name = f"claim-{number}.json"
        found = _read(store, name)
        if found is None:
            if _create(store, name, mine):
                return Claim(store, name, mine)
            found = _read(store, name)
        if found is None or found.ended or found.owner == owner:  # our own: that of a pod before this one
            continue
        if _read(store, f"claim-{number + 1}.json") is not None:  # somebody waited for it in vain
            continue
        with progress.waiting(found.owner):
            last = _wait(store, name, found, give_up)
        if last.ended and last.code is not None and last.result is not None:
            text = f"{last.result.message} (the same work was done for {last.owner})"
            raise JobError(ExitCode(last.code), last.result.reason, text, last.result)
        if last.ended:
            raise Ended
        if time.monotonic() >= give_up:
            break
    LOGGER.warning("the work is done without a claim")
    return None


def _wait(store: Store, name: str, found: _Written, give_up: float) -> _Written:
    """The claim as it was last seen: ended, or without a beat for long, or when the patience is over."""
    changed = time.monotonic()
    while not found.ended and (now := time.monotonic()) < give_up and now - changed < (HANDED_SECONDS if found.handed else DEAD_SECONDS):
        time.sleep(POLL_SECONDS)
        seen = _read(store, name)
        if seen is not None and seen != found:
            found, changed = seen, time.monotonic()
    return found


def _create(store: Store, name: str, mine: _Written) -> bool:
    try:
        return store.write(name, mine.model_dump_json(exclude_defaults=True).encode(), "create")
    except JobError as error:
        LOGGER.warning("cannot write the claim", extra={"fields": {"reason": error.reason}})
        return True  # publishing tells, if it lasts


def _read(store: Store, name: str) -> _Written | None:
    try:
        content = store.read(name, max_bytes=_LIMIT_BYTES)
    except JobError:
        return None
    if content is None:
        return None
    try:
        return _Written.model_validate_json(content)
    except (ValidationError, RecursionError):
        return _Written(owner="", nonce="", ended=True)  # no claim of ours
