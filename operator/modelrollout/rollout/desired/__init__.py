"""The children that a written state calls for. Only ``transitions`` writes that state."""

from __future__ import annotations

from datetime import datetime

from modelrollout.rollout.desired.jobs import is_look, stage_job, waits_for_turn
from modelrollout.rollout.desired.pods import replicas
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
        budget=loaded.revision if loaded else shares[0][0] if shares else None,
        revision_status=revision_status(s),
        forget=beyond_history(s, now),
    )


def desired_traffic_only(s: Snapshot) -> Desired:
    """The weights of a rollback where spec cannot be read; everything else stays as it is."""
    shares = split(s)
    servers = {name: server.desired_replicas for name, server in s.servers.items()}
    return Desired(
        servers=servers, split=shares, selector=shares[0][0] if shares else None, narrow=bool(s.overly_open)
    )
