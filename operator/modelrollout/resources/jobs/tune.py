"""The Job that measures serving configurations."""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Data, Resources, Tune, seconds
from modelrollout.contract.common import REPOSITORY
from modelrollout.contract.tasks import TuneTask
from modelrollout.resources.common import Object, container_security, our_user
from modelrollout.resources.hardening import MODELS
from modelrollout.resources.jobs.common import FINAL, JobContext, build_job, fail_on, locate_data, mount
from modelrollout.resources.server import FETCH, Artifact, beside

_PROGRAM_TMP = "job-tmp"  # of our program; the server has its own
# The client's own throughput bounds what can be measured, so it gets two cores if it can.
_RESOURCES = Resources(requests={"cpu": "250m", "memory": "512Mi"}, limits={"cpu": "2", "memory": "2Gi"})
# Beyond the time for start and search: images are pulled, the last comparison is made.
_MORE_SECONDS = 600.0


def tune_job(
    context: JobContext, tune: Tune, source: tuple[str, Data] | None, frozen: Object, artifact: Artifact
) -> Object:
    """Runs our program beside a server of the ``frozen`` template.

    ``source``: the field that names the inputs, and the data set; None: inputs are made up.
    """
    data, located = None, []
    if source is not None:
        data, where = locate_data(*source, context.model.credentials, context.config, "tune")
        located.append(where)
    task = TuneTask(
        http=f"127.0.0.1:{names.PORT_HTTP}",
        repository=REPOSITORY,
        model=context.deployment,
        data=data,
        field=source[0] if source else "",
        objective_ms=seconds(tune.objective) * 1e3,
        share=tune.share,
        instances=tuple(tune.instances),
        timeout_seconds=seconds(tune.timeout),
    )
    job = build_job(
        context,
        names.COMPONENT_TUNE,
        "modelrollout.evaluator",
        task,
        located=located,
        resources=_RESOURCES,
        timeout=context.serving.startup_seconds() + seconds(tune.timeout) + _MORE_SECONDS,
    )
    job["spec"]["podFailurePolicy"]["rules"].insert(1, fail_on(FETCH, FINAL))
    pod, server = job["spec"]["template"]["spec"], beside(frozen, context.version, artifact, context.config)
    # The server's image may be untrusted: it shares neither a folder nor a user with our program,
    # so it cannot see what that fetches.
    (program,), (tmp, *secrets) = pod["containers"], pod["volumes"]
    program["securityContext"] = container_security(our_user(context.config))
    program["volumeMounts"][0] = program["volumeMounts"][0] | {"name": _PROGRAM_TMP}
    program["volumeMounts"].append(mount(MODELS, REPOSITORY, readOnly=True))
    volumes = [*server.pop("volumes"), tmp | {"name": _PROGRAM_TMP}, *secrets]
    pod.update(server, volumes=volumes)
    return job
