"""Memory does not grow with the length of a run."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT


def own_memory(pid: int) -> float:
    """Resident memory of a process in MiB, without pages of files, which come and go."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_ten_times_the_default_length(tmp_path):
    """80,000 steps of pretraining at the default size: from the default's end on it is flat."""
    usual = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "train.py", "--run", tmp_path / "run", "--pretrain-steps", "80000"],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key not in usual},
            stdout=log,
            stderr=log,
        )
        samples = []  # (step, MiB)
        while process.poll() is None and not (tmp_path / "run/pretrain/stage.json").exists():
            steps = re.findall(r"(\d+)/80000 \[", (tmp_path / "log").read_text()[-500:])
            samples.append((int(steps[-1]) if steps else 0, own_memory(process.pid)))
            time.sleep(2)
        process.kill()
        process.wait()
    step, mib = np.array(samples).T
    assert step[-1] > 79_000, (tmp_path / "log").read_text()[-2000:]
    tenths = [np.median(mib[(step >= k) & (step < k + 8000)]) for k in range(8000, 80_000, 8000)]
    print(f"\nmedian MiB in each tenth from the second on: {np.round(tenths).astype(int).tolist()}")
    assert max(tenths) <= 1.05 * tenths[0]
