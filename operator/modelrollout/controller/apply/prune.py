"""Which children are deleted because they are no longer desired. PURE."""

from __future__ import annotations

from collections.abc import Iterator

from modelrollout.api import names
from modelrollout.controller.observe.observation import Observation
from modelrollout.controller.observe.pods import has_ended, pods_of_job
from modelrollout.kube.kinds import CHILDREN, DEPLOYMENT, JOB, POD, SERVICE
from modelrollout.kube.objects import Object, annotations_of, is_true, label
from modelrollout.resources.jobs.common import LABEL_QUEUE
from modelrollout.rollout.plan import Desired
from modelrollout.traffic.registry import mirrors_to


def no_longer_desired(observation: Observation, desired: Desired, rendered: list[Object]) -> Iterator[Object]:
    """Children to delete. A desired server stays even if it could not be rendered because its
    revision's evidence was lost.
    """
    keep = {(o["kind"], o["metadata"]["name"]) for o in rendered}
    keep |= {(kind, name) for name in desired.servers for kind in (DEPLOYMENT.kind, SERVICE.kind)}
    if desired.work is not None:
        keep.add((JOB.kind, desired.work[1]))
    for (kind, name), live in observation.children.items():
        resource = CHILDREN.get(kind)
        if resource is None or not resource.pruned or (kind, name) in keep:
            continue
        if (kind == JOB.kind and _has_finished(live, observation)) or _may_be_mirrored(
            live, observation, desired
        ):
            continue
        yield live


def _has_finished(job: Object, observation: Observation) -> bool:
    """A finished Job stays, with its pods and their logs, until its time to live is over.

    Ended pods count before the Job controller has drawn its conclusion. Should it try again, the
    new pod is observed, and the Job is deleted.
    """
    if is_true(job, "Complete") or is_true(job, "Failed"):
        return True
    pods = pods_of_job((o for (kind, _), o in observation.children.items() if kind == POD.kind), job)
    return bool(pods) and all(has_ended(p) for p in pods)


def _may_be_mirrored(live: Object, observation: Observation, desired: Desired) -> bool:
    """Whether ``live`` belongs to a mirror that the data plane may still use, for example because
    the status was lost meanwhile.

    It is deleted once its canary has drained and the data plane has accepted the route without it
    (that status wakes a pass).
    """
    if label(live, names.LABEL_COMPONENT) != names.COMPONENT_SHADOW:
        return False
    if label(live, names.LABEL_REVISION) in desired.draining:
        return True
    return mirrors_to(live, observation.observed.name, observation.children, observation.gateway)


def queued_for_outdated_request(live: Object, desired: Object) -> bool:
    """Whether a queued Job no longer matches the queue or resources in spec. It could wait forever,
    so it is recreated.

    The hashes of the requests are compared, not the Jobs: a webhook that changes Jobs would
    otherwise have each one recreated.
    """
    before, now = (annotations_of(o).get(names.ANNOTATION_EXECUTION) for o in (live, desired))
    queued = live["spec"].get("suspend") and label(live, LABEL_QUEUE) is not None
    return bool(queued) and None not in (before, now) and before != now
