"""The operator in a real cluster, by its chart, with two replicas; shared by all end-to-end
tests.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import obstore
import pytest
import requests
import yaml
from numpy.typing import NDArray

from demo import target as targets
from demo.cluster import RELEASE, SYSTEM_NAMESPACE, Cluster, NotThereError, secret
from demo.crashes import CrashLog, Failed, remarks, split
from demo.setup import CHART, SECRET, chart_values
from tests.e2e import models

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
UNREACHABLE = "unreachable"
RECORD_SECONDS = 15.0  # the kubelet's record of a crash comes within this time
LAST = ("test_flavours", "test_story")  # whose images take minutes to make, and what takes longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LAST.index(item.path.stem) + 1 if item.path.stem in LAST else 0)


@contextmanager
def by_turns(what: str) -> Iterator[None]:
    """Of the processes that run tests side by side (pytest-xdist) one at a time is within."""
    path = ROOT / "build" / f"{what}.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def condition(deployment: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition that this answer of the API server holds: what is judged together is read at
    once.
    """
    actual = {c["type"]: c for c in (deployment.get("status") or {}).get("conditions", [])}
    return actual.get(kind, {"status": "Unknown", "reason": "", "message": ""})


class Stage:
    """A namespace with the store's Secret, models and data in the store, and words for what the
    tests do.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def uri(self, key: str) -> str:
        return f"s3://{self.cluster.target.store.models}/e2e/{key}"

    def data(self, key: str) -> str:
        return f"s3://{self.cluster.target.store.data}/e2e/{key}"

    def traffic(self, *http: str, grpc: str | None = None) -> dict[str, Any]:
        """``spec.traffic``: the target's Gateway with these host names."""
        gateway = self.cluster.target.gateway
        return {
            "gateway": {"name": gateway.name, "namespace": gateway.namespace},
            "http": {"hostnames": list(http)},
            **({"grpc": {"hostnames": [grpc]}} if grpc else {}),
        }

    def deployment(self, name: str, file: str = "good.onnx", **spec: Any) -> dict[str, Any]:
        """A ModelDeployment of one small pod of that model file; ``spec`` replaces whole
        sections.
        """
        return {
            "apiVersion": "modelrollout.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "model": {"uri": self.uri(file)},
                "serving": {
                    "replicas": 1,
                    "resources": {
                        "limits": {"nvidia.com/gpu": 1, "cpu": "500m", "memory": "512Mi"},
                        "requests": {"cpu": "100m", "memory": "128Mi"},
                    },
                },
                "rollout": {"progressDeadline": "2m"},
                **spec,
            },
        }

    def query(self, promql: str) -> list[dict[str, Any]]:
        """What Prometheus answers now: a list of ``metric`` and ``value``."""
        url = urlsplit(self.cluster.target.prometheus)
        name, namespace = str(url.hostname).split(".")[:2]
        address = self.cluster.service_address(namespace, name, url.port or 80)
        answer = requests.get(f"http://{address}/api/v1/query", params={"query": promql}, timeout=10).json()
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def apply(self, *objects: dict[str, Any]) -> None:
        self.cluster.apply(*objects)

    def set_rollout(self, name: str, changes: dict[str, Any]) -> None:
        """Change fields of spec.rollout and leave the others."""
        patch = json.dumps({"spec": {"rollout": changes}})
        self.cluster.kubectl("patch", "mdep", name, "-n", self.namespace, "--type=merge", "-p", patch)

    def get(self, name: str) -> dict[str, Any]:
        return self.cluster.deployment(self.namespace, name)

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        return condition(self.get(name), kind)

    def until(self, what: str, look: Callable[[], T | None], limit: float = 120) -> T:
        """What ``look`` finds, or a failure that says what was waited for and how things stand."""
        end = time.monotonic() + limit
        while True:
            reading = look()
            if reading:
                return reading
            if time.monotonic() > end:
                state = self.cluster.kubectl("get", "mdep,mrev,pods,jobs", "-n", self.namespace)
                raise AssertionError(f"not seen within {limit:.0f} s: {what}\n{state}")
            time.sleep(0.5)

    def until_ready(self, name: str, limit: float = 150) -> dict[str, Any]:
        """The ModelDeployment, once it is Ready and its revision has the evidence, which is written
        in the pass after.
        """

        def look() -> dict[str, Any] | None:
            now = self.get(name)
            current = (now.get("status") or {}).get("observedGeneration") == now["metadata"]["generation"]
            if not current or condition(now, "Ready")["status"] != "True":
                return None
            stable = now["status"]["stable"]["revision"]
            return now if self.cluster.revision(self.namespace, stable).get("status") else None

        return self.until(f"{name} is Ready", look, limit)

    def until_stalled(self, name: str, reason: str, limit: float = 150) -> str:
        """The message of Stalled once it is True for that reason; another reason is a failure at
        once, unless it is what was said of an earlier spec.
        """

        def look() -> dict[str, Any] | None:
            now = self.get(name)
            stalled = condition(now, "Stalled")
            if stalled["status"] != "True":
                return None
            if stalled["reason"] == reason:
                return stalled
            is_current = stalled["observedGeneration"] == now["metadata"]["generation"]
            assert not is_current, f"{name}: {stalled['reason']}: {stalled['message']}"
            return None

        return str(self.until(f"{name} is Stalled for {reason}", look, limit)["message"])

    def until_outcome(self, revision: str, outcome: str) -> None:
        """It is written into the revision in a pass after that which wrote it into the
        deployment.
        """
        self.until(
            f"{revision} is {outcome}",
            lambda: self.cluster.revision(self.namespace, revision)["status"]["outcome"] == outcome,
        )

    def events(self, name: str) -> list[str]:
        actual = self.cluster.get(f"/api/v1/namespaces/{self.namespace}/events")["items"]
        return [e["reason"] for e in actual if e["involvedObject"]["name"] == name]

    def answers(self, name: str, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The served model's outputs by name."""
        body = {
            "inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}]
        }
        address = self.cluster.service_address(self.namespace, name, 8000)
        answer = requests.post(f"http://{address}/v2/models/{name}/infer", json=body, timeout=20)
        assert answer.status_code == 200, answer.text
        return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer.json()["outputs"]}

    def crash_log(self, name: str) -> CrashLog:
        """What the containers of a model's servers record of crashes."""
        servers = f"modelrollout.dev/name={name},modelrollout.dev/component=server"
        return CrashLog(lambda: self.cluster.pods(self.namespace, servers))

    def unexplained(self, failures: Sequence[Failed], log: CrashLog) -> list[Failed]:
        """The failed requests without those that a recorded crash of Triton explains, which are
        named. The kubelet may write the record a moment after the requests have failed.
        """
        end = time.monotonic() + RECORD_SECONDS
        while True:
            log.look()
            left, excused = split(failures, log.crashes)
            if not left or time.monotonic() > end:
                break
            time.sleep(0.5)
        for remark in remarks(excused, log.crashes):
            print(remark)  # noqa: T201
        return left

    def served(self, name: str, send: Callable[[], requests.Response], count: int) -> list[requests.Response]:
        """The good answers to so many requests; none may fail but by a crash of Triton."""
        good: list[requests.Response] = []
        failures: list[Failed] = []
        for _ in range(count):
            at = time.time()
            answer, error = answer_to(send)
            if error is None and answer is not None:
                good.append(answer)
            else:
                failures.append(Failed(at, time.time() - at, error or ""))
        left = self.unexplained(failures, self.crash_log(name))
        assert not left, f"{len(left)} of {count} requests failed: {left[:3]}"
        return good

    def artifacts(self) -> set[str]:
        """URIs of this namespace's whole artifacts in the store."""
        bucket = self.cluster.target.store.artifacts
        listed = [
            o["path"]
            for page in obstore.list(self.cluster.bucket(bucket), f"{self.namespace}/")
            for o in page
        ]
        return {
            f"s3://{bucket}/{path.removesuffix('/manifest.json')}"
            for path in listed
            if path.endswith("/manifest.json")
        }

    def gone(self, name: str) -> bool:
        try:
            self.get(name)
        except NotThereError:
            return True
        return False


