"""Which client addresses are blocked after failed log-ins, and for how long."""

from __future__ import annotations

from gateway.config import LogInFailures
from gateway.sessions.login_failures import ADDRESSES_REMEMBERED, FailureRate


def rate(most: int = 3, window: float = 10.0, block: float = 60.0) -> FailureRate:
    return FailureRate(LogInFailures(max=most, window=window, block=block))


def test_an_address_is_blocked_by_the_last_failure_that_it_may_have_and_comes_free_again() -> None:
    failures = rate()
    assert not failures.failed("192.0.2.1", 0.0)
    assert not failures.failed("192.0.2.1", 1.0)
    assert failures.blocked_for("192.0.2.1", 1.0) == 0.0
    assert failures.failed("192.0.2.1", 2.0)
    assert failures.blocked_for("192.0.2.1", 2.0) == 60.0
    assert failures.blocked_for("192.0.2.1", 61.5) == 0.5
    assert failures.blocked_for("192.0.2.2", 2.0) == 0.0
    assert failures.blocked_for("192.0.2.1", 62.0) == 0.0
    assert not failures.failed("192.0.2.1", 63.0)  # and has all its failures again


def test_failures_are_forgotten_after_the_window_and_by_a_success() -> None:
    failures = rate()
    for at in (0.0, 1.0, 11.0, 12.0):
        assert not failures.failed("192.0.2.1", at)
    failures.succeeded("192.0.2.1")
    assert len(failures) == 0
    assert not failures.failed("192.0.2.1", 12.0)


def test_nobody_is_blocked_where_there_is_no_limit_or_no_address() -> None:
    assert not any(rate(most=0).failed("192.0.2.1", 0.0) for _ in range(1000))
    assert not any(rate().failed("", 0.0) for _ in range(1000))


def test_a_network_of_ipv6_counts_as_one_address() -> None:
    failures = rate(most=2)
    failures.failed("2001:db8:1:2::1", 0.0)
    assert failures.failed("2001:db8:1:2:ffff::9", 0.0)
    assert failures.blocked_for("2001:db8:1:2::77", 0.0)
    assert not failures.blocked_for("2001:db8:1:3::77", 0.0)
    failures.failed("::ffff:192.0.2.1", 0.0)
    assert failures.failed("192.0.2.1", 0.0)


def test_a_bounded_number_of_addresses_is_remembered() -> None:
    failures = rate(most=1)
    for number in range(ADDRESSES_REMEMBERED + 5):
        failures.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
    assert len(failures) == ADDRESSES_REMEMBERED
    assert failures.blocked_for("10.0.0.0", 0.0) == 0.0
    assert failures.blocked_for("10.0.39.20", 0.0) > 0.0
