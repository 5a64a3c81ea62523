"""The measuring program of tuning, against a server that speaks Triton's gRPC protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from modelrollout.analysis.tuning import Load, Trial
from modelrollout.api.tasks import RESULT_LIMIT_BYTES, Batching, DataSet, Location, ServingConfig, TaskResult, TuneTask
from modelrollout.evaluator import tune as program
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.frame import encode, parse_task
from modelrollout.jobs.log import Progress
from modelrollout.triton.config import parse, printed, render, serving_of, with_serving
from modelrollout.triton.load import Generator
from modelrollout.triton.tensors import TensorSpec

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("scores", "FP32", (-1, 3))
NAME = "digits"


@dataclass
class Repo(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server without models until one is loaded. ``refuses``: configurations that it does not load; ``dies``: under which requests fail."""

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

    def ServerLive(self, request: Any, context: Any) -> Any:
        self.away -= 1
        if self.away >= 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "no server")
        return pb.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=self.serving is not None)

    def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        self.serving = None
        return pb.RepositoryModelUnloadResponse()

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        config = json.loads(request.parameters["config"].string_param)
        self.together += self.serving is not None
        if self.refuses(config):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "failed to load 'digits': out of memory")
        self.serving = config
        self.loaded.append(config)
        return pb.RepositoryModelLoadResponse()

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        answer = pb.ModelMetadataResponse(name=request.name, versions=["3"])
        answer.inputs.add(name="x", datatype=self.datatype, shape=list(self.shape))
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        if self.serving is None or self.dies(self.serving):
            context.abort(grpc.StatusCode.UNAVAILABLE, "socket closed")
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(list(request.inputs[0].shape))
        with self.lock:
            self.rows.append(len(x))
        return pb.ModelInferResponse(model_name=NAME, model_version="3")


@contextmanager
def started(repo: Repo) -> Iterator[Repo]:
    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(repo, server)
    repo.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield repo
    finally:
        server.stop(None)


def task(repo: Repo, folder: Path, max_batch: int = 4, **changes: Any) -> TuneTask:
    (folder / NAME).mkdir(exist_ok=True)
    (folder / NAME / "config.pbtxt").write_text(render([X], [Y], Batching(max_batch_size=max_batch), "KIND_AUTO"))
    usual = {"grpc": repo.address, "repository": str(folder), "model": NAME, "objective_ms": 5000.0, "share": 0.5, "window_seconds": 0.02}
    return TuneTask.model_validate({**usual, "instances": (1, 2), "timeout_seconds": 2.0, **changes})


def test_configurations_are_loaded_one_at_a_time_and_measured(tmp_path: Path) -> None:
    with started(Repo()) as repo:
        result = program.tune(task(repo, tmp_path), Progress())
    assert result.tuned is not None and result.tuned.configured.throughput > 0 and result.tuned.configured.within
    assert result.tuned.configured.serving == ServingConfig(instances=1, batch=4)
    assert result.tuned.candidates >= 2 and result.tuned.failed == 0
    assert repo.together == 0, "two models at a time may be too much for a GPU's memory"
    first = repo.loaded[0]
    assert first["max_batch_size"] == 4 and first["backend"] == "onnxruntime" and first["instance_group"][0]["count"] == 1
    assert set(repo.rows) == {1}, "requests of one sample"
    assert "made up" in result.message


def test_the_data_given_is_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Local:
        def __init__(self, location: Location, field: str) -> None:
            assert field == "spec.serving.tune.data.uri"

        def download(self, path: Path, **_: Any) -> None:
            np.savez(path, x=np.ones((3, 4), np.float32), labels=np.zeros(3, np.int64))

    monkeypatch.setattr(program, "Store", Local)
    with started(Repo()) as repo:
        given = task(repo, tmp_path, data=DataSet(location=Location(uri="s3://data/x.npz")), field="spec.serving.tune.data", timeout_seconds=0.1)
        result = program.tune(given, Progress())
        sent, rows = program.requests(given, [X], Progress())
    assert result.message == "" and result.tuned is not None
    assert (len(sent), rows) == (3, 1)
    request = pb.ModelInferRequest.FromString(sent[0])
    assert request.model_name == NAME and np.frombuffer(request.raw_input_contents[0], np.float32).tolist() == [1, 1, 1, 1]


