"""The load client: labelled digits through the gateway at a steady rate, over HTTP and gRPC, in a
process of its own.

Run as ``python -m demo.client SETTINGS.json``. It neither retries nor drops: what is not answered
within the deadline, or not answered well, counts as failed. It never chooses a version: which one
answered, it learns from the answer. The label of each input goes to the feedback service together
with that version. SIGTERM stops it when everything in flight has ended. The driver reads
``client.json``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient import grpc as triton

from demo.data import CLASSES, INPUT, PIXELS, Split
from demo.export import OUTPUT

SUMMARY = "client.json"
REQUESTS = "requests.jsonl"
FEEDBACK_BATCH = 500
FEEDBACK_SECONDS = 1.0
FAILURES_LISTED = 200


@dataclass(frozen=True)
class Settings:
    """Everything the client needs; written to a file by the driver."""

    folder: str  # where client.json and requests.jsonl go
    live: str  # .npz with the inputs and labels
    namespace: str
    name: str  # of the ModelDeployment
    model: str  # as Triton calls it
    http_url: str  # http://HOST:PORT of the gateway
    http_host: str  # host name of the HTTPRoute
    grpc_target: str  # HOST:PORT of the gateway
    grpc_authority: str  # host name of the GRPCRoute
    http_rate: float = 60.0
    grpc_rate: float = 20.0
    deadline: float = 10.0
    feedback_url: str | None = None  # http://HOST:PORT of the feedback service; None: no feedback
    # file with the service account token; read for every batch, because it changes
    feedback_token: str | None = None
    run: str = "demo"  # begins every request's id
    seed: int = 7

    @classmethod
    def load(cls, path: Path) -> Settings:
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))


pb2: Any = triton.service_pb2  # generated, without types
stubs: Any = triton.service_pb2_grpc


class BadAnswerError(RuntimeError):
    """The gateway or the server answered, but not as it should."""


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    version: str
    prediction: int


Ask = Callable[[int, str], Awaitable[Answer]]
"""Sends the input with that index under that id."""


@dataclass
class VersionCounts:
    """The answers of one version."""

    right: int = 0
    http: int = 0
    grpc: int = 0
    first: float = 0.0
    last: float = 0.0
    milliseconds: array[float] = field(default_factory=lambda: array("f"))

    def as_json(self) -> dict[str, Any]:
        p50, p99 = np.percentile(np.frombuffer(self.milliseconds, np.float32), (50, 99))
        return {
            "answers": self.http + self.grpc,
            "right": self.right,
            "http": self.http,
            "grpc": self.grpc,
            "first": self.first,
            "last": self.last,
            "p50_ms": round(float(p50), 2),
            "p99_ms": round(float(p99), 2),
        }


class Record:
    """Counts of everything, and a line for each request in requests.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.started = time.time()
        self.sent = 0
        self.answered = 0
        self.failed = 0
        self.versions: dict[str, VersionCounts] = {}
        self.failures: list[dict[str, Any]] = []
        self.feedback_sent = 0
        self.feedback_errors = 0
        self.feedback_error: str | None = None
        self._folder = folder
        self._lines = (folder / REQUESTS).open("w")

    @property
    def in_flight(self) -> int:
        return self.sent - self.answered - self.failed

    def answer(
        self, at: float, protocol: str, ident: str, answer: Answer, seconds: float, label: int
    ) -> None:
        self.answered += 1
        right = answer.prediction == label
        counts = self.versions.setdefault(answer.version, VersionCounts(first=at))
        counts.right += right
        if protocol == "http":
            counts.http += 1
        else:
            counts.grpc += 1
        counts.last = max(counts.last, at + seconds)
        counts.milliseconds.append(1e3 * seconds)
        self._lines.write(
            f'{{"at":{at:.3f},"protocol":"{protocol}","id":"{ident}","version":"{answer.version}","ms":{1e3 * seconds:.2f},"right":{int(right)}}}\n'  # noqa: E501
        )

    def failure(self, at: float, protocol: str, ident: str, seconds: float, error: str) -> None:
        self.failed += 1
        entry = {
            "at": round(at, 3),
            "protocol": protocol,
            "id": ident,
            "ms": round(1e3 * seconds, 2),
            "error": error,
        }
        if len(self.failures) < FAILURES_LISTED:
            self.failures.append(entry)
        self._lines.write(json.dumps(entry) + "\n")

    def save(self, *, done: bool = False) -> None:
        """Replace client.json; a reader never sees half of it."""
        self._lines.flush()
        summary = {
            "started": self.started,
            "now": time.time(),
            "done": done,
            "sent": self.sent,
            "answered": self.answered,
            "failed": self.failed,
            "in_flight": self.in_flight,
            "cpu_seconds": round(time.process_time(), 2),
            "versions": {version: counts.as_json() for version, counts in self.versions.items()},
            "feedback": {
                "sent": self.feedback_sent,
                "errors": self.feedback_errors,
                "last_error": self.feedback_error,
            },
            "failures": self.failures,
        }
        path = self._folder / SUMMARY
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(summary))
        partial.replace(path)


