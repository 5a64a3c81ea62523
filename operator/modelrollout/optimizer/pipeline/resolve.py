"""Pin the source: its SHA-256 and size."""

from __future__ import annotations

from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import ResolveTask
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.store.object_store import ObjectStore


def resolve(task: ResolveTask, progress: Progress) -> TaskResult:
    """Read the source once, unless it is known to be unchanged, and keep nothing; raises
    JobError.
    """
    store, known = ObjectStore(task.source, "spec.model.uri"), task.known
    with progress.stage("resolve"):
        if not task.follow:
            source = store.digest(max_bytes=task.max_bytes, advance=progress.update)
            return TaskResult(sha256=source.sha256, size_bytes=source.size)
        found = store.newer(known.etag if known else None, max_bytes=task.max_bytes, advance=progress.update)
    if found is None:
        assert known is not None
        return TaskResult(sha256=known.sha256, etag=known.etag)
    fetched, etag = found
    return TaskResult(sha256=fetched.sha256, size_bytes=fetched.size, etag=etag)
