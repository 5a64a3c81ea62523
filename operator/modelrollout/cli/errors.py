"""Errors of the command line, each with its exit code."""

from __future__ import annotations


class Refused(Exception):
    """The request is refused: no such object, nothing to promote, or the operator says no. Exit
    code 1.
    """

    exit_code = 1


class NoSuchObject(Refused):
    """The cluster has no object of that name."""


class Unanswered(Exception):
    """No answer: no access, no API server, no operator. Exit code 2, as for a wrong command."""

    exit_code = 2
