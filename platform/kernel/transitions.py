"""Transition tables for objects with a legal history: one table, one way to ask it."""

from collections.abc import Mapping
from dataclasses import dataclass


class IllegalTransition(ValueError):
    """The event is not allowed in this state."""


@dataclass(frozen=True, slots=True)
class Table:
    """`moves[(state, event)]` is the next state; what is absent is illegal."""

    moves: Mapping[tuple[str, str], str]

    def next(self, state: str, event: str) -> str:
        """The state after `event`. IllegalTransition names what would have been allowed."""
        if (state, event) not in self.moves:
            allowed = sorted(e for s, e in self.moves if s == state)
            raise IllegalTransition(f"{event} is not allowed in {state}; allowed: {', '.join(allowed) or 'nothing'}")
        return self.moves[state, event]

    def states(self) -> frozenset[str]:
        """Every state that the table names: what a CHECK constraint lists."""
        return frozenset(s for s, _ in self.moves) | frozenset(self.moves.values())
