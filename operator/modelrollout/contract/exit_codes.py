"""Exit codes of a Job."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of a Job. ``RETRYABLE`` may be tried again; the others are final for this
    input.
    """

    OK = 0
    RETRYABLE = 1  # store unreachable, server error
    BAD_INPUT = 10  # the user must change something: wrong digest, not ONNX, labels missing
    DENIED = 11  # credentials missing or refused
    GATE_FAILED = 12  # the accuracy budget was exceeded, proven
    GATE_INCONCLUSIVE = 13  # too little held-out data to tell
    OUT_OF_RESOURCES = 14  # memory or disk: with the same limits it would end the same way
    TIMEOUT = 15  # not done within the limit for one run
    # done before: the containers that would follow in the pod must not run, so for Kubernetes it is
    # a failure
    REUSED = 20
