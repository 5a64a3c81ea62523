"""The children that a written state calls for. Only ``transitions`` writes that state."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from modelrollout.rollout.desired.jobs import is_look, stage_job, waits_for_turn
from modelrollout.rollout.desired.pods import candidate_revision, replicas, trial_pods
from modelrollout.rollout.desired.revisions import beyond_history, new_revision, revision_status
from modelrollout.rollout.desired.traffic import header_revision, preview_revision, service_selector, split
from modelrollout.rollout.plan import Desired
from modelrollout.rollout.pod_restarts import restart_requested_at, revisions_to_harden
from modelrollout.rollout.snapshot import (
    Snapshot,
    serving_revision,
    still_draining,
)
from modelrollout.rollout.views import SpecifiedSnapshot


def desired(s: SpecifiedSnapshot, now: datetime) -> Desired:
    """All children of the state; the shell deletes what this does not name."""
    loaded, shares = serving_revision(s.status), split(s)
    servers = replicas(s, now)
    budget = loaded.revision if loaded else shares[0][0] if shares else None
    return Desired(
        new_revision=new_revision(s),
        work=None if s.shared.by or waits_for_turn(s.work) else stage_job(s),
        look=is_look(s),
        recreate_work=s.work.state == "Absent",
        servers=servers,
        restarts={name: at for name in servers if (at := restart_requested_at(s, name))},
        hardened=revisions_to_harden(s, servers),
        ends_first=frozenset(
            name
            for name in servers
            if (record := s.status.restarts.get(name)) and record.allow_downtime and not record.done
        ),
        narrow=bool(s.overly_open),
        split=shares,
        draining=frozenset(still_draining(s, now)),
        worse=frozenset(r.name for r in s.revisions if r.proven_worse and r.name not in servers),
        matched=header_revision(s),
        preview=preview_revision(s),
        selector=service_selector(s),
        budget=budget,
        canary_budget=_canary_budget(s, servers, budget),
        revision_status=revision_status(s),
        forget=beyond_history(s, now),
    )


def _canary_budget(s: SpecifiedSnapshot, servers: Mapping[str, int], budget: str | None) -> str | None:
    """The canary, if it has more than one pod that carry requests: a drain that took all of them
    would look like a failure of the version. Never the revision of ``budget``: a pod with two
    budgets cannot be evicted at all.
    """
    rollout = s.status.rollout
    revision = candidate_revision(rollout)
    if rollout is None or rollout.stage not in ("Canary", "Promote") or revision in (None, budget):
        return None
    pods = trial_pods(s) if s.exact_weights else servers.get(revision or "", 0)
    return revision if pods > 1 else None


def desired_traffic_only(s: Snapshot) -> Desired:
    """The weights of a rollback where spec cannot be read; everything else stays as it is."""
    shares = split(s)
    servers = {name: server.desired_replicas for name, server in s.servers.items()}
    return Desired(
        servers=servers, split=shares, selector=shares[0][0] if shares else None, narrow=bool(s.overly_open)
    )
