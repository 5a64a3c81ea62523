"""What keeps everybody but the kubelet from managing a server, laid over what an earlier operator
rendered; and how a dead model is noticed.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import Serving
from modelrollout.resources.hardening import (
    DIED,
    KEY_HEADER,
    LIVENESS,
    RESTRICTED,
    harden,
    hardening_version,
    is_latest,
)
from modelrollout.triton import histogram
from tests.unit.resources import objects as o

NAME = "digits"


def earlier() -> o.Object:
    """As builder 2 rendered it."""
    report: o.Object = json.loads(Path(__file__).with_name("template-builder-2.json").read_text())
    return report


def server(template: o.Object) -> o.Object:
    (actual,) = template["spec"]["containers"]
    return actual  # type: ignore[no-any-return]


def test_flags_mounts_key_and_probe_are_laid_over_a_frozen_template_and_nothing_else() -> None:
    before = earlier()
    retained = copy.deepcopy(before)
    after = harden(before, NAME)
    assert before == retained, "the frozen one is left alone"
    old, new = server(before), server(after)
    assert {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)} == {
        "args",
        "env",
        "volumeMounts",
        "livenessProbe",
    }
    rest = copy.deepcopy(after)
    rest["spec"]["containers"] = before["spec"]["containers"]
    assert rest["metadata"]["annotations"].pop("modelrollout.dev/hardened") == "2"
    assert rest == before, "same labels, volumes, init containers, image and placement"
    assert [e for e in new["env"] if e["name"] != "POD_UID"] == old["env"]
    others = ("--disable-auto-complete-config", "--exit-timeout-secs")
    assert [a for a in new["args"] if a.startswith(others)] == [
        a for a in old["args"] if a.startswith(others)
    ]
    assert [m for m in new["volumeMounts"] if m["name"] != "models"] == [
        m for m in old["volumeMounts"] if m["name"] != "models"
    ]


def test_a_hardened_server_has_one_immutable_model_and_a_key_of_its_pod() -> None:
    for template in (harden(earlier(), NAME), o.template()):
        container = server(template)
        args = dict(a.partition("=")[::2] for a in container["args"])
        assert args["--model-control-mode"] == "none" and "--load-model" not in args
        restricted = f"{','.join(RESTRICTED)}:{KEY_HEADER}=$(POD_UID)"
        assert args["--http-restricted-api"] == args["--grpc-restricted-protocol"] == restricted
        assert {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}} in container[
            "env"
        ]
        models = [m for m in container["volumeMounts"] if m["name"] == "models"]
        assert len(models) == 2 and all(m["readOnly"] for m in models)
        writable = [
            m for c in template["spec"]["initContainers"] for m in c["volumeMounts"] if m["name"] == "models"
        ]
        assert writable == [{"name": "models", "mountPath": "/models"}], (
            "only what fetches the model writes it"
        )


def test_what_hardened_as_is_told_from_what_is_not() -> None:
    old, new = earlier(), harden(earlier(), NAME)
    assert (
        hardening_version(old, NAME) is None
        and hardening_version(new, NAME) == "2"
        and harden(new, NAME) == new
    )
    live = copy.deepcopy(new)  # what the API server fills in
    server(live)["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
    server(live)["livenessProbe"]["successThreshold"] = 1
    assert hardening_version(live, NAME)
    for spoil in (
        lambda c: c["args"].append("--model-control-mode=explicit"),
        lambda c: c["args"].remove(next(a for a in c["args"] if a.startswith("--grpc-restricted"))),
        lambda c: c["volumeMounts"][0].pop("readOnly"),
        lambda c: c["volumeMounts"].append({"name": "models", "mountPath": "/more"}),
    ):
        bad = copy.deepcopy(new)
        spoil(server(bad))
        assert not hardening_version(bad, NAME)
    assert not hardening_version({}, NAME) and not hardening_version({"spec": {"containers": []}}, NAME)


def test_what_an_earlier_operator_has_laid_over_a_template_stays_until_a_restart() -> None:
    before = harden(earlier(), NAME, "1")
    assert hardening_version(before, NAME) == "1" and harden(before, NAME, "1") == before
    after = harden(before, NAME)
    assert set(server(after)["args"]) - set(server(before)["args"]) == {histogram.FLAG}
    assert hardening_version(after, NAME) == "2" and harden(after, NAME) == after
    assert server(after)["args"].count(histogram.FLAG) == 1
    assert [is_latest(v) for v in (None, "1", "2", "7")] == [False, False, True, True]
    assert histogram.FLAG in server(o.template())["args"], "new servers have it from the start"


def vllm() -> o.Object:
    serving = o.SERVING.model_dump(by_alias=True, exclude_none=True) | {"triton": {"backend": "VLLM"}}
    return o.template(Serving.model_validate(serving))


def test_vllm_may_unload_its_model_and_the_key_to_its_repository_is_random(tmp_path: Path) -> None:
    container = server(vllm())
    assert {"--model-control-mode=explicit", f"--load-model={o.NAME}"} <= set(container["args"])
    restricted = f"shared-memory,trace,logging:{KEY_HEADER}=$(POD_UID)"
    assert {f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"} <= set(
        container["args"]
    )
    fake = tmp_path / "tritonserver"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)

    def flags() -> list[str]:
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        run = subprocess.run([*container["command"], "--a=b c"], env=path, capture_output=True, text=True)
        return run.stdout.splitlines()

    own, http, grpc = flags()
    key = http.removeprefix(f"--http-restricted-api=model-repository:{KEY_HEADER}=")
    assert own == "--a=b c" and re.fullmatch(r"[0-9a-f-]{36}", key)
    assert grpc == f"--grpc-restricted-protocol=model-repository:{KEY_HEADER}={key}"
    assert flags()[1] != http, "another one in each container"


def test_vllms_servers_are_hardened_and_an_edited_one_is_not() -> None:
    made = vllm()
    assert hardening_version(made, o.NAME) == "2" and harden(made, o.NAME) == made
    edited = copy.deepcopy(made)
    server(edited)["command"] = ["tritonserver"]
    assert hardening_version(edited, o.NAME) is None
    before = harden(made, o.NAME, "1")
    assert "--model-control-mode=none" in server(before)["args"], "what an earlier operator laid over it"
    broken = copy.deepcopy(made)
    broken["spec"]["initContainers"][0]["env"][0]["value"] = "{"
    assert hardening_version(broken, o.NAME) is None


# --- the probe, with processes of these names


class Pod:
    """A server with two Python processes and an HTTP port; ``probe`` runs the liveness probe as the
    kubelet would.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mark = os.urandom(3).hex()  # other servers may run on this machine
        self.stub, self.server = f"stub{mark}", f"serv{mark}"
        for name in (self.stub, self.server):
            shutil.copy(str(shutil.which("bash")), folder / name)
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Live)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        stub = f"{folder}/{self.stub} -c"
        start = (
            f"{stub} 'sleep 300; :' & {stub} '{folder}/{self.stub} -c \"sleep 300; :\"; sleep 300; :' & read"
            " -r _"
        )
        self.process = subprocess.Popen(
            [folder / self.server, "-c", start], stdin=subprocess.PIPE, start_new_session=True
        )
        wait(lambda: len(self.stubs()) == 2 and len(self.forks()) == 1)

    def named(self) -> dict[int, int]:
        """Parents of the processes with the name of a stub that are alive, by number."""
        actual: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                text = stat.read_text()
                state, parent = text.rpartition(") ")[2].split()[:2]
                if f"({self.stub})" in text and state != "Z":
                    actual[int(stat.parent.name)] = int(parent)
        return actual

    def stubs(self) -> list[int]:
        """Those of the server itself."""
        return [number for number, parent in self.named().items() if parent == self.process.pid]

    def forks(self) -> list[int]:
        """Those that a stub has started."""
        return [number for number, parent in self.named().items() if parent != self.process.pid]

    def probe(self) -> subprocess.CompletedProcess[str]:
        script = (
            LIVENESS["exec"]["command"][2]
            .replace("(triton_python_b)", f"({self.stub})")
            .replace("(tritonserver)", f"({self.server})")
        )
        script = script.replace("/tmp/", f"{self.folder}/").replace(
            "/dev/termination-log", f"{self.folder}/said"
        )
        script = script.replace("/8000", f"/{self.http.server_port}")
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.http.shutdown()
        self.http.server_close()


