"""Which server a new session goes to: arithmetic on what the servers said. Pure.

How busy a server is: its load average, plus what its sessions will need once their
users work, over its processors. Sessions that were given out a moment ago are not in
its answer yet, and count too: else all who log in at nine o'clock go to the same one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# What a session needs of a processor, on average of those who work and those who do
# not: with the load average as the other part, the order is right if this is not.
SESSION_LOAD: Final = 0.25
# Servers that differ by less are the same.
ALIKE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Load:
    """What a server is doing: load average of a minute, processors, sessions."""

    average: float
    processors: int
    sessions: int

    def busy(self, expected: int = 0) -> float:
        """Return how busy it is, with so many sessions more."""
        sessions = self.sessions + expected
        return (self.average + SESSION_LOAD * sessions) / max(self.processors, 1)


def choose(
    servers: Sequence[str],
    loads: Mapping[str, Load | None],
    expected: Mapping[str, int],
    chance: random.Random,
) -> str | None:
    """Return the least busy server; None if none is alive.

    `loads` has those that are alive; None for one that could not say how busy it is:
    that is taken if no other is there. Among equals, chance decides.
    """
    alive = [server for server in servers if server in loads]
    told = {
        server: load.busy(expected.get(server, 0))
        for server in alive
        if (load := loads[server]) is not None
    }
    if told:
        least = min(told.values())
        alive = [server for server, busy in told.items() if busy - least < ALIKE]
    elif alive:
        fewest = min(expected.get(server, 0) for server in alive)
        alive = [server for server in alive if expected.get(server, 0) == fewest]
    return chance.choice(alive) if alive else None
