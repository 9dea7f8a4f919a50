"""What a broker does beside answering: removes keys, forgets what is old."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from x2go_session.broker.server.broker import CHOICE_LASTS_S, Broker
from x2go_session.broker.server.errors import BrokerServerError

log = logging.getLogger("x2go_session.broker")

INTERVAL_S: Final = 2.0
TIDY_INTERVAL_S: Final = 60.0


class Upkeep:
    """A thread that does it now and then, from `start` to `stop`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="x2go-broker-upkeep")

    def start(self) -> None:
        """Begin. What other brokers have left comes first."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it; keys that are not due stay for the next broker."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        tidied = 0.0
        while not self._over.wait(INTERVAL_S):
            try:
                self._broker.keys.remove_due()
                if time.monotonic() - tidied > TIDY_INTERVAL_S:
                    tidied = time.monotonic()
                    self._broker.state.tidy(time.time(), CHOICE_LASTS_S)
            except BrokerServerError as error:
                log.error("upkeep: %s", error)
            except Exception:
                # Keys are to be removed whatever happens: the next turn tries again.
                log.exception("upkeep")