def test_a_candidate_that_does_not_load_is_failed(tmp_path: Path) -> None:
    with started(Repo(refuses=lambda config: config["instance_group"][0]["count"] == 2)) as repo:
        result = program.tune(task(repo, tmp_path), Progress())
    assert result.tuned is not None and result.tuned.failed >= 1 and result.tuned.configured.throughput > 0
    told = [t for t in result.tuned.trials if t.problem]
    assert told and "out of memory" in (told[0].problem or "") and told[0].serving.instances == 2


def test_a_server_that_dies_under_a_candidate_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.time, "sleep", lambda seconds: None)
    repo = Repo()

    def dies(config: dict[str, Any]) -> bool:
        if config["instance_group"][0]["count"] == 2:
            repo.away, repo.serving = 3, None
            return True
        return False

    repo.dies = dies
    with started(repo):
        result = program.tune(task(repo, tmp_path), Progress())
    assert result.tuned is not None and result.tuned.failed >= 1 and result.tuned.candidates > result.tuned.failed + 1
    assert repo.away < 0, "it was asked until it was back"


def test_a_server_that_stays_away_is_a_reason_to_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_inputs_that_cannot_be_made_up_are_asked_for(tmp_path: Path, shape: tuple[int, ...], datatype: str) -> None:
    with started(Repo(shape=shape, datatype=datatype)) as repo, pytest.raises(JobError) as failed:
        program.tune(task(repo, tmp_path), Progress())
    assert failed.value.reason == "DataNeeded" and "spec.serving.tune.data" in failed.value.message


def test_a_model_that_is_not_batched_says_so(tmp_path: Path) -> None:
    with started(Repo(shape=(8, 4))) as repo:
        result = program.tune(task(repo, tmp_path, max_batch=0), Progress())
    assert "maxBatchSize is 0" in result.message and set(repo.rows) == {8}, "its fixed first dimension is filled"
    assert all("dynamic_batching" not in config for config in repo.loaded)


def test_the_result_has_room_in_the_termination_message() -> None:
    trials = [Trial(ServingConfig(instances=i, batch=64, queue_delay_us=100_000), Load(1000, 123456.78, 1234.567), True) for i in range(1, 40)]
    trials += [Trial(ServingConfig(instances=i, batch=32), None, problem="x" * program.PROBLEM) for i in range(1, 40)]
    found = program.TuneResult(
        configured=program._told(trials[0]), chosen=program._told(trials[1]), candidates=78, trials=program._others(trials, trials[:2])
    )
    assert len(found.trials) >= 5
    back = TaskResult.model_validate_json(encode(TaskResult(tuned=found, message="m" * 5000)))
    assert len(encode(TaskResult(tuned=found, message="m" * 5000))) <= RESULT_LIMIT_BYTES and back.tuned == found


def test_a_failed_request_ends_a_window() -> None:
    with started(Repo()) as repo, Generator(repo.address) as generator, pytest.raises(program.TritonError) as failed:
        generator.window([b""], 4, 0.05, 1)
    assert failed.value.kind in ("Unreachable", "Failed")


def test_what_is_written_is_what_was_measured() -> None:
    text = render([X], [Y], Batching(max_batch_size=32, max_queue_delay_us=700), "KIND_AUTO")
    config = parse(text)
    assert serving_of(config) == ServingConfig(instances=1, batch=32, queue_delay_us=700)
    assert printed(with_serving(config, serving_of(config))) == text
    wanted = ServingConfig(instances=2, batch=8, queue_delay_us=200)
    changed = with_serving(config, wanted)
    assert serving_of(changed) == wanted and changed.max_batch_size == 32, "what a client may send stays"
    assert not with_serving(config, ServingConfig()).HasField("dynamic_batching")


def test_the_task_is_read_back() -> None:
    given = TuneTask(grpc="127.0.0.1:8001", repository="/models", model=NAME, objective_ms=50)
    assert parse_task(given.model_dump_json()) == given
