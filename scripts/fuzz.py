"""Fuzzes every decoder and the classifier, guided by coverage, for a bounded time: `make fuzz`.

Each target runs in a process of its own under Atheris (libFuzzer), with an equal share of --seconds. An input that
makes one fail is written to tests/corpus/fuzz/TARGET, where the tests replay it from then on.

python scripts/fuzz.py [--seconds 60] [target ...]
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT / "tests" / "corpus" / "fuzz"
INPUT_BYTES = 2_048  # longest input; longer ones are the business of benchmarks/classify.py


def run_target(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["gateway"]):
        from fuzz_targets import TARGETS

    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES}", f"-artifact_prefix={corpus}/found-",
         "-rss_limit_mb=1024", "-timeout=10", "-verbosity=0", str(corpus / "work"), str(SEEDS / name)],
        TARGETS[name],
    )  # fmt: skip
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the decoders and the classifier.")
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--one", nargs=2, metavar=("SECONDS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "servers")]
    if options.one:
        run_target(options.targets[0], int(options.one[0]), Path(options.one[1]))
        return 0
    from fuzz_targets import SAMPLES, TARGETS

    names = options.targets or list(TARGETS)
    failed = []
    for name in names:
        (SEEDS / name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder)
            (corpus / "work").mkdir()
            for number, sample in enumerate(SAMPLES[name]):
                (corpus / "work" / f"sample-{number}").write_bytes(sample)
            share = max(1, options.seconds // len(names))
            print(f"{name}: {share} s", flush=True)
            done = subprocess.run(
                [sys.executable, __file__, name, "--one", str(share), folder], capture_output=True, text=True, cwd=ROOT
            )
            found = sorted(corpus.glob("found-*"))
            for file in found:
                data = file.read_bytes()
                seed = SEEDS / name / hashlib.sha256(data).hexdigest()[:16]
                seed.write_bytes(data)
                print(f"{name}: fails on {seed.relative_to(ROOT)}")
            if done.returncode or found:
                failed.append(name)
                print(done.stdout[-2_000:] + done.stderr[-4_000:])
            else:
                print("\n".join(line for line in done.stderr.splitlines() if line.startswith("Done")))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
