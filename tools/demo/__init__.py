"""The demonstration: six versions of a digit classifier, trained here, rolled out by the operator
under load.
"""


class DemoError(RuntimeError):
    """Something a person must know or change; the text says what."""
