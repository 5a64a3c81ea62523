"""The story by commits: a real Argo CD syncs models from a Git repository, and the operator rolls
them out; neither may undo what the other does, and the health that Argo CD shows must be right.
"""

from __future__ import annotations


class GitopsError(RuntimeError):
    """The story cannot go on; the message says what to look at."""
