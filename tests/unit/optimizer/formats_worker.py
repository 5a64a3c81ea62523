"""``python -m tests.unit.optimizer.formats_worker``: what the Job starts a process for each time,
in one process for many tests; the libraries take seconds to import. Reads a JSON list of arguments
a line, answers with the exit code.
"""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    from modelrollout.optimizer.formats.worker import main

    for line in sys.stdin:
        answers.write(f"{int(main(json.loads(line)))}\n")
        answers.flush()
