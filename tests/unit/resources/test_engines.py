"""How a server that TensorRT accelerates gets its engines, and keeps what it has built: the program
that starts it, run here with stand-ins for tritonserver and nvidia-smi.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Serving, Tune
from modelrollout.contract.common import ENGINES, TENSORRT_ENV
from modelrollout.contract.tasks import FetchTask
from modelrollout.resources import engines
from modelrollout.resources.common import Object
from modelrollout.resources.hardening import TRITON, harden, hardening_version
from modelrollout.resources.jobs.tune import tune_job
from modelrollout.triton.config import parse, printed, with_tensorrt
from tests.unit.resources import objects as o

DIGEST, MODEL, NUMBER = "ab" * 32, "digits", 7
# Builds an engine where config.pbtxt says, unless one is there, and says which it has.
SERVER = """\
#!/bin/sh
if ls {kept}/*.engine > /dev/null 2>&1; then
  grep -h . {kept}/*.engine > {seen}
else
  echo built-{boot} > {kept}/graph_sm90.engine
  echo shapes > {kept}/graph_sm90.profile
  echo built > {seen}
fi
echo "$@" > {args}
exec /bin/sleep 60
"""


class Machine:
    """A pod on a node with one kind of GPU, the volume, and what the kubelet does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.ready, self.boots = folder, False, 0
        self.gpus, self.tensorrt = "GPU 0: NVIDIA H200 (UUID: GPU-1)\n", "10.9.0.34"
        self.volume, self.models, self.bin = folder / "volume", folder / "models", folder / "bin"
        for made in (self.volume, self.models / MODEL, self.bin):
            made.mkdir(parents=True)
        machine = self

        class Health(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mine = self.path == f"/v2/models/{MODEL}/versions/{NUMBER}/ready"
                self.send_response(200 if machine.ready and mine else 400)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Health)
        Thread(target=self.http.serve_forever, daemon=True).start()
        monkeypatch.setattr(names, "PORT_HTTP", self.http.server_port)
        monkeypatch.setattr(engines, "SHARED", str(self.volume))
        monkeypatch.setattr(engines, "REPOSITORY", str(self.models))
        self.patch, self.local, self.pid = monkeypatch, Path(), 0
        self.another_pod()

    def another_pod(self) -> None:
        """Whose /tmp is empty."""
        self.boots += 1
        self.local = self.folder / f"pod-{self.boots}"
        self.patch.setattr(engines, "ENGINES", str(self.local))
        self.configure()

    def configure(self, digest: str = DIGEST, workspace: int = 0) -> None:
        self.kept = self.local / f"{digest}-{workspace}"
        config = printed(with_tensorrt(parse('backend: "onnxruntime"'), workspace or None, str(self.kept)))
        (self.models / MODEL / "config.pbtxt").write_text(config)

    @property
    def shared(self) -> Path:
        return self.volume / self.kept.name / "GPU-0-NVIDIA-H200-" / self.tensorrt

    @contextlib.contextmanager
    def server(self, *flags: str) -> Iterator[str]:
        """One run of the container: what the server found, ``built`` if nothing."""
        self.boots, seen, args = self.boots + 1, self.folder / "seen", self.folder / "args"
        self.ready = False
        for left in (seen, args):
            left.unlink(missing_ok=True)
        program = SERVER.format(kept=self.kept, seen=seen, args=args, boot=self.boots)
        for name, text in (
            ("tritonserver", program),
            ("sleep", "#!/bin/sh\nexec /bin/sleep 0.05\n"),
            ("nvidia-smi", f"#!/bin/sh\n[ -z '{self.gpus}' ] && exit 9\nprintf %s '{self.gpus}'\n"),
        ):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "TRT_VERSION": self.tensorrt}
        command = [*engines.command(MODEL, NUMBER), *flags, "--last"]
        with subprocess.Popen(command, env=environment, start_new_session=True) as running:
            self.pid = running.pid
            try:
                until(lambda: args.exists() and args.read_text().endswith("--last\n"))
                yield seen.read_text().strip()
            finally:
                os.killpg(running.pid, signal.SIGKILL)

    def gets_ready(self) -> None:
        """And all that was started beside the server has ended: a child that ended stays, for
        nothing asks how.
        """
        self.ready = True
        until(lambda: not any(living(pid) for pid in members(self.pid) if pid != self.pid))

    def run(self, *flags: str) -> str:
        """A run whose model gets ready."""
        with self.server(*flags) as found:
            self.gets_ready()
            return found


def stat(pid: int) -> list[str]:
    """From its state on; empty: it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def members(session: int) -> list[int]:
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()]
    return [pid for pid in pids if stat(pid)[3:4] == [str(session)]]


def living(pid: int) -> bool:
    return stat(pid)[:1] not in ([], ["Z"])


def until(look: Any) -> None:
    end = time.monotonic() + 30
    while not look():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path, monkeypatch)
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_the_next_pod_has_what_the_first_has_built(machine: Machine) -> None:
    assert machine.run("--a=b", "--c") == "built"
    assert (machine.folder / "args").read_text() == "--a=b --c --last\n"
    assert sorted(p.name for p in machine.shared.iterdir()) == ["graph_sm90.engine", "graph_sm90.profile"]
    engine, folder = (machine.shared / "graph_sm90.engine").read_text().strip(), machine.shared.stat().st_ino
    machine.another_pod()
    assert machine.run() == engine
    assert machine.shared.stat().st_ino == folder, "what it has taken it hands on to no pod"


def test_nothing_is_handed_on_before_the_model_is_ready(machine: Machine) -> None:
    with machine.server():
        assert (machine.kept / "graph_sm90.engine").exists()
    assert list(machine.volume.iterdir()) == [] and not (machine.kept / ".whole").exists()
    assert machine.run() == "built", "what an ended server has left may be a part"


def test_a_container_that_restarts_has_its_engines_without_a_volume(machine: Machine) -> None:
    machine.volume.rmdir()
    assert machine.run() == "built"
    engine = (machine.kept / "graph_sm90.engine").read_text().strip()
    assert machine.run() == engine
    machine.another_pod()
    assert machine.run() == "built"


@pytest.mark.parametrize("change", ["gpu", "tensorrt", "digest", "workspace"])
def test_engines_are_for_one_gpu_one_version_of_tensorrt_and_one_model(machine: Machine, change: str) -> None:
    machine.run()
    machine.another_pod()
    if change == "gpu":
        machine.gpus = "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g.18gb Device 0: (UUID: MIG-1)\n"
    elif change == "tensorrt":
        machine.tensorrt = "11.0.0.1"
    elif change == "digest":
        machine.configure(digest="cd" * 32)
    else:
        machine.configure(workspace=1 << 30)
    assert machine.run() == "built"


def test_engines_with_which_the_model_gets_not_ready_are_built_and_replaced(machine: Machine) -> None:
    machine.run()
    (machine.shared / "graph_sm90.engine").write_text("damaged\n")
    machine.another_pod()
    with machine.server() as found:
        assert found == "damaged"  # and ends, or the startup probe ends it
    with machine.server() as found:
        assert found == "built"
        machine.gets_ready()
    assert not (machine.shared / ".old").exists()
    machine.another_pod()
    assert machine.run().startswith("built-")


def test_of_two_pods_that_have_built_at_once_the_first_hands_on(machine: Machine) -> None:
    with machine.server():
        machine.shared.mkdir(parents=True)
        (machine.shared / "graph_sm90.engine").write_text("of-the-other\n")
        machine.gets_ready()
    assert (machine.shared / "graph_sm90.engine").read_text() == "of-the-other\n"


@pytest.mark.parametrize(
    "said", ["", "NVIDIA-SMI has failed because it could not communicate with the driver.\n"]
)
def test_without_a_known_gpu_the_server_starts_and_nothing_is_kept(
    machine: Machine, capfd: pytest.CaptureFixture[str], said: str
) -> None:
    """nvidia-smi says on its standard output, too, why it names no GPU."""
    machine.gpus = said
    assert machine.run() == "built"
    assert list(machine.volume.iterdir()) == [] and "none are kept" in capfd.readouterr().err


def test_a_server_that_is_tuned_takes_engines_and_hands_none_on(machine: Machine) -> None:
    with machine.server("--model-control-mode=explicit") as found:
        assert found == "built"
        machine.gets_ready()
    assert not (machine.kept / ".whole").exists()
    machine.another_pod()
    machine.run()
    machine.another_pod()
    with machine.server("--model-control-mode=explicit") as found:
        assert found.startswith("built-")


def test_a_loader_that_wrote_no_engines_starts_the_server_alone(machine: Machine) -> None:
    (machine.models / MODEL / "config.pbtxt").write_text('backend: "onnxruntime"')
    machine.kept.mkdir(parents=True)  # for the stand-in
    with machine.server() as found:
        assert found == "built"
    assert not (machine.kept / ".tried").exists() and list(machine.volume.iterdir()) == []


def test_a_tensor_with_the_name_of_a_folder_is_no_folder_of_engines(machine: Machine) -> None:
    named = printed(parse(f'input {{ name: "{machine.local}/aa-0" dims: 1 }}'))
    config = machine.models / MODEL / "config.pbtxt"
    config.write_text(named + config.read_text())
    assert machine.run() == "built"
    assert (machine.shared / "graph_sm90.engine").exists() and not (machine.local / "aa-0").exists()


def test_engines_that_no_pod_has_taken_for_long_and_parts_of_lost_pods_are_removed(machine: Machine) -> None:
    old = time.time() - 91 * 86400
    stale, part = (
        machine.volume / ("cd" * 32 + "-0") / "GPU-0-NVIDIA-A10-" / "10.0",
        machine.volume / ".new-part",
    )
    for folder in (stale, part):
        folder.mkdir(parents=True)
        (folder / "graph.engine").write_text("x")
        os.utime(folder, (old, old))
    machine.run()
    assert not stale.exists() and not part.exists() and machine.shared.exists()


# --- the template


def accelerated(cache: bool = True, **fields: Any) -> Serving:
    tensorrt = fields | ({"cache": {"persistentVolumeClaim": {"claimName": "engines"}}} if cache else {})
    return Serving.model_validate(o.SERVING.wire() | {"accelerator": {"tensorRT": tensorrt}})


def parts(serving: Serving) -> tuple[Object, Object, list[Object]]:
    """The server, what its loader is told, and the volumes."""
    spec = o.template(serving)["spec"]
    [triton], [fetch] = spec["containers"], spec["initContainers"]
    return triton, {e["name"]: e.get("value") for e in fetch["env"]}, spec["volumes"]


def test_a_server_sees_the_folder_of_its_own_model_alone() -> None:
    triton, _, volumes = parts(accelerated())
    mount = {"name": "engines", "mountPath": "/engines", "subPath": o.OWNER_UID}
    assert [m for m in triton["volumeMounts"] if m["name"] == "engines"] == [mount]
    assert {"name": "engines", "persistentVolumeClaim": {"claimName": "engines"}} in volumes
    triton, _, volumes = parts(accelerated(cache=False))
    assert "engines" not in {m["name"] for m in [*triton["volumeMounts"], *volumes]}
    assert triton["command"][-1] == "tritonserver", "a container that restarts has its own engines"


def test_the_loader_is_told_of_the_workspace() -> None:
    assert parts(accelerated())[1][TENSORRT_ENV] == "{}"
    assert parts(accelerated(workspace="4Gi"))[1][TENSORRT_ENV] == '{"workspace_bytes":4294967296}'
    assert parts(accelerated(workspace=1000))[1][TENSORRT_ENV] == '{"workspace_bytes":1000}'
    triton, told, _ = parts(o.SERVING)
    assert TENSORRT_ENV not in told and triton["command"] == ["tritonserver"]


def test_the_startup_probe_lasts_as_long_as_loading_and_building() -> None:
    assert parts(accelerated())[0]["startupProbe"]["failureThreshold"] == 40 * 60
    assert parts(accelerated(buildTimeout="90s"))[0]["startupProbe"]["failureThreshold"] == 690
    assert parts(o.SERVING)[0]["startupProbe"]["failureThreshold"] == 600


def test_hardening_lies_over_it() -> None:
    template = o.template(accelerated())
    assert hardening_version(template, o.NAME) == "2" and harden(template, o.NAME) == template


def test_a_server_that_is_tuned_has_the_folder_too() -> None:
    job = tune_job(o.context("t"), Tune(objective="50ms"), None, o.template(accelerated()), o.ARTIFACT)
    spec = o.pod(job)
    triton = next(c for c in spec["initContainers"] if c["name"] == TRITON)
    assert [m["subPath"] for m in triton["volumeMounts"] if m["name"] == "engines"] == [o.OWNER_UID]
    assert [m for c in spec["containers"] for m in c["volumeMounts"] if m["name"] == "engines"] == []
    assert "--model-control-mode=explicit" in triton["args"] and triton["command"][0] == "sh"
    usual = tune_job(o.context("t"), Tune(objective="50ms"), None, o.template(), o.ARTIFACT)
    longer = tune_job(
        o.context("t", serving=accelerated()), Tune(objective="50ms"), None, o.template(), o.ARTIFACT
    )
    assert o.pod(longer)["activeDeadlineSeconds"] - o.pod(usual)["activeDeadlineSeconds"] >= 30 * 60


def test_kubernetes_expands_nothing_in_the_program() -> None:
    """It replaces $(NAME) by a variable of the container, and $$ by $."""
    program = engines.command(MODEL, NUMBER)[2]
    assert "$$" not in program and "@" not in program.replace('"$@"', "")
    assert ENGINES in program


def test_the_task_of_the_loader_is_what_it_was() -> None:
    assert FetchTask.model_validate(o.task(o.deployment(o.template(accelerated())))).target == "/models"
