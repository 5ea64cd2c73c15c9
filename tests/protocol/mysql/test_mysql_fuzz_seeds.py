"""What fuzzing has found stays found: every seed, every sample, and what hypothesis makes of the samples, is taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from fuzz_targets import SAMPLES, TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st

SEEDS: Final = Path(__file__).parent.parent.parent / "corpus" / "fuzz"
EXAMPLES: Final = int(os.environ.get("GATEWAY_FUZZ_EXAMPLES", "200"))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_samples_are_taken(name: str) -> None:
    for data in [*SAMPLES[name], *(file.read_bytes() for file in sorted((SEEDS / name).glob("*")))]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_the_samples_are_taken(name: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(st.sampled_from(SAMPLES[name]), st.integers(0, 400), st.integers(0, 40), st.binary(max_size=20))
    def take(sample: bytes, place: int, removed: int, added: bytes) -> None:
        at = place % (len(sample) + 1)
        TARGETS[name](sample[:at] + added + sample[at + removed :])

    take()


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_taken(name: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(st.binary(max_size=300))
    def take(data: bytes) -> None:
        TARGETS[name](data)

    take()
