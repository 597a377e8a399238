"""Which running count the client's TCP has acknowledged."""

from collections import deque


class Delivered:
    """Marks pair a byte offset of the connection with the count of output tokens that is complete there."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque()
        self._out = 0

    def __len__(self) -> int:
        return len(self._marks)

    def note(self, end_offset: int, out_tokens: int) -> None:
        """A chunk with this running count ends at this offset; neither ever shrinks."""
        self._marks.append((end_offset, out_tokens))

    def acknowledged(self, offset: int) -> int:
        """The count in the last chunk that lies wholly below `offset`; marks below it are forgotten."""
        marks = self._marks
        while marks and marks[0][0] <= offset:
            self._out = marks.popleft()[1]
        return self._out
