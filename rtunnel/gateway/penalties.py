"""Who failed too often is refused for a while, as PerSourcePenalties of sshd do it.

Each failure adds seconds to what its source has still to wait. From `min_s` on the
source is refused until it has waited; so a few slips cost nothing, and a password
guesser, or a client that reconnects without a pause and with a wrong key, is kept
out for longer and longer.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from rtunnel.gateway.settings import Penalties, is_in

log = logging.getLogger("rtunnel.gateway.penalties")


class Failure(Enum):
    """What a client is penalised for; the values name its setting."""

    AUTH = "authfail_s"  # it tried to log in, and could not
    NO_AUTH = "noauth_s"  # it went without having tried
    GRACE_EXCEEDED = "grace_exceeded_s"  # it did not log in in time


@dataclass(slots=True)
class _Entry:
    """What a source has still to wait for, and whether it is refused meanwhile."""

    until_s: float
    refused: bool = False


class PenaltyBox:
    """The penalties of all sources. One thread at a time."""

    def __init__(
        self, settings: Penalties, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self._clock: Final = clock
        self._entries: dict[str, _Entry] = {}

    def penalise(self, address: str, failure: Failure) -> None:
        """Note a failure of an address."""
        seconds: float = getattr(self.settings, failure.value)
        if not seconds or is_in(address, self.settings.exempt):
            return
        now_s = self._clock()
        source = self._source(address)
        entry = self._entries.get(source)
        if entry is None or entry.until_s <= now_s:
            self._make_room(now_s)
            entry = self._entries[source] = _Entry(now_s)
        entry.until_s = min(entry.until_s + seconds, now_s + self.settings.max_s)
        if entry.until_s - now_s >= self.settings.min_s and not entry.refused:
            entry.refused = True
            log.warning(
                "penalised: source=%s for=%.0fs last=%s",
                source,
                entry.until_s - now_s,
                failure.name.lower(),
            )

    def refuses(self, address: str) -> bool:
        """Say whether an address is refused now."""
        entry = self._entries.get(self._source(address))
        return entry is not None and entry.refused and entry.until_s > self._clock()

    def _source(self, address: str) -> str:
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return address
        prefix = (
            self.settings.prefix_ipv4 if ip.version == 4 else self.settings.prefix_ipv6
        )
        return str(ipaddress.ip_network((ip, prefix), strict=False))

    def _make_room(self, now_s: float) -> None:
        """Forget who has waited; if that does not help, who has waited the longest."""
        if len(self._entries) < self.settings.sources_max:
            return
        waiting = sorted(
            (entry.until_s, source)
            for source, entry in self._entries.items()
            if entry.until_s > now_s
        )
        # More than one at a time: sorting for each new source would be slow.
        gone = max(len(waiting) - self.settings.sources_max * 7 // 8, 0)
        self._entries = {source: self._entries[source] for _, source in waiting[gone:]}
