"""For all tests: no property depends on how fast the machine is, and no library starts a pool of threads for each core, as in the Jobs."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # read when a library with OpenMP is loaded; several of them in one process wait for each other

settings.register_profile("here", deadline=None)
settings.load_profile("here")
