"""The demonstration: the operator rolls out seven versions of a digit classifier under load."""


class DemoError(RuntimeError):
    """The demonstration cannot go on; the message says what to change."""
