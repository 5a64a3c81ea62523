"""The golden evaluation, with Triton's real clients against a server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import EvaluateTask
from modelrollout.evaluator import request
from modelrollout.evaluator.__main__ import run
from modelrollout.evaluator.golden import SLICES, WARM_UP, percentile_ms
from modelrollout.jobs import runner
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.store import backend
from modelrollout.statistics.paired import drop_interval
from modelrollout.testing.fake_triton import FakeTriton, Model, serving
from modelrollout.testing.object_store import (
    ObjectStore,
    centres,
    dataset,
    labelled,
    npz,
    object_store,
    samples,
)

N = 100


def right(x: np.ndarray) -> np.ndarray:
    """Scores of the nearest-centre classifier."""
    c = centres()
    return 2 * x @ c.T - (c**2).sum(1)


def wrong_where_positive(x: np.ndarray) -> np.ndarray:
    """As ``right``, but turned round where the first feature is positive."""
    scores = right(x)
    return np.where(x[:, :1] > 0, -scores, scores)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "RETRY", {"max_retries": 0})
    monkeypatch.setattr(request, "_PAUSE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as server:
        server.objects["/data/golden.npz"] = labelled(N)
        yield server


class Setting:
    """A candidate, perhaps a stable, and the task that compares them."""

    def __init__(self, store: ObjectStore) -> None:
        self.store, self.stack = store, ExitStack()
        self.candidate = self.serve(FakeTriton(right))
        self.stable: FakeTriton | None = None

    def serve(self, fake: FakeTriton) -> FakeTriton:
        return self.stack.enter_context(serving(fake))

    def with_stable(self, model: Model, **fields: Any) -> FakeTriton:
        self.stable = self.serve(FakeTriton(model, version="2", **fields))
        return self.stable

    def task(self, **changes: Any) -> EvaluateTask:
        fields: dict[str, Any] = {
            "data": dataset(self.store.s3("data/golden.npz")),
            "model": "digits",
            "candidate_http": self.candidate.http,
            "candidate_grpc": self.candidate.grpc,
            "candidate_number": 3,
            "parity_samples": 10,
            "timeout_seconds": 2.0,
        }
        if self.stable:
            fields |= {"stable_http": self.stable.http, "stable_grpc": self.stable.grpc, "stable_number": 2}
        return EvaluateTask(**(fields | changes))

    def evaluate(self, **changes: Any) -> TaskResult:
        return run(self.task(**changes), Progress())

    def refusal(self, **changes: Any) -> JobError:
        with pytest.raises(JobError) as error:
            self.evaluate(**changes)
        return error.value


@pytest.fixture
def setting(store: ObjectStore) -> Iterator[Setting]:
    actual = Setting(store)
    with actual.stack:
        yield actual


def test_candidate_alone(setting: Setting) -> None:
    x, y = samples(N)
    result = setting.evaluate()
    assert result.samples == N
    assert result.accuracy == pytest.approx((right(x).argmax(1) == y).mean())
    assert (result.paired, result.stable_accuracy, result.drop_interval) == (None, None, None)
    assert result.protocols_agree is True
    assert result.latency_p50_ms is not None
    assert result.latency_p99_ms is not None
    assert 0 < result.latency_p50_ms <= result.latency_p99_ms


def test_gaps_are_sent_where_the_model_takes_them(setting: Setting) -> None:
    x, y = samples(N)
    x[:3, 0] = np.nan
    setting.store.objects["/data/gaps.npz"] = npz(x=x, labels=y)
    data = dataset(setting.store.s3("data/gaps.npz"))
    assert setting.refusal(data=data).reason == "DataNotFinite"
    setting.candidate.parameters = {"missing_values": "NaN"}
    setting.candidate.model = lambda rows: right(np.nan_to_num(rows))
    assert setting.evaluate(data=data).samples == N


def test_infinity_is_sent_and_the_answer_says_whether_it_is_data(setting: Setting) -> None:
    """As in an additive mask; to whom stable answers with NaN, there it is no data."""
    x, y = samples(N)
    x[7, 0] = -np.inf
    setting.store.objects["/data/masked.npz"] = npz(x=x, labels=y)
    data = dataset(setting.store.s3("data/masked.npz"))
    setting.candidate.model = masked = lambda rows: right(np.where(np.isinf(rows), 0, rows))
    assert setting.evaluate(data=data).samples == N
    lost = lambda rows: np.where(np.isinf(rows).any(axis=1)[:, None], np.nan, masked(rows))  # noqa: E731
    setting.candidate.model = lost
    error = setting.refusal(data=data)
    assert error.reason == "DataNotFinite" and "sample 7" in error.message
    setting.with_stable(masked)
    result = setting.evaluate(data=data)  # NaN is the candidate's fault
    assert result.paired is not None and result.paired.only_baseline_right == 1


def test_of_several_outputs_the_named_one_is_judged(setting: Setting) -> None:
    x, y = samples(N)
    setting.candidate.others = {"turned": lambda rows: -right(rows), "one": lambda rows: right(rows)[:, :1]}
    error = setting.refusal()
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "OutputAmbiguous")
    assert "['scores', 'turned', 'one']" in error.message and "output" in error.message
    for output, model in (("scores", right), ("turned", lambda rows: -right(rows))):
        result = setting.evaluate(output=output)
        assert result.accuracy == pytest.approx((model(x).argmax(1) == y).mean())
        assert result.protocols_agree is True
    error = setting.refusal(output="none")
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "OutputUnknown")
    assert error.message.startswith("spec.rollout.analysis.golden.output: ") and "'turned'" in error.message


def test_stable_without_the_named_output_cannot_be_compared_with(setting: Setting) -> None:
    setting.candidate.others = {"head": right}
    setting.with_stable(right)
    assert setting.evaluate(output="scores").paired is not None
    error = setting.refusal(output="head")
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "StableNotComparable")
    assert "no output 'head'" in error.message


def test_labels_may_be_minus_one_and_one(setting: Setting) -> None:
    x, _ = samples(N)
    setting.store.objects["/data/signed.npz"] = npz(x=x, labels=np.where(x[:, 0] > 0, 1, -1))
    data = dataset(setting.store.s3("data/signed.npz"))
    setting.candidate.model = lambda rows: np.column_stack([-rows[:, 0], rows[:, 0]])
    setting.with_stable(lambda rows: 1 / (1 + np.exp(-rows[:, :1])))
    result = setting.evaluate(data=data)
    assert result.accuracy == result.stable_accuracy == 1
    setting.candidate.model = right
    assert setting.refusal(data=data).reason == "LabelsOutOfRange"


def test_a_table_is_golden_data(setting: Setting) -> None:
    x, y = samples(N)
    lines = ["a,b,c,d,labels", *(",".join(map(str, [*row, label])) for row, label in zip(x, y, strict=True))]
    setting.store.objects["/data/golden.csv"] = "\n".join(lines).encode()
    data = dataset(setting.store.s3("data/golden.csv"))
    assert setting.evaluate(data=data).accuracy == setting.evaluate().accuracy


def test_paired_with_stable(setting: Setting) -> None:
    setting.candidate.model = wrong_where_positive
    setting.with_stable(right)
    x, y = samples(N)
    result = setting.evaluate()
    candidate, stable = wrong_where_positive(x).argmax(1) == y, right(x).argmax(1) == y
    assert result.paired is not None
    assert (result.paired.n, result.paired.only_baseline_right) == (N, int((stable & ~candidate).sum()))
    assert result.paired.only_candidate_right == int((candidate & ~stable).sum())
    assert result.paired.only_baseline_right > 5
    assert result.stable_accuracy == pytest.approx(stable.mean())
    assert result.drop_interval == drop_interval(
        N, result.paired.only_baseline_right, result.paired.only_candidate_right
    )


def test_slices_are_compared_and_the_worst_told(setting: Setting, store: ObjectStore) -> None:
    setting.candidate.model = wrong_where_positive
    setting.with_stable(right)
    x, _ = samples(N)
    sign = np.where(x[:, 0] > 0, "positive", "negative")
    store.objects["/data/golden-sliced.npz"] = labelled(N, sign=sign, half=np.arange(N) % 2)
    result = setting.evaluate(data=dataset(store.s3("data/golden-sliced.npz"), slices=("sign", "half")))
    assert result.paired is not None and result.slices_compared == 4
    assert {s.name for s in result.slices} == {"sign=positive", "sign=negative", "half=0", "half=1"}
    worst = result.slices[0]
    assert (worst.name, worst.n) == ("sign=positive", int((sign == "positive").sum()))
    assert worst.only_baseline_right == result.paired.only_baseline_right
    assert TaskResult.model_validate_json(runner.encode(result)) == result


def test_very_many_slices_leave_room_for_the_result(setting: Setting, store: ObjectStore) -> None:
    """The termination message has 2 KiB; a result that does not fit loses everything."""
    setting.with_stable(right)
    many = {
        f"名前の長い配列その{i}": np.array([f"とても長い値{j % 30}" for j in range(N)]) for i in range(16)
    }
    store.objects["/data/golden-many.npz"] = labelled(N, **many)
    result = setting.evaluate(data=dataset(store.s3("data/golden-many.npz"), slices=tuple(many)))
    assert result.slices_compared == 16 * 30 and 0 < len(result.slices) <= SLICES
    told = TaskResult.model_validate_json(runner.encode(result))
    assert (told.paired, told.slices) == (result.paired, result.slices)


def test_every_sample_is_counted_once_however_often_it_is_asked(setting: Setting) -> None:
    stable = setting.with_stable(right)
    result = setting.evaluate(batch=32)
    assert result.paired is not None
    assert result.paired.n == N
    assert stable.http_rows == [32, 32, 32, 4]  # stable is not asked for more than the pass
    assert setting.candidate.http_rows[:4] == [32, 32, 32, 4]
    assert setting.candidate.http_rows[4:] == [1] * (10 + WARM_UP)
    assert setting.candidate.grpc_rows == [1] * 10


def test_server_batch_limit_is_kept(setting: Setting) -> None:
    setting.candidate.max_batch = 8
    assert setting.evaluate().samples == N
    assert max(setting.candidate.http_rows) == 8


def test_fixed_batch_is_filled(setting: Setting) -> None:
    setting.candidate.shape = (16, 4)
    x, y = samples(N)
    assert setting.evaluate().accuracy == pytest.approx((right(x).argmax(1) == y).mean())
    assert set(setting.candidate.http_rows) == {16}


def test_samples_may_be_whole_requests(setting: Setting, store: ObjectStore) -> None:
    """A model without a batch dimension: each sample has the input's full shape, its 1 in front."""
    x, y = samples(N)
    setting.candidate.shape = (1, 4)
    store.objects["/data/whole.npz"] = npz(x=x[:, None], labels=y)
    result = setting.evaluate(data=dataset(store.s3("data/whole.npz")))
    assert result.accuracy == pytest.approx((right(x).argmax(1) == y).mean())
    assert result.samples == N and result.protocols_agree is True
    assert set(setting.candidate.http_rows) == {1}


