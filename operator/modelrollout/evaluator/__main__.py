"""``python -m modelrollout.evaluator``: does the task in MODELROLLOUT_TASK
(modelrollout.contract.tasks).
"""

from __future__ import annotations

import sys

from modelrollout.jobs.programs import run
from modelrollout.jobs.runner import main

if __name__ == "__main__":
    sys.exit(main(run))
