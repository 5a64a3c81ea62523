"""Clean-up of the artifact store: removes artifacts that no revision refers to and that are old.

The references are read from the cluster **before** the store is listed. That is safe: a Job reuses
only what a revision refers to, and its own folder is young. A folder is listed again right before
it is removed. Its manifest is removed first, so that a clean-up that is killed leaves no artifact
behind that looks whole.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import CleanTask
from modelrollout.jobs.errors import bad_input
from modelrollout.jobs.log import LOGGER, Progress, say
from modelrollout.optimizer.store.artifact import MANIFEST
from modelrollout.optimizer.store.backend import Listed
from modelrollout.optimizer.store.object_store import ObjectStore
from modelrollout.reasons import Reason

FIELD = "artifactCleanup"
# NAMESPACE/KEY-SALT-TRY/FILE; an earlier operator's folders are named after the key alone
_FOLDER = re.compile(r"^([a-z0-9][-a-z0-9]{0,62})/([0-9a-f]{64}(?:-[0-9a-f]{16}-[0-9a-f]{8})?)/([^/]+)$")


@dataclass
class Folder:
    """An artifact, or what is left of one."""

    newest: datetime
    size: int = 0


def deletable_artifacts(
    objects: Iterable[Listed],
    root: str,
    referenced: frozenset[str],
    namespaces: frozenset[str],
    before: datetime,
    untouched: frozenset[str] = frozenset(),
) -> dict[str, Folder]:
    """Folders below ``root`` (by NAMESPACE/KEY) to which nothing refers and in which nothing was
    written since ``before``.

    ``referenced``: URIs of artifacts in use; ``namespaces``: whose artifacts may go, empty: all;
    ``untouched``: whose stay. Objects that are not named like an artifact are not ours, and stay.
    """
    folders: defaultdict[str, Folder] = defaultdict(lambda: Folder(datetime.min.replace(tzinfo=UTC)))
    for file in objects:
        named = _FOLDER.match(file.name)
        if named is None or (namespaces and named[1] not in namespaces) or named[1] in untouched:
            continue
        folder = folders[f"{named[1]}/{named[2]}"]
        folder.newest = max(folder.newest, file.modified)
        folder.size += file.size
    base = root.rstrip("/")
    return {
        name: folder
        for name, folder in folders.items()
        if f"{base}/{name}" not in referenced and folder.newest < before
    }


def clean(task: CleanTask, progress: Progress) -> TaskResult:
    """Remove them, or with ``dry_run`` only log which; raises JobError."""
    referenced, untouched = _references(Path(task.references))
    store = ObjectStore(task.artifacts, FIELD, bucket=True)
    before = datetime.now(UTC) - timedelta(seconds=task.older_than_seconds)
    with progress.stage("list"):
        unreferenced = deletable_artifacts(
            store.list(), task.artifacts.uri, referenced, frozenset(task.namespaces), before, untouched
        )
    freed = 0
    with progress.stage("delete"):
        for number, (name, folder) in enumerate(sorted(unreferenced.items())):
            progress.update(number, len(unreferenced))
            say(
                "would delete" if task.dry_run else "delete",
                artifact=name,
                bytes=folder.size,
                newest=folder.newest.isoformat(),
            )
            if task.dry_run or _delete(task, name, before):
                freed += folder.size
    verb = "would free" if task.dry_run else "freed"
    return TaskResult(
        message=f"{len(unreferenced)} artifacts, {verb} {freed} bytes; {len(referenced)} are referred to",
        size_bytes=freed,
    )


def _delete(task: CleanTask, name: str, before: datetime) -> bool:
    """False where something was written into the folder since it was listed."""
    store = ObjectStore(
        task.artifacts.model_copy(update={"uri": f"{task.artifacts.uri.rstrip('/')}/{name}"}), FIELD
    )
    files = [file for file in store.list() if "/" not in file.name]
    if any(file.modified >= before for file in files):
        LOGGER.info("written meanwhile", extra={"artifact": name})
        return False
    for file in sorted(files, key=lambda f: (f.name != MANIFEST, f.name)):
        store.delete(file.name)
    return True


def _references(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """URIs in use, and namespaces to leave untouched, as ``modelrollout references`` writes them;
    raises JobError (ReferencesInvalid).

    A list that could not be read must never look empty.
    """
    try:
        references = json.loads(path.read_text())
        uris = frozenset(str(uri).rstrip("/") for uri in references["artifacts"])
        untouched = frozenset(map(str, references["untouched"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise bad_input(
            Reason.REFERENCES_INVALID,
            f"{path}: not what `modelrollout references` writes; nothing was deleted",
        ) from None
    return uris, untouched
