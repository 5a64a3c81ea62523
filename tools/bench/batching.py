"""What joining requests gains on the real Triton within one latency objective, with the load
generator that tunes a version before it serves.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import triton
from modelrollout.contract.common import ServingConfig
from modelrollout.contract.tasks import Batching, TuneTask
from modelrollout.evaluator.tuning.run import TAIL, requests
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.model.inspect import check
from modelrollout.triton.config import parse, render, with_serving
from modelrollout.triton.layout import MODEL_FILE
from modelrollout.triton.load import window
from modelrollout.triton.repository import Repository

OBJECTIVE_MS, SHARE = 50.0, 0.99
MAX_BATCH = 64
ALONE = ServingConfig()
JOINED = tuple(
    ServingConfig(batch=batch, queue_delay_us=delay) for batch, delay in ((16, 0), (64, 0), (64, 1000))
)
IN_FLIGHT = (4, 8, 16, 32, 64, 128)
ROUNDS, WINDOW_SECONDS = 6, 0.4
PORT = 18471


@dataclass(frozen=True)
class Rate:
    """The highest throughput of a configuration within the objective."""

    serving: ServingConfig
    requests_per_second: float
    p99_ms: float
    in_flight: int


def measure_batching(model: Path) -> tuple[Rate, Rate]:
    """(requests never joined, joined in the best way), one instance each. Raises TritonMissing,
    TritonError and JobError.

    One Triton serves all configurations. They take turns, each at every number of requests in
    flight. The best window within the objective counts: other load on the machine only slows it
    down. Inputs are random: the time of these networks does not depend on them.
    """
    checked = check(model)
    config = parse(render(checked.inputs, checked.outputs, Batching(max_batch_size=MAX_BATCH), "KIND_AUTO"))
    names = {serving: f"model-{number}" for number, serving in enumerate((ALONE, *JOINED))}
    best: dict[ServingConfig, Rate] = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in names.values():
            (Path(folder) / name / "1").mkdir(parents=True)
            shutil.copyfile(model, Path(folder) / name / "1" / MODEL_FILE)
        with triton.serving(Path(folder), PORT) as server, Repository(server.address) as repository:
            sent: dict[ServingConfig, list[bytes]] = {}
            for serving, name in names.items():
                repository.load(name, with_serving(config, serving))
                task = TuneTask(http=server.address, repository=folder, model=name, objective_ms=OBJECTIVE_MS)
                sent[serving] = requests(task, repository.inputs(name), Progress())[0]
            for _ in range(ROUNDS):
                for in_flight in IN_FLIGHT:
                    for serving, encoded in sent.items():
                        result = window(
                            server.address, encoded, in_flight, WINDOW_SECONDS, round(TAIL / (1 - SHARE))
                        )
                        rate = Rate(serving, result.rate, result.latency(SHARE) * 1e3, in_flight)
                        if rate.p99_ms <= OBJECTIVE_MS and (
                            serving not in best
                            or rate.requests_per_second > best[serving].requests_per_second
                        ):
                            best[serving] = rate
    nothing = [Rate(serving, 0.0, float("nan"), 0) for serving in names if serving not in best]
    rates = {rate.serving: rate for rate in (*best.values(), *nothing)}
    return rates[ALONE], max(
        (rates[serving] for serving in JOINED), key=lambda rate: rate.requests_per_second
    )
