"""Context managers that set up much, and take down what there is of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Self


class Scope(ABC):
    """``_set_up`` puts on ``_stack`` how each part is taken down: at the end, and where a later
    part fails.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    @abstractmethod
    def _set_up(self) -> None: ...

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
