"""Turns samples into medians, ratios and tables, for the terminal, as Markdown and as JSON.

Peers are measured in turns, round after round, because the machine's speed wanders; a ratio is taken within a round,
and the median of the rounds' ratios is what is reported.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

NOTHING: Final = "-"


@dataclass(frozen=True)
class Sample:
    """One run: rates per second, latencies in us, CPU us of the proxy process per request (None without a proxy)."""

    protocol: str
    scenario: str
    peer: str
    round: int
    requests_per_second: float
    p50_us: float
    p95_us: float
    p99_us: float
    cpu_us: float | None


@dataclass(frozen=True)
class Target:
    """What the gateway has to reach in one scenario, against one peer.

    measure: "cpu" (ratio of CPU per request), "rate" (ratio of requests per second), "p50" (us added).
    """

    protocol: str
    scenario: str
    peer: str
    measure: str
    limit: float
    words: str

    def met(self, value: float) -> bool:
        """A rate has to reach the limit, the others to stay within it."""
        return value >= self.limit if self.measure == "rate" else value <= self.limit


@dataclass(frozen=True)
class Block:
    """A table: its title, its head, and rows of text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Results:
    """All samples of a run of the benchmark."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.samples = list(samples)

    def scenarios(self) -> list[tuple[str, str]]:
        """(protocol, scenario), in the order of measurement."""
        return list(dict.fromkeys((sample.protocol, sample.scenario) for sample in self.samples))

    def peers(self, protocol: str, scenario: str) -> list[str]:
        """The peers measured in a scenario, in order."""
        found = (s.peer for s in self.samples if (s.protocol, s.scenario) == (protocol, scenario))
        return list(dict.fromkeys(found))

    def of(self, protocol: str, scenario: str, peer: str) -> list[Sample]:
        """A peer's samples in a scenario, by round."""
        wanted = (protocol, scenario, peer)
        return [sample for sample in self.samples if (sample.protocol, sample.scenario, sample.peer) == wanted]

    def compare(self, protocol: str, scenario: str, peer: str, other: str, measure: str) -> float | None:
        """Median over the rounds of peer against other: a ratio, or for "p50" a difference in us."""
        theirs = {sample.round: sample for sample in self.of(protocol, scenario, other)}
        values = [
            value
            for sample in self.of(protocol, scenario, peer)
            if sample.round in theirs and (value := _compare(sample, theirs[sample.round], measure)) is not None
        ]
        return statistics.median(values) if values else None


def _compare(sample: Sample, other: Sample, measure: str) -> float | None:
    if measure == "p50":
        return sample.p50_us - other.p50_us
    if measure == "rate":
        return sample.requests_per_second / other.requests_per_second
    if sample.cpu_us is None or not other.cpu_us:
        return None
    return sample.cpu_us / other.cpu_us


def measurements(results: Results, protocol: str) -> Block:
    """What was measured, in medians; spread is what lies between the slowest and the fastest round."""
    rows = []
    for kind, scenario in results.scenarios():
        if kind != protocol:
            continue
        for peer in results.peers(protocol, scenario):
            samples = results.of(protocol, scenario, peer)
            rates = [sample.requests_per_second for sample in samples]
            processor = [sample.cpu_us for sample in samples if sample.cpu_us is not None]
            rows.append(
                (
                    scenario,
                    peer,
                    f"{statistics.median(rates):,.0f}",
                    f"{(max(rates) - min(rates)) / statistics.median(rates):.0%}",
                    f"{statistics.median(sample.p50_us for sample in samples):,.0f}",
                    f"{statistics.median(sample.p95_us for sample in samples):,.0f}",
                    f"{statistics.median(sample.p99_us for sample in samples):,.0f}",
                    f"{statistics.median(processor):.1f}" if processor else NOTHING,
                )
            )
    head = ("scenario", "peer", "requests/s", "spread", "p50 us", "p95 us", "p99 us", "CPU us each")
    return Block(f"Measured: {protocol}", head, tuple(rows))


def ratios(results: Results, protocol: str, ours: Sequence[str]) -> Block:
    """Ours against each peer: CPU per request and rate as ratios, and the latency added (p50)."""
    rows = []
    for kind, scenario in results.scenarios():
        if kind != protocol:
            continue
        peers = results.peers(protocol, scenario)
        for peer in [peer for peer in peers if peer in ours]:
            for other in [other for other in peers if other not in ours]:
                processor = results.compare(protocol, scenario, peer, other, "cpu")
                rate = results.compare(protocol, scenario, peer, other, "rate")
                added = results.compare(protocol, scenario, peer, other, "p50")
                rows.append(
                    (
                        scenario,
                        peer,
                        other,
                        NOTHING if processor is None else f"{processor:.2f}",
                        NOTHING if rate is None else f"{rate:.2f}",
                        NOTHING if added is None else f"{added:+,.0f}",
                    )
                )
    head = ("scenario", "this", "against", "CPU each, ratio", "requests/s, ratio", "p50 us, added")
    return Block(f"Ratios: {protocol}", head, tuple(rows))


def targets(results: Results, gateway: str, wanted: Iterable[Target]) -> Block:
    """Which targets the gateway meets."""
    rows = []
    for target in wanted:
        value = results.compare(target.protocol, target.scenario, gateway, target.peer, target.measure)
        if value is not None:
            unit = " us" if target.measure == "p50" else ""
            rows.append((target.words, f"{value:.2f}{unit}", "yes" if target.met(value) else "NO"))
    return Block("Targets", ("target", "measured", "met"), tuple(rows))


def show(blocks: Iterable[Block], console: Console) -> None:
    """Prints tables on a terminal."""
    for block in blocks:
        table = Table(title=block.title, title_justify="left")
        for number, column in enumerate(block.head):
            table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
        last = ""
        for row in block.rows:
            if last and row[0] != last:
                table.add_section()
            table.add_row(*row)
            last = row[0]
        console.print(table)


def markdown(title: str, facts: Iterable[tuple[str, str]], blocks: Iterable[Block]) -> str:
    """The report as Markdown: what was measured on, then the tables."""
    return "\n".join(_markdown_lines(title, facts, blocks)) + "\n"


def _markdown_lines(title: str, facts: Iterable[tuple[str, str]], blocks: Iterable[Block]) -> Iterator[str]:
    yield f"# {title}"
    yield ""
    for name, value in facts:
        yield f"- {name}: {value}"
    for block in blocks:
        yield ""
        yield f"## {block.title}"
        yield ""
        yield "| " + " | ".join(block.head) + " |"
        yield "| " + " | ".join("---" if number < 2 else "---:" for number in range(len(block.head))) + " |"
        for row in block.rows:
            yield "| " + " | ".join(row) + " |"


def as_json(facts: Iterable[tuple[str, str]], results: Results) -> str:
    """Every sample, for other programs."""
    return json.dumps({"facts": dict(facts), "samples": [asdict(sample) for sample in results.samples]}, indent=1)
