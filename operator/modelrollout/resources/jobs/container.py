"""A user's own container as a step of the prepare Job."""

from __future__ import annotations

from modelrollout.api.v1alpha1 import Container, Resources
from modelrollout.contract.common import CONTAINER_STEP, TASK_ENV
from modelrollout.contract.tasks import IN_DIR, OUT_DIR, PrepareTask
from modelrollout.resources.common import DISK, Object, bounded, container_security, on_disk
from modelrollout.resources.jobs.common import (
    CRASHED,
    FINAL,
    KILLED,
    LABEL_QUEUE,
    TERMINATED,
    fail_on,
    mount,
    task_json,
)

BEFORE = "before"  # our container that runs the steps before the user's
DISK_STEPS = "128Gi"  # on the node's disk: archive, content, the best, current and candidate model


def environment(container: Object, task: PrepareTask, part: str) -> list[Object]:
    """The environment of one of our containers, for its part of the task."""
    own = {"name": TASK_ENV, "value": task_json(task.model_copy(update={"part": part}))}
    return [own if variable["name"] == TASK_ENV else variable for variable in container["env"]]


def add_container(job: Object, task: PrepareTask, container: Container, resources: Resources) -> None:
    """Put the user's container between two of ours. It gets the folders that it reads and writes,
    and nothing else of the pod: no Secret, no task.

    The container before it makes the earlier steps; the one after it treats its output as
    untrusted.
    """
    pod = job["spec"]["template"]["spec"]
    fetch, convert = pod["initContainers"]
    own = (container.resources or resources).wire()
    on_a_disk = on_disk(own, DISK_STEPS)
    step: Object = {
        "name": CONTAINER_STEP,
        "image": container.image,
        "imagePullPolicy": "IfNotPresent",  # the digest pins it
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": own if LABEL_QUEUE in job["metadata"]["labels"] else on_a_disk,
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            mount("step-tmp", "/tmp"),
            mount("step-in", IN_DIR, readOnly=True),
            mount("step-out", OUT_DIR),
        ],
    }
    step |= {
        name: value for name, value in (("command", container.command), ("args", container.args)) if value
    }
    input_mount, output_mount = (
        mount("step-in", IN_DIR),
        [mount("step-in", IN_DIR, readOnly=True), mount("step-out", OUT_DIR, readOnly=True)],
    )
    before = convert | {
        "name": BEFORE,
        "env": environment(convert, task, "BeforeContainer"),
        "volumeMounts": [*convert["volumeMounts"], input_mount],
    }
    after = convert | {
        "env": environment(convert, task, "AfterContainer"),
        "volumeMounts": [*convert["volumeMounts"], *output_mount],
    }
    pod["initContainers"] = [fetch, before, step, after]
    pod["volumes"] += bounded(
        [{"name": f"step-{name}", "emptyDir": {}} for name in ("in", "out", "tmp")], on_a_disk["limits"][DISK]
    )
    rules = job["spec"]["podFailurePolicy"]["rules"]
    rules.insert(0, fail_on(BEFORE, FINAL))
    rules.append(fail_on(BEFORE, CRASHED | {KILLED}))
    # Another try would most likely end the same way. The exception is a queue that suspends the
    # Job: it terminates the pod, and the status does not say so.
    rules.append(fail_on(CONTAINER_STEP, TERMINATED | {0}, "NotIn"))