def answer_to(send: Callable[[], requests.Response]) -> tuple[requests.Response | None, str | None]:
    """The answer to a request, and why it is no good one."""
    try:
        answer = send()
    except requests.RequestException as e:
        return None, type(e).__name__
    good = answer.status_code == 200
    return answer, None if good else f"HTTP {answer.status_code}: {answer.text[:200]}"


class Asking:
    """Requests through the gateway, twenty a second, counted by status code, or by the error where
    there is none. At the end those that a crash of Triton explains are taken out.
    """

    def __init__(self, stage: Stage, name: str) -> None:
        self.codes: Counter[str] = Counter()
        self._stage, self._log, self._stack = stage, stage.crash_log(name), ExitStack()
        self._failures: list[Failed] = []
        self._url = f"http://{stage.cluster.target.gateway.http}/v2/models/{name}/infer"
        self._host, self._end = f"{name}.e2e.example", threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        body = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [0.1] * 16}]}
        while not self._end.wait(0.05):
            at = time.time()
            _, error = answer_to(
                lambda: requests.post(self._url, json=body, headers={"Host": self._host}, timeout=10)
            )
            if error is None:
                self.codes["200"] += 1
            else:
                self.codes[_code(error)] += 1
                self._failures.append(Failed(at, time.time() - at, error))

    def __enter__(self) -> Counter[str]:
        self._stack.enter_context(self._log.following())
        self._thread.start()
        return self.codes

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._stack.close()
        unexplained = Counter(_code(f.error) for f in self._stage.unexplained(self._failures, self._log))
        for code in {_code(f.error) for f in self._failures}:
            self.codes[code] = unexplained[code]
        self.codes += Counter()  # without zeros


