"""The benchmark's arithmetic: medians, ratios within a round, targets, and sysbench's histogram."""

from __future__ import annotations

import json

import pytest
from load_sysbench import SysbenchError, parse
from report import Results, Sample, Target, as_json, markdown, measurements, ratios, targets

SYSBENCH = """
Latency histogram (values are in milliseconds)
       value  ------------- distribution ------------- count
       0.032 |                                         50
       0.074 |**                                       40
       1.231 |****************************************  8
      52.889 |*                                        2

SQL statistics:
    queries performed:
        total:                           100
    transactions:                        100    (50.10 per sec.)
    queries:                             100    (50.00 per sec.)
    ignored errors:                      0      (0.00 per sec.)
    reconnects:                          0      (0.00 per sec.)
"""


def sample(peer: str, number: int, rate: float, cpu_us: float | None, p50_us: float = 100.0) -> Sample:
    return Sample("sql", "16 threads", peer, number, rate, p50_us, 2 * p50_us, 3 * p50_us, cpu_us)


def test_percentiles_are_read_from_the_histogram() -> None:
    result = parse(SYSBENCH)
    assert (result.queries, result.queries_per_second) == (100, 50.0)
    assert (result.p50_us, result.p95_us, result.p99_us) == (32.0, 1231.0, 52889.0)


def test_a_run_with_errors_or_without_a_result_is_an_error() -> None:
    with pytest.raises(SysbenchError, match="3 errors"):
        parse(SYSBENCH.replace("errors:                      0", "errors:                      3"))
    with pytest.raises(SysbenchError, match="no result"):
        parse("FATAL: unable to connect")


def test_a_ratio_is_taken_within_a_round_and_the_median_counts() -> None:
    results = Results(
        [
            *(sample("gateway", number, rate, cpu) for number, rate, cpu in ((1, 100, 10), (2, 50, 20), (3, 90, 12))),
            *(sample("peer", number, rate, cpu) for number, rate, cpu in ((1, 200, 10), (2, 50, 40), (3, 100, 10))),
        ]
    )
    assert results.compare("sql", "16 threads", "gateway", "peer", "cpu") == 1.0  # of 1.0, 0.5 and 1.2
    assert results.compare("sql", "16 threads", "gateway", "peer", "rate") == 0.9  # of 0.5, 1.0 and 0.9


def test_direct_has_no_processor_time_and_so_no_ratio_of_it() -> None:
    results = Results([sample("direct", 1, 100, None, 40.0), sample("gateway", 1, 80, 12.0, 90.0)])
    assert results.compare("sql", "16 threads", "gateway", "direct", "cpu") is None
    assert results.compare("sql", "16 threads", "gateway", "direct", "p50") == 50.0
    assert ratios(results, "sql", ["gateway"]).rows == (("16 threads", "gateway", "direct", "-", "0.80", "+50"),)


def test_targets_say_whether_they_are_met() -> None:
    results = Results([sample("router", 1, 100, 10.0), sample("gateway", 1, 120, 11.0, 130.0)])
    wanted = [
        Target("sql", "16 threads", "router", "cpu", 1.0, "CPU"),
        Target("sql", "16 threads", "router", "rate", 1.1, "rate"),
        Target("sql", "16 threads", "router", "p50", 60.0, "latency"),
        Target("memcached", "32 connections", "twemproxy", "cpu", 1.6, "not measured"),
    ]
    assert targets(results, "gateway", wanted).rows == (
        ("CPU", "1.10", "NO"),
        ("rate", "1.20", "yes"),
        ("latency", "30.00 us", "yes"),
    )


def test_the_report_has_medians_and_every_sample() -> None:
    results = Results([sample("gateway", number, rate, 12.0) for number, rate in ((1, 90), (2, 100), (3, 110))])
    block = measurements(results, "sql")
    assert block.rows == (("16 threads", "gateway", "100", "20%", "100", "200", "300", "12.0"),)
    text = markdown("Benchmark", [("machine", "two cores")], [block])
    assert "- machine: two cores" in text
    assert "| 16 threads | gateway | 100 | 20% | 100 | 200 | 300 | 12.0 |" in text
    assert len(json.loads(as_json([("machine", "two cores")], results))["samples"]) == 3