def test_parity_can_be_left_out(setting: Setting) -> None:
    result = setting.evaluate(parity_samples=0)
    assert (result.protocols_agree, result.latency_p50_ms) == (None, None)
    assert not setting.candidate.grpc_rows


def test_more_parity_samples_than_data(setting: Setting) -> None:
    assert setting.evaluate(parity_samples=1000).protocols_agree is True
    assert len(setting.candidate.grpc_rows) == N


def test_protocols_that_disagree_fail_with_the_evidence(setting: Setting) -> None:
    setting.candidate.grpc_model = lambda x: -right(x)
    error = setting.refusal()
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "ProtocolsDisagree")
    assert error.result().protocols_agree is False
    assert error.result().accuracy is not None


def test_a_little_noise_between_protocols_is_no_disagreement(setting: Setting) -> None:
    setting.candidate.model = lambda x: np.ones((len(x), 3))
    setting.candidate.grpc_model = lambda x: np.ones((len(x), 3)) + np.array([0, 1e-5, 0])
    assert setting.evaluate().protocols_agree is True


def test_wrong_version_in_metadata(setting: Setting) -> None:
    error = setting.refusal(candidate_number=4)
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "WrongVersion")
    assert "version 3 answers instead of 4" in error.message


@pytest.mark.parametrize("attribute", ["answering_version", "grpc_version"])
def test_wrong_version_in_answers(setting: Setting, attribute: str) -> None:
    setattr(setting.candidate, attribute, "2")
    assert setting.refusal().reason == "WrongVersion"


