"""How many variants are evaluated at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class ChunkSize:
    """Doubled while whole chunks are used, cut back where the reader stops; it changes no result.

    Parameters
    ----------
    fixed: a size that never changes, or None. largest: what memory allows.
    """

    def __init__(self, fixed: int | None = None, largest: int = 64) -> None:
        self.fixed = fixed
        self.largest = largest
        self.size = fixed or min(8, largest)

    def cut(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """The items in chunks; a chunk that is not followed by a request for the next was used only in part."""
        start = 0
        while start < len(items):
            chunk = items[start : start + min(self.size, self.largest)]
            start += len(chunk)
            whole = False
            try:
                yield chunk
                whole = True
            finally:
                if self.fixed is None:
                    self.size = min(2 * self.size, self.largest) if whole else max(1, self.size // 2)
