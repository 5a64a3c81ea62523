"""What joining requests gains on the real Triton within one latency objective, by the program that tunes a version before it serves."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from bench import triton
from modelrollout.api.tasks import Batching, ServingConfig, TuneResult, TuneTask
from modelrollout.evaluator.tune import tune
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.model import check
from modelrollout.triton.config import parse, printed, render, with_serving
from modelrollout.triton.layout import CONFIG_FILE, MODEL_FILE

OBJECTIVE_MS, SHARE = 50.0, 0.99
MAX_BATCH = 64
SECONDS = 150.0
PORT = 18471
NAME = "model"


def measured(model: Path) -> TuneResult:
    """One instance, from requests that are never joined (``configured``) to the best batches and delay; raises TritonMissing and JobError.

    The two are measured in turns. Inputs are made up: the time of these networks does not depend on them.
    """
    checked = check(model)
    config = parse(render(checked.inputs, checked.outputs, Batching(max_batch_size=MAX_BATCH), "KIND_AUTO"))
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        repository.chmod(0o755)
        (repository / NAME / "1").mkdir(parents=True)
        shutil.copyfile(model, repository / NAME / "1" / MODEL_FILE)
        (repository / NAME / CONFIG_FILE).write_text(printed(with_serving(config, ServingConfig())))
        with triton.serving(repository, PORT) as address:
            task = TuneTask(
                http=address, repository=folder, model=NAME, objective_ms=OBJECTIVE_MS, share=SHARE, instances=(1,), timeout_seconds=SECONDS
            )
            found = tune(task, Progress()).tuned
    assert found is not None
    return found
