"""Limits against guessing: so many failures of a user, so many from an address.

The counters are in the state, so that who is refused by one broker is refused by all.
An attempt counts before it is looked at, and is given back when it was right: of any
number that come at once, no more are looked at than the limit allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from limits import RateLimitItem, parse
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from x2go_session.broker.server.errors import StateError, TooManyFailures
from x2go_session.broker.server.state import State


class Attempts:
    """Counts failures. Any thread; blocks. Raises `StateError`.

    Limits are `10/minute`, `100 per hour` and the like, as the library has them.
    """

    def __init__(
        self,
        state: State,
        *,
        per_user: str,
        per_address: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._storage = StateStorage(state, clock)
        self._limiter = FixedWindowRateLimiter(self._storage)
        self._per_user = parse(per_user)
        self._per_address = parse(per_address)

    def begin(self, user: str, address: str) -> None:
        """Count an attempt. Raises `TooManyFailures`: do not look at it."""
        taken: list[tuple[RateLimitItem, str]] = []
        for item, who in self._limits(user, address):
            if not self._limiter.hit(item, who):
                for each, whose in taken:
                    self._give_back(each, whose)
                wait_s = self._limiter.get_window_stats(item, who).reset_time
                raise TooManyFailures(max(wait_s - self._clock(), 1.0))
            taken.append((item, who))

    def succeeded(self, user: str, address: str) -> None:
        """Give an attempt back that was right."""
        for item, who in self._limits(user, address):
            self._give_back(item, who)

    def _limits(self, user: str, address: str) -> list[tuple[RateLimitItem, str]]:
        return [
            (self._per_address, f"address {address}"),
            (self._per_user, f"user {user}"),
        ]

    def _give_back(self, item: RateLimitItem, who: str) -> None:
        self._storage.incr(item.key_for(who), item.get_expiry(), -1)


class StateStorage(Storage):
    """Counters of `limits`, in the state of the brokers."""

    STORAGE_SCHEME = None

    def __init__(self, state: State, clock: Callable[[], float]) -> None:
        super().__init__()
        self._state = state
        self._clock = clock

    @property
    def base_exceptions(self) -> type[Exception]:
        """What goes wrong with it."""
        return StateError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to a counter."""
        return self._state.count(key, amount, expiry, self._clock())

    def get(self, key: str) -> int:
        """Return what a counter is."""
        return self._state.counter(key, self._clock())[0]

    def get_expiry(self, key: str) -> float:
        """Return when a counter begins anew."""
        return self._state.counter(key, self._clock())[1]

    def check(self) -> bool:
        """Say whether the state is there."""
        self._state.counter("", self._clock())
        return True

    def reset(self) -> int | None:
        """Refuse: the counters are those of all brokers."""
        raise NotImplementedError

    def clear(self, key: str) -> None:
        """Let a counter begin anew."""
        self._state.forget_counter(key)
