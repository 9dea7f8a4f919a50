"""A real OpenSSH server of our own, as the benchmarks have it; waiting for things."""

from __future__ import annotations

import time

from rtunnel.bench.sshd import SSHD, Sshd

__all__ = ["SSHD", "Sshd", "wait_until"]


def wait_until(condition: object, timeout_s: float = 30.0) -> None:
    """Poll `condition()` until it is true; fail after `timeout_s`."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {timeout_s} s: {condition}")
        time.sleep(0.005)