class HttpAsk:
    """KServe v2 over HTTP: the input in binary, the answer as JSON."""

    def __init__(self, session: aiohttp.ClientSession, settings: Settings, inputs: list[bytes]) -> None:
        self._session = session
        self._url = f"{settings.http_url}/v2/models/{settings.model}/infer"
        self._host = settings.http_host
        self._timeout = aiohttp.ClientTimeout(total=settings.deadline)
        self._inputs = inputs

    async def __call__(self, index: int, ident: str) -> Answer:
        image = self._inputs[index]
        head = json.dumps(
            {
                "id": ident,
                "inputs": [
                    {
                        "name": INPUT,
                        "datatype": "FP32",
                        "shape": [1, PIXELS],
                        "parameters": {"binary_data_size": len(image)},
                    }
                ],
                "outputs": [{"name": OUTPUT, "parameters": {"binary_data": False}}],
            }
        ).encode()
        headers = {
            "Host": self._host,
            "Inference-Header-Content-Length": str(len(head)),
            "Content-Type": "application/octet-stream",
        }
        async with self._session.post(
            self._url, data=head + image, headers=headers, timeout=self._timeout, allow_redirects=False
        ) as response:
            body = await response.read()
        if response.status != 200:
            raise BadAnswerError(f"HTTP {response.status}: {body[:300].decode(errors='replace')!r}")
        try:
            answer = json.loads(body)
            if answer["id"] != ident:
                raise BadAnswerError(f"asked as {ident}, answered as {answer['id']}")
            return Answer(answer["model_version"], _prediction(answer["outputs"][0]["data"]))
        except (ValueError, LookupError, TypeError) as e:
            raise BadAnswerError(
                f"{type(e).__name__} {e} in the answer {body[:300].decode(errors='replace')!r}"
            ) from e