def _code(error: str) -> str:
    """The status code of a refusal, ``404`` of ``HTTP 404: no route``; else the error itself."""
    refusal = re.match(r"HTTP (\d+)", error)
    return refusal[1] if refusal else error


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The sandbox, or with KUBECONTEXT a cluster of one's own that TARGET describes
    (docs/how-to/demo.md); REGISTRY says where its images are.
    """
    context, registry = os.environ.get("KUBECONTEXT"), os.environ.get("REGISTRY")
    if context is None:
        return Cluster(targets.sandbox(None, registry))
    return Cluster(targets.from_file(Path(os.environ["TARGET"]), None, context, registry))


@pytest.fixture(scope="session", autouse=True)
def own_images(request: pytest.FixtureRequest) -> Iterator[Future[str]]:
    """What tests that ask for ``flavours`` need on the sandbox's nodes, made while others run: the
    optimizer's heavy images, and that of examples/training-image, whose name by digest it is.
    """

    def sandbox(*arguments: str) -> str:
        made = subprocess.run(
            ["nice", sys.executable, "-m", "sandbox", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        return made.stdout.strip()

    def make() -> str:
        flavours = (argument for flavour in targets.FLAVOURS for argument in ("--flavour", flavour))
        with by_turns("images"):
            sandbox("load-images", *flavours)
            return sandbox("load-own-image", "training-example", str(ROOT / "examples" / "training-image"))

    with ThreadPoolExecutor(1) as pool:
        desired = "KUBECONTEXT" not in os.environ and any(
            "flavours" in getattr(item, "fixturenames", ()) for item in request.session.items
        )
        yield pool.submit(make if desired else str)


@pytest.fixture(scope="session")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The release, with a second Prometheus that nothing answers at. Triton waits as long for idle
    connections of the gateway as for requests: the exit timeout is short, for requests here take
    milliseconds.
    """
    values = chart_values(cluster.target)
    values["drain"] = {"exitTimeoutSeconds": 5}
    values["prometheus"].append({"name": UNREACHABLE, "url": "http://127.0.0.1:9"})
    path = tmp_path_factory.mktemp("chart") / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    where = ["--namespace", SYSTEM_NAMESPACE, "--create-namespace"]
    with by_turns("release"):
        cluster.helm(
            "upgrade", "--install", RELEASE, str(CHART), *where,
            "--values", str(path), "--wait", "--timeout", "5m",
        )  # fmt: skip
    return cluster


@pytest.fixture(scope="module")
def stage(
    operator: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """A fresh namespace for each module of tests."""
    yield from made_stage(
        operator,
        "e2e-" + Path(str(request.path)).stem.removeprefix("test_").replace("_", "-"),
        tmp_path_factory.mktemp("files"),
    )


def made_stage(operator: Cluster, namespace: str, folder: Path) -> Iterator[Stage]:
    """A namespace with all that a Stage needs, until its end."""
    operator.fresh_namespace(namespace)
    store = operator.target.store
    keys = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
    operator.apply(
        secret(namespace, SECRET, keys), secret(namespace, "wrong-keys", dict.fromkeys(keys, "nothing-valid"))
    )
    operator.upload(store.models, {f"e2e/{p.name}": p for p in models.write_models(folder)})
    operator.upload(store.data, {f"e2e/{p.name}": p for p in models.write_data(folder)})
    yield Stage(operator, namespace)
    operator.kubectl("delete", "namespace", namespace, "--wait=false")
