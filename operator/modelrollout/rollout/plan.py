"""The result of a pass: a status to write, children to converge to, or a wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelrollout.api.v1alpha1 import (
    ModelDeploymentStatus,
    ModelRevisionStatus,
)
from modelrollout.rollout.snapshot import Split


@dataclass(frozen=True)
class Event:
    """A Kubernetes event to post once a transition is written."""

    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True)
class NewRevision:
    """A revision to create; the operator renders its template."""

    name: str
    number: int
    sha256: str
    # of Triton, as servers of other revisions have reported them
    triton_versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Desired:
    """The children that the written state calls for, by revision; ``resources`` renders them."""

    new_revision: NewRevision | None = None
    work: tuple[str, str] | None = None  # (component, name) of the Job of the present stage
    look: bool = False  # it is a look at a source that is followed: refused, it is no problem of the rest
    # a Job of that name that exists does not count (``controller.observe.job_state``)
    recreate_work: bool = False
    servers: Mapping[str, int] = field(default_factory=dict)  # replicas by revision; others go away
    # by revision: a changed value replaces the pods
    restarts: Mapping[str, str] = field(default_factory=dict)
    # Revisions whose frozen template gets the hardening overlay, in this version; None is the
    # latest.
    hardened: Mapping[str, str | None] = field(default_factory=dict)
    # revisions whose pods may end before their successors are ready
    ends_first: frozenset[str] = frozenset()
    # close routes that open more than clients may use, also where spec cannot be read
    narrow: bool = False
    split: Split = ()
    matched: str | None = None  # revision for requests that carry the headers of abTest
    # revisions that keep their pods, and whatever mirrors requests to them
    draining: frozenset[str] = frozenset()
    # revisions without servers that were proven worse: pods of theirs that are ending get less time
    worse: frozenset[str] = frozenset()
    # revision behind the preview's host names and Service; None: there is no preview
    preview: str | None = None
    # revision behind the stable Service; "*" for all revisions; None: no Service yet
    selector: str | None = None
    budget: str | None = None  # revision whose pods a drain takes one at a time
    canary_budget: str | None = None  # the same of a canary
    revision_status: Mapping[str, ModelRevisionStatus] = field(default_factory=dict)
    forget: tuple[str, ...] = ()  # revisions beyond the history limit


@dataclass(frozen=True)
class Write:
    """Write ``status``, then post ``events``. No child changes in the same pass: the next one
    starts from the written state.
    """

    status: ModelDeploymentStatus
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Converge:
    """The written ``status`` stands: make the children match ``desired``. ``requeue_after``:
    seconds until the next pass; None waits for an event.
    """

    status: ModelDeploymentStatus
    desired: Desired
    requeue_after: float | None = None


@dataclass(frozen=True)
class Wait:
    """Write nothing, neither status nor children."""

    status: ModelDeploymentStatus
    requeue_after: float | None = None


Plan = Write | Converge | Wait


@dataclass(frozen=True)
class Transition:
    """A new state, or the old one with the seconds until the next pass."""

    status: ModelDeploymentStatus
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