def test_wrong_version_of_stable_is_not_the_candidates(setting: Setting) -> None:
    setting.with_stable(right, answering_version="9")
    error = setting.refusal()
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "StableWrongVersion")


def test_no_server(setting: Setting) -> None:
    error = setting.refusal(candidate_http="127.0.0.1:1")
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "ServerUnreachable")
    error = setting.refusal(candidate_http="triton.invalid:8000")
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "ServerUnreachable")
    error = setting.refusal(candidate_grpc="127.0.0.1:1")
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "ServerUnreachable")


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        ((500, "onnx runtime error 6: bad node"), ExitCode.BAD_INPUT, "InferenceFailed"),
        ((400, "unexpected shape for input 'x'"), ExitCode.BAD_INPUT, "InferenceFailed"),
        ((503, "server is shutting down"), ExitCode.RETRYABLE, "ServerUnreachable"),
        (
            (400, "Request for unknown model: 'digits' version -1 is not at ready state: is not found"),
            ExitCode.RETRYABLE,
            "ModelNotServed",
        ),
    ],
)
def test_failed_requests(setting: Setting, error: tuple[int, str], code: ExitCode, reason: str) -> None:
    setting.candidate.error = error
    problem = setting.refusal()
    assert (problem.code, problem.reason) == (code, reason)


