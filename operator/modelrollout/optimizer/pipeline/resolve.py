"""Pin the source: its SHA-256 and size."""

from __future__ import annotations

from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import ResolveTask
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.store.object_store import ObjectStore


def resolve(task: ResolveTask, progress: Progress) -> TaskResult:
    """Read the source once and keep nothing; raises JobError."""
    with progress.stage("resolve"):
        source = ObjectStore(task.source, "spec.model.uri").digest(
            max_bytes=task.max_bytes, advance=progress.update
        )
    return TaskResult(sha256=source.sha256, size_bytes=source.size)
