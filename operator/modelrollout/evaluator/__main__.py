"""``python -m modelrollout.evaluator``: does the task in MODELROLLOUT_TASK (modelrollout.api.tasks)."""

from __future__ import annotations

import sys

from modelrollout.jobs.frame import main
from modelrollout.jobs.programs import run

if __name__ == "__main__":
    sys.exit(main(run))
