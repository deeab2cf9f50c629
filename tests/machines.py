"""Run the tests that compare numbers under several instruction sets and numbers of devices.

    uv run tests/machines.py                            all of them; a quarter of an hour on 2 cores
    uv run tests/machines.py --isa SSE4_2 --devices 3   one of them, as CI does

For each comparison it prints the largest difference that was seen, in parts of its bound (see
tests/tolerances.py), and the margin between them. It fails where a test does, and where a margin is
less than 5.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMERIC = (
    *("audit", "bayes", "claims", "corpus", "devices", "inside", "measures", "model", "monitor"),
    *("objectives", "own_worlds", "scoring", "training", "verdicts"),
)
ISAS = {"SSE4_2": "sse4_2", "AVX2": "avx2", "AVX512": "avx512f"}  # with the flag in /proc/cpuinfo
DEVICES = (1, 2, 3, 8)
MARGIN = 5  # the least between a bound and what is seen
LOOSE = 100  # above this, a bound stands for a fault that it would show


def main() -> int:
    """Run, collect, print. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", nargs="+", choices=ISAS, default=[*ISAS])
    parser.add_argument("--devices", nargs="+", type=int, default=[*DEVICES])
    args = parser.parse_args()
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    known: list = [isa for isa in args.isa if ISAS[isa] in flags]
    if missing := [isa for isa in args.isa if isa not in known]:
        print(f"This processor has no {', '.join(missing)}.")
    known = known or [None]  # another kind of processor: as it is
    used: dict = defaultdict(dict)  # comparison → {machine: share of its bound}
    bounds, failed = {}, []
    for isa in known:
        for count in args.devices:
            machine = f"{isa or 'this processor'} x {count}"
            status, records = run(isa, count)
            failed += [machine] * (status != 0)
            for record in records:
                where = record["where"]
                used[where][machine] = max(record["used"], used[where].get(machine, 0))
                bounds[where] = record["bound"], record["fault"]
            print(f"{machine}: {len(records)} comparisons, {'FAILED' if status else 'passed'}")
    show(used, bounds)
    least = min(
        (1 / max(share.values()) for share in used.values() if any(share.values())), default=0
    )
    print(f"\nThe least margin is {least:.1f}, expected at least {MARGIN}.")
    if failed:
        print(f"Tests failed under {', '.join(failed)}.")
    return int(bool(failed) or least < MARGIN)


def run(isa: str | None, count: int) -> tuple[int, list[dict]]:
    """The exit status of the tests on one machine, and what their comparisons have recorded."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "margins.jsonl"
        record.touch()
        status = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-m", "not long and not scripts", "--no-header"),
                *(f"tests/test_{name}.py" for name in NUMERIC),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "XLA_FLAGS": f"--xla_cpu_max_isa={isa}" if isa else "",
                "JAX_NUM_CPU_DEVICES": str(count),
                "TOYLLM_MARGINS": str(record),
            },
        ).returncode
        return status, [json.loads(line) for line in record.read_text().splitlines()]


def show(used: dict, bounds: dict) -> None:
    """One line for each comparison, the nearest to its bound first."""
    print(f"\n{'comparison':<28}{'bound':<15}{'difference/bound':>17}{'margin':>10}  seen under")
    for where, shares in sorted(used.items(), key=lambda item: -max(item[1].values())):
        machine, share = max(shares.items(), key=lambda item: item[1])
        margin = f"{1 / share:,.0f}" if share else "equal"
        note = f"; would show: {bounds[where][1]}" if not share or 1 / share > LOOSE else ""
        print(f"{where:<28}{bounds[where][0]:<15}{share:>17.2g}{margin:>10}  {machine}{note}")


if __name__ == "__main__":
    sys.exit(main())