class GrpcAsk:
    """KServe v2 over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, settings: Settings, inputs: list[bytes]) -> None:
        self._infer = stubs.GRPCInferenceServiceStub(channel).ModelInfer
        self._model = settings.model
        self._deadline = settings.deadline
        self._inputs = inputs

    async def __call__(self, index: int, ident: str) -> Answer:
        request = pb2.ModelInferRequest(
            model_name=self._model, id=ident, raw_input_contents=[self._inputs[index]]
        )
        request.inputs.add(name=INPUT, datatype="FP32", shape=[1, PIXELS])
        answer = await self._infer(request, timeout=self._deadline)
        if answer.id != ident:
            raise BadAnswerError(f"asked as {ident}, answered as {answer.id}")
        if not answer.raw_output_contents:
            raise BadAnswerError("an answer without output")
        raw = answer.raw_output_contents[0]
        return Answer(answer.model_version, _prediction(struct.unpack(f"<{len(raw) // 4}f", raw)))


def _prediction(logits: list[float] | tuple[float, ...]) -> int:
    if len(logits) != CLASSES:
        raise BadAnswerError(f"{len(logits)} logits, expected {CLASSES}")
    return max(range(CLASSES), key=logits.__getitem__)


def _describe(error: Exception) -> str:
    """One line that tells failures apart."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"gRPC {error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


class Feedback:
    """Sends predictions with their labels in batches; this is no inference request, and repeating
    it is harmless by its id.
    """

    def __init__(self, session: aiohttp.ClientSession, settings: Settings, record: Record) -> None:
        self._session = session
        self._settings = settings
        self._record = record
        self._waiting: deque[dict[str, Any]] = deque()

    def add(self, ident: str, answer: Answer, label: int) -> None:
        if self._settings.feedback_url is None:
            return
        about = {
            "namespace": self._settings.namespace,
            "name": self._settings.name,
            "version": answer.version,
        }
        self._waiting.append({**about, "id": ident, "prediction": answer.prediction, "label": label})

    async def flush(self) -> None:
        """Send what waits; on an error it stays for the next time."""
        while self._waiting:
            items = [self._waiting[i] for i in range(min(FEEDBACK_BATCH, len(self._waiting)))]
            try:
                await self._post(items)
            except (aiohttp.ClientError, TimeoutError, OSError, BadAnswerError) as e:
                self._record.feedback_errors += 1
                self._record.feedback_error = _describe(e)
                return
            for _ in items:
                self._waiting.popleft()
            self._record.feedback_sent += len(items)

    def _token(self) -> str:
        return (
            Path(self._settings.feedback_token).read_text().strip() if self._settings.feedback_token else ""
        )

    async def _post(self, items: list[dict[str, Any]]) -> None:
        headers = {}
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        url = f"{self._settings.feedback_url}/v1/feedback"
        async with self._session.post(
            url, json={"items": items}, headers=headers, timeout=aiohttp.ClientTimeout(total=5)
        ) as response:
            if response.status >= 300:
                raise BadAnswerError(f"HTTP {response.status}: {(await response.text())[:300]}")


class Client:
    """Two senders, one for each protocol, and one record."""

    def __init__(self, settings: Settings, live: Split, record: Record) -> None:
        self._settings = settings
        self._labels = [int(label) for label in live.labels]
        self._inputs = [image.tobytes() for image in live.images.astype("<f4")]
        self._record = record
        self._stop = asyncio.Event()
        self._flying: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Send until ``stop``; then wait for all answers and hand in the last feedback."""
        settings = self._settings
        # No limit on connections: a request that waits for one would not be open loop.
        connector = aiohttp.TCPConnector(limit=0)
        # No retries, not even gRPC's own transparent ones.
        options = [("grpc.default_authority", settings.grpc_authority), ("grpc.enable_retries", 0)]
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            grpc.aio.insecure_channel(settings.grpc_target, options=options) as channel,
        ):
            feedback = Feedback(session, settings, self._record)
            senders = [
                asyncio.create_task(
                    self._send("http", settings.http_rate, HttpAsk(session, settings, self._inputs), feedback)
                ),
                asyncio.create_task(
                    self._send("grpc", settings.grpc_rate, GrpcAsk(channel, settings, self._inputs), feedback)
                ),
            ]
            reporter = asyncio.create_task(self._report(feedback))
            await asyncio.gather(*senders)
            await asyncio.gather(*self._flying)
            await reporter
            await feedback.flush()
        self._record.save(done=True)

    async def _send(self, protocol: str, rate: float, ask: Ask, feedback: Feedback) -> None:
        """Open loop: the next request goes out on time, whatever became of those before it."""
        if rate <= 0:
            return
        rng = random.Random(f"{self._settings.seed}{protocol}")
        started = time.monotonic()
        number = 0
        while not self._stop.is_set():
            wait = started + number / rate - time.monotonic()
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), wait)
                continue
            index = rng.randrange(len(self._labels))
            task = asyncio.create_task(
                self._one(protocol, index, f"{self._settings.run}-{protocol}-{number}", ask, feedback)
            )
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)
            number += 1

    async def _one(self, protocol: str, index: int, ident: str, ask: Ask, feedback: Feedback) -> None:
        self._record.sent += 1
        at, started = time.time(), time.perf_counter()
        try:
            answer = await ask(index, ident)
        except Exception as e:  # whatever it is, it is a failed request
            self._record.failure(at, protocol, ident, time.perf_counter() - started, _describe(e))
            return
        self._record.answer(at, protocol, ident, answer, time.perf_counter() - started, self._labels[index])
        feedback.add(ident, answer, self._labels[index])

    async def _report(self, feedback: Feedback) -> None:
        parent = os.getppid()
        while not self._stop.is_set():
            self._record.save()
            await feedback.flush()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), FEEDBACK_SECONDS)
            # the driver was killed: nothing else would ever stop this process
            if os.getppid() != parent:
                self._stop.set()


async def _main(client: Client) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, client.stop)
    await client.run()


def main(path: Path) -> None:
    """Run with the settings in that file."""
    settings = Settings.load(path)
    folder = Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(_main(Client(settings, Split.load(Path(settings.live)), Record(folder))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