def test_short_trouble_is_lived_through_and_counted_once(setting: Setting) -> None:
    setting.candidate.error, setting.candidate.failures = (503, "restarting"), 2
    assert setting.evaluate().samples == N


def test_too_slow(setting: Setting) -> None:
    setting.candidate.delay = 0.5
    error = setting.refusal(timeout_seconds=0.1)
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "ServerTimeout")


def test_model_that_is_not_loaded(setting: Setting) -> None:
    setting.candidate.metadata_error = (400, "Request for unknown model: 'digits' is not found")
    error = setting.refusal()
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "ModelNotServed")


def test_trouble_with_stable_is_not_the_candidates(setting: Setting) -> None:
    setting.with_stable(right, error=(500, "stable is broken"))
    error = setting.refusal()
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "StableFailed")


def test_data_that_fits_the_candidate_only(setting: Setting) -> None:
    setting.with_stable(right, shape=(-1, 5))
    error = setting.refusal()
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "StableNotComparable")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npz(x=samples(9)[0]), "LabelsMissing"),
        (npz(x=samples(9)[0][:, :2], labels=samples(9)[1]), "DataShapeMismatch"),
        (npz(x=samples(9)[0], labels=samples(9)[1] + 5), "LabelsOutOfRange"),
        (b"none", "DataNotNpz"),
    ],
)
def test_golden_data_that_does_not_fit(setting: Setting, content: bytes, reason: str) -> None:
    setting.store.objects["/data/other.npz"] = content
    error = setting.refusal(data=dataset(setting.store.s3("data/other.npz")))
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, reason)
    assert error.message.startswith("spec.rollout.analysis.golden")


def test_repeated_samples_are_said(setting: Setting) -> None:
    x, y = samples(10)
    setting.store.objects["/data/twice.npz"] = npz(x=np.concatenate([x, x]), labels=np.concatenate([y, y]))
    assert "10 of 20" in setting.evaluate(data=dataset(setting.store.s3("data/twice.npz"))).message


def test_percentiles() -> None:
    hundred = [i / 1000 for i in range(1, 101)]
    assert (percentile_ms(hundred, 0.5), percentile_ms(hundred, 0.99), percentile_ms([0.004], 0.99)) == (
        50.0,
        99.0,
        4.0,
    )
    assert percentile_ms([], 0.5) is None
