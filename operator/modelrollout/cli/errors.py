"""What the command line says when it cannot do what was asked, and the exit code that goes with
it.
"""

from __future__ import annotations


class Refused(Exception):
    """The answer is no: nothing of that name, nothing to promote, or the operator refused. Exit
    code 1.
    """

    exit_code = 1


class Unanswered(Exception):
    """The question could not be asked, or nobody answered: no access, no API server, no operator.
    Exit code 2, as for a wrong command line.
    """

    exit_code = 2
