"""The token bucket of the reference, on a clock of the test's own.

The compiled one is tested alike in tests/c/test_bucket.c.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel._pump_sides import NS, Bucket
from rtunnel._pump_types import RATE_MAX_BYTES_S, check_rate

RATES = st.integers(1, RATE_MAX_BYTES_S)


@given(rate=RATES, late_ns=st.lists(st.integers(0, NS // 25), min_size=50))
def test_a_busy_sender_gets_its_rate_within_five_percent(
    rate: int, late_ns: list[int]
) -> None:
    bucket = Bucket(rate, 0)
    now_ns = sent = 0
    for late in late_ns:
        n = bucket.available(now_ns)
        bucket.spend(n)
        sent += n
        now_ns = max(bucket.ready_at_ns(), now_ns) + late
    exact = rate * now_ns / NS
    in_the_bucket = rate * 0.05 + max(rate / 200, 1)
    assert exact * 0.95 - in_the_bucket <= sent <= exact


@given(rate=RATES)
def test_nothing_moves_before_the_time_that_it_names(rate: int) -> None:
    bucket = Bucket(rate, 0)
    ready_ns = bucket.ready_at_ns()
    assert bucket.available(ready_ns - 1) == 0
    assert bucket.available(ready_ns) > 0


@pytest.mark.parametrize("rate", [0, -1, RATE_MAX_BYTES_S + 1])
def test_a_rate_that_cannot_be_kept_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="rate_bytes_s must be"):
        check_rate(rate)
