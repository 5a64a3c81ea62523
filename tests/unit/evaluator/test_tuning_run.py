"""The measuring program of tuning, against a server that speaks enough of Triton's HTTP
protocol.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelrollout.contract.common import RESULT_LIMIT_BYTES, DataSet, Location, ServingConfig
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import Batching, TuneTask
from modelrollout.evaluator.tuning import run as program
from modelrollout.evaluator.tuning import search
from modelrollout.evaluator.tuning.search import Load, Space, Trial
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.jobs.runner import encode, parse_task
from modelrollout.triton.client import TritonError
from modelrollout.triton.config import parse, printed, render, serving_of, with_serving
from modelrollout.triton.load import encoded, window
from modelrollout.triton.tensors import TensorSpec

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("scores", "FP32", (-1, 3))
NAME = "digits"


@dataclass
class Repo:
    """A server without models until one is loaded. ``refuses``: configurations that it does not
    load; ``dies``: under which requests fail.
    """

    shape: tuple[int, ...] = (-1, 4)
    datatype: str = "FP32"
    refuses: Callable[[dict[str, Any]], bool] = lambda config: False
    dies: Callable[[dict[str, Any]], bool] = lambda config: False
    loaded: list[dict[str, Any]] = field(default_factory=list)
    serving: dict[str, Any] | None = None
    together: int = 0  # models that were there when another was loaded
    away: int = 0  # looks for which no server is there
    rows: list[int] = field(default_factory=list)
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, path: str) -> tuple[int, Any]:
        if path == "/v2/health/live":
            self.away -= 1
            return (503 if self.away >= 0 else 200), {}
        if path == f"/v2/models/{NAME}/ready":
            return (200 if self.serving else 400), {}
        inputs = [{"name": "x", "datatype": self.datatype, "shape": list(self.shape)}]
        return 200, {"name": NAME, "versions": ["3"], "inputs": inputs, "outputs": []}

    def told(self, path: str, body: bytes, header_length: int) -> tuple[int, Any]:
        if path == f"/v2/repository/models/{NAME}/unload":
            self.serving = None
            return 200, {}
        if path == f"/v2/repository/models/{NAME}/load":
            config = json.loads(json.loads(body)["parameters"]["config"])
            self.together += self.serving is not None
            if self.refuses(config):
                return 400, {"error": "failed to load 'digits': out of memory"}
            self.serving = config
            self.loaded.append(config)
            return 200, {}
        if self.serving is None or self.dies(self.serving):
            return 500, {"error": "CUDA error"}
        shape = json.loads(body[:header_length])["inputs"][0]["shape"]
        with self.lock:
            self.rows.append(np.frombuffer(body[header_length:], np.float32).reshape(shape).shape[0])
        return 200, {"model_name": NAME, "model_version": "3", "outputs": []}


@contextmanager
def started(repo: Repo) -> Iterator[Repo]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:5])
            self.wfile.write(body[5:])  # in parts, as large answers come

        def do_GET(self) -> None:
            self.answer(*repo.asked(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(
                *repo.told(self.path, body, int(self.headers.get("Inference-Header-Content-Length", 0)))
            )

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            """A window ends by closing its connections."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    repo.address = f"127.0.0.1:{server.server_port}"
    try:
        yield repo
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that they are all tried, however long this machine takes for them."""
    monkeypatch.setattr(
        program,
        "space",
        lambda instances, max_batch, objective_ms: Space((1, 2), (0, 4) if max_batch else (0,), (0,)),
    )
    monkeypatch.setattr(search, "MAX_IN_FLIGHT", 4)


def task(repo: Repo, folder: Path, max_batch: int = 4, **changes: Any) -> TuneTask:
    (folder / NAME).mkdir(exist_ok=True)
    (folder / NAME / "config.pbtxt").write_text(
        render([X], [Y], Batching(max_batch_size=max_batch), "KIND_AUTO")
    )
    usual = {
        "http": repo.address,
        "repository": str(folder),
        "model": NAME,
        "objective_ms": 5000.0,
        "share": 0.5,
        "window_seconds": 0.02,
    }
    return TuneTask.model_validate({**usual, "instances": (1, 2), "timeout_seconds": 600.0, **changes})


def test_configurations_are_loaded_one_at_a_time_and_measured(tmp_path: Path) -> None:
    with started(Repo()) as repo:
        result = program.tune(task(repo, tmp_path), Progress())
    assert (
        result.tuned is not None and result.tuned.configured.throughput > 0 and result.tuned.configured.within
    )
    assert result.tuned.configured.serving == ServingConfig(instances=1, batch=4)
    assert result.tuned.candidates >= 2 and result.tuned.failed == 0
    assert repo.together == 0, "two models at a time may be too much for a GPU's memory"
    first = repo.loaded[0]
    assert (
        first["max_batch_size"] == 4
        and first["backend"] == "onnxruntime"
        and first["instance_group"][0]["count"] == 1
    )
    assert set(repo.rows) == {1}, "requests of one sample"
    assert "made up" in result.message


def test_the_data_given_is_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Local:
        def __init__(self, location: Location, field: str) -> None:
            assert field == "spec.serving.tune.data.uri"

        def download(self, path: Path, **_: Any) -> None:
            np.savez(path, x=np.ones((3, 4), np.float32), labels=np.zeros(3, np.int64))

    monkeypatch.setattr(program, "ObjectStore", Local)
    with started(Repo()) as repo:
        specified = task(
            repo,
            tmp_path,
            data=DataSet(location=Location(uri="s3://data/x.npz")),
            field="spec.serving.tune.data",
        )
        result = program.tune(specified, Progress())
        sent, rows = program.requests(specified, [X], Progress())
    assert result.message == "" and result.tuned is not None
    assert (len(sent), rows) == (3, 1)
    head, _, body = sent[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST /v2/models/{NAME}/infer ".encode()) and np.frombuffer(
        body[-16:], np.float32
    ).tolist() == [1, 1, 1, 1]


def test_a_candidate_that_does_not_load_is_failed(tmp_path: Path) -> None:
    with started(Repo(refuses=lambda config: config["instance_group"][0]["count"] == 2)) as repo:
        result = program.tune(task(repo, tmp_path), Progress())
    assert result.tuned is not None and result.tuned.failed >= 1 and result.tuned.configured.throughput > 0
    told = [t for t in result.tuned.trials if t.problem]
    assert told and "out of memory" in (told[0].problem or "") and told[0].serving.instances == 2


def test_a_server_that_dies_under_a_candidate_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.time, "sleep", lambda seconds: None)
    repo = Repo()

    def dies(config: dict[str, Any]) -> bool:
        if "dynamic_batching" not in config:  # the first that is tried
            repo.away, repo.serving = 3, None
            return True
        return False

    repo.dies = dies
    with started(repo):
        result = program.tune(task(repo, tmp_path), Progress())
    assert (
        result.tuned is not None
        and result.tuned.failed >= 1
        and result.tuned.candidates > result.tuned.failed
    )
    assert repo.away < 0, "it was asked until it was back"


def test_a_server_that_stays_away_is_a_reason_to_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "SERVER_SECONDS", 0.0)
    monkeypatch.setattr(program.time, "sleep", lambda seconds: None)
    with started(Repo(away=10**6)) as repo, pytest.raises(JobError) as failed:
        program.tune(task(repo, tmp_path), Progress())
    assert (failed.value.reason, failed.value.code) == ("ServerUnreachable", 1)


def test_a_server_that_fails_under_everything_is_no_result(tmp_path: Path) -> None:
    with started(Repo(refuses=lambda config: True)) as repo, pytest.raises(JobError) as failed:
        program.tune(task(repo, tmp_path), Progress())
    assert failed.value.reason == "InferenceFailed" and "out of memory" in failed.value.message


def test_an_objective_that_nothing_keeps_to_is_said_and_changes_nothing(tmp_path: Path) -> None:
    with started(Repo()) as repo:
        result = program.tune(task(repo, tmp_path, objective_ms=0.001), Progress())
    assert result.tuned is not None and result.tuned.chosen is None and not result.tuned.configured.within
    assert "nothing keeps 50 % of the requests within 0.001 ms" in result.message


@pytest.mark.parametrize(("shape", "datatype"), [((-1, 3, -1, -1), "FP32"), ((-1, 1), "BYTES")])
def test_inputs_that_cannot_be_made_up_are_asked_for(
    tmp_path: Path, shape: tuple[int, ...], datatype: str
) -> None:
    with started(Repo(shape=shape, datatype=datatype)) as repo, pytest.raises(JobError) as failed:
        program.tune(task(repo, tmp_path), Progress())
    assert failed.value.reason == "DataNeeded" and "spec.serving.tune.data" in failed.value.message


def test_a_model_that_is_not_batched_says_so(tmp_path: Path) -> None:
    with started(Repo(shape=(8, 4))) as repo:
        result = program.tune(task(repo, tmp_path, max_batch=0), Progress())
    assert "maxBatchSize is 0" in result.message and set(repo.rows) == {8}, (
        "its fixed first dimension is filled"
    )
    assert all("dynamic_batching" not in config for config in repo.loaded)


def test_the_result_has_room_in_the_termination_message() -> None:
    trials = [
        Trial(
            ServingConfig(instances=i, batch=64, queue_delay_us=100_000),
            Load(1000, 123456.78, 1234.567),
            True,
        )
        for i in range(1, 40)
    ]
    trials += [
        Trial(ServingConfig(instances=i, batch=32), None, problem="x" * program.PROBLEM) for i in range(1, 40)
    ]
    result = program.TuneResult(
        configured=program._result_of(trials[0]),
        chosen=program._result_of(trials[1]),
        candidates=78,
        trials=program._others(trials, trials[:2]),
    )
    assert len(result.trials) >= 5
    back = TaskResult.model_validate_json(encode(TaskResult(tuned=result, message="m" * 5000)))
    assert (
        len(encode(TaskResult(tuned=result, message="m" * 5000))) <= RESULT_LIMIT_BYTES
        and back.tuned == result
    )


REQUEST = encoded(NAME, {"x": np.zeros((1, 4), np.float32)}, [X])


def test_a_window_counts_what_was_answered_and_asks_for_enough() -> None:
    with started(Repo(serving={})) as repo:
        repo.serving = {"name": NAME}
        loads = window(repo.address, [REQUEST], 3, 0.01, 50)
    assert len(loads.latencies) >= 1 and loads.latencies == tuple(sorted(loads.latencies)) and loads.rate > 0
    assert loads.latency(1.0) == loads.latencies[-1] and loads.latency(0.5) in loads.latencies


def test_a_request_that_fails_ends_a_window() -> None:
    with started(Repo()) as repo, pytest.raises(TritonError) as failed:
        window(repo.address, [REQUEST], 4, 0.05, 1)
    assert failed.value.kind == "Failed" and "CUDA error" in str(failed.value)


def test_a_server_that_is_gone_is_unreachable() -> None:
    with pytest.raises(TritonError) as failed:
        window("127.0.0.1:1", [REQUEST], 1, 0.05, 1)
    assert failed.value.kind == "Unreachable"
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(TritonError) as failed:
            window(f"127.0.0.1:{server.getsockname()[1]}", [REQUEST], 1, 0.05, 1)
    assert failed.value.kind == "Unreachable"


def test_strings_are_encoded_as_triton_reads_them() -> None:
    request = encoded(NAME, {"t": np.array([["ab"]], np.object_)}, [TensorSpec("t", "BYTES", (-1, 1))])
    assert request.endswith(b"\x02\x00\x00\x00ab")


def test_what_is_written_is_what_was_measured() -> None:
    text = render([X], [Y], Batching(max_batch_size=32, max_queue_delay_us=700), "KIND_AUTO")
    config = parse(text)
    assert serving_of(config) == ServingConfig(instances=1, batch=32, queue_delay_us=700)
    assert printed(with_serving(config, serving_of(config))) == text
    desired = ServingConfig(instances=2, batch=8, queue_delay_us=200)
    changed = with_serving(config, desired)
    assert serving_of(changed) == desired and changed.max_batch_size == 32, "what a client may send stays"
    assert not with_serving(config, ServingConfig()).HasField("dynamic_batching")


def test_the_task_is_read_back() -> None:
    specified = TuneTask(http="127.0.0.1:8000", repository="/models", model=NAME, objective_ms=50)
    assert parse_task(specified.model_dump_json()) == specified
