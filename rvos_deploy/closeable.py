"""Define a context manager whose exit calls ``close``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

_Self = TypeVar("_Self", bound="Closeable")


class Closeable(ABC):
    """Make a class with ``close`` a context manager, which is closed on exceptions too."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources; safe to call twice."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