class Live(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/v2/health/live" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


def wait(done: Any) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    actual = Pod(tmp_path)
    yield actual
    actual.close()


def test_servers_that_are_well_are_left_alone(pod: Pod) -> None:
    for _ in range(2):
        assert pod.probe().returncode == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_python_process_is_noticed_though_the_server_says_that_all_is_well(
    pod: Pod, how: signal.Signals
) -> None:
    assert pod.probe().returncode == 0
    os.kill(pod.stubs()[0], how)
    wait(lambda: pod.probe().returncode == 1)
    assert (pod.folder / "said").read_text().strip() == DIED


def test_one_that_is_gone_for_good_is_noticed_as_well(pod: Pod) -> None:
    listed = pod.probe()
    assert listed.returncode == 0
    (actual,) = pod.folder.glob(".stubs-of-*")
    actual.write_text(f"{actual.read_text().strip()} /proc/999999999\n")
    assert pod.probe().returncode == 1


def test_a_process_that_the_model_itself_starts_may_come_and_go(pod: Pod) -> None:
    """A fork of a stub has its name, and another parent."""
    assert pod.probe().returncode == 0
    (fork,) = pod.forks()
    os.kill(fork, signal.SIGKILL)
    wait(lambda: not pod.forks())
    assert pod.probe().returncode == 0


def test_a_server_that_refuses_connections_or_answers_otherwise_is_not_well(pod: Pod) -> None:
    """The kubelet asks twice before it believes that."""
    assert LIVENESS["failureThreshold"] == 2
    Live.status = 503
    try:
        assert pod.probe().returncode != 0
    finally:
        Live.status = 200
    assert pod.probe().returncode == 0
    pod.http.shutdown()
    pod.http.server_close()
    assert pod.probe().returncode != 0


def test_the_probe_runs_nothing_that_the_environment_of_a_spec_names(pod: Pod) -> None:
    """A bash with SHELLOPTS=xtrace expands PS4 before each command, and so runs what it names."""
    fields = {"pod": {"env": [{"name": "HF_HOME", "value": "/tmp"}]}}
    template = o.template(Serving.model_validate(o.SERVING.wire() | fields))
    assert hardening_version(template, o.NAME) == "2" and harden(template, o.NAME) == template
    _, found, asks = server(template)["livenessProbe"]["exec"]["command"][2].partition("exec timeout 50 ")
    assert found
    ran = pod.folder / "ran"
    hostile = f"env SHELLOPTS=xtrace 'PS4=$(touch {ran})' {asks}".replace("/8000", f"/{pod.http.server_port}")
    run = subprocess.run(["sh", "-c", hostile], capture_output=True, text=True, timeout=60, check=False)
    # As root bash takes no PS4 from its environment, and shows by its trace that it took SHELLOPTS.
    assert (run.returncode, run.stderr, ran.exists()) == (0, "", False)


def test_without_variables_of_a_spec_the_probe_is_what_it_was() -> None:
    fields = {"pod": {"env": [{"name": "HF_HOME", "value": "/tmp"}]}}
    more = o.template(Serving.model_validate(o.SERVING.wire() | fields))
    assert (
        server(o.template())["livenessProbe"] == LIVENESS == server(harden(earlier(), NAME))["livenessProbe"]
    )
    assert server(more)["livenessProbe"] != LIVENESS
    assert server(harden(more, o.NAME, "1"))["livenessProbe"] == LIVENESS


def test_a_list_that_cannot_be_written_kills_no_pod(pod: Pod) -> None:
    script = (
        LIVENESS["exec"]["command"][2]
        .replace("/tmp/", f"{pod.folder}/no-such-folder/")
        .replace("/8000", f"/{pod.http.server_port}")
    )
    assert subprocess.run(["sh", "-c", script], capture_output=True, timeout=60, check=False).returncode == 0


def test_templates_of_another_form_are_not_hardened_and_break_nothing() -> None:
    odd: list[Any] = [
        {"spec": {"containers": [{"image": "x"}]}},
        {"spec": {"containers": None}},
        {"spec": None},
        {"metadata": {"annotations": ["hardened"]}, "spec": {"containers": [{"name": "triton"}]}},
        {
            "metadata": {"annotations": {"modelrollout.dev/hardened": "1"}},
            "spec": {"containers": [{"name": "triton", "env": [{}], "args": [1]}]},
        },
        {
            "metadata": {"annotations": {"modelrollout.dev/hardened": "1"}},
            "spec": {"containers": [{"name": "triton", "volumeMounts": [{}]}]},
        },
    ]
    assert [hardening_version(template, NAME) for template in odd] == [None] * len(odd)


def test_what_a_newer_operator_has_laid_over_a_template_is_believed() -> None:
    newer = earlier() | {"metadata": {"annotations": {"modelrollout.dev/hardened": "7"}}}
    assert hardening_version(newer, NAME) == "7"


def test_version_1_is_what_it_was() -> None:
    """Pods run with it: a change is another version, for an operator's upgrade restarts nothing."""
    container = server(harden(earlier(), NAME, "1"))
    assert (
        hashlib.sha256(json.dumps(container, sort_keys=True).encode()).hexdigest()[:16] == "420e94ec9221157e"
    )
