"""Which running count the client's TCP has acknowledged."""

from collections import deque


class Delivered:
    """`marks` pair the byte offset of the connection at which an event ends with the count of output tokens
    that is complete there; neither ever shrinks.
    """

    __slots__ = ("_out", "marks")

    def __init__(self) -> None:
        self.marks: deque[tuple[int, int]] = deque()
        self._out = 0

    def acknowledged(self, offset: int) -> int:
        """The count in the last event that lies wholly below `offset`; marks below it are forgotten."""
        marks = self.marks
        while marks and marks[0][0] <= offset:
            self._out = marks.popleft()[1]
        return self._out
