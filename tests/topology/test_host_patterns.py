"""The Host part of accounts: what fits, and which of several wins."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gateway.topology.host_patterns import fits, specificity


@pytest.mark.parametrize(
    ("pattern", "host", "fitting"),
    [
        ("%", "192.0.2.1", True),
        ("", "192.0.2.1", True),
        ("%", "localhost", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.10", False),
        ("192.0.2.1", "localhost", False),
        ("localhost", "localhost", True),
        ("LOCALHOST", "localhost", True),
        ("localhost", "127.0.0.1", False),
        ("localhost", "192.0.2.1", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("::1", "::1", True),
        ("::1", "127.0.0.1", False),
        ("192.0.2.%", "192.0.2.77", True),
        ("192.0.2.%", "192.0.20.7", False),
        ("192.0.%", "192.0.2.77", True),
        ("192.0.2._", "192.0.2.7", True),
        ("192.0.2._", "192.0.2.77", False),
        ("192.0.2._%", "192.0.2.77", True),
        ("192.0.2.\\_", "192.0.2.7", False),
        ("192.0.2\\.7", "192.0.2.7", True),  # a backslash makes the next character itself
        ("192.0.2.1", "192x0y2z1", False),  # a dot is a dot
        ("%.example.com", "192.0.2.1", False),
        ("db[0-9]", "db5", False),
        ("192.0.2.0/255.255.255.0", "192.0.2.200", True),
        ("192.0.2.0/255.255.255.0", "192.0.3.200", False),
        ("192.0.2.64/255.255.255.192", "192.0.2.65", True),
        ("192.0.2.64/255.255.255.192", "192.0.2.5", False),
        ("192.0.2.5/255.255.255.0", "192.0.2.5", False),  # what remains under the mask is not the base
        ("192.0.2.0/255.255.255.0", "2001:db8::1", False),
        ("192.0.2.0/255.255.255.0", "localhost", False),
        ("192.0.2.0/nonsense", "192.0.2.1", False),
        ("nonsense/255.0.0.0", "192.0.2.1", False),
        ("2001:db8::1", "2001:db8::1", True),
        ("2001:db8:%", "2001:db8::1", True),
        ("2001:db8:%", "2001:db9::1", False),
    ],
)
def test_what_fits_a_pattern(pattern: str, host: str, fitting: bool) -> None:
    assert fits(pattern, host, mariadb=False) is fitting
    assert fits(pattern, host, mariadb=True) is fitting


def test_mysql_knows_prefix_lengths_and_mariadb_does_not() -> None:
    for pattern, host in (("192.0.2.0/24", "192.0.2.9"), ("2001:db8::/32", "2001:db8:1::1")):
        assert fits(pattern, host, mariadb=False)
        assert not fits(pattern, host, mariadb=True)
    assert not fits("192.0.2.0/24", "192.0.3.9", mariadb=False)
    assert not fits("192.0.2.0/99", "192.0.2.9", mariadb=False)


def test_the_most_specific_pattern_comes_first() -> None:
    patterns = ["192.0.2.1", "192.0.2.0/24", "192.0.2.0/255.255.255.0", "192.0.2.%", "192.0.%", "192.%", "%.1", "%", ""]
    for one, other in pairwise(patterns):
        assert specificity(one) < specificity(other)
