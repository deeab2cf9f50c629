"""Every benchmark runs to its end at its smallest setting, and says what it saw where one cannot.

No number of theirs is looked at: speed is measured by hand. See benchmarks/README.md.
"""

import importlib
import importlib.util
import json
import os
import sys

import pytest

from tests.conftest import ROOT
from tests.scripts import start

# two devices, however many cores there are
TWO = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
SMALLEST = {
    "throughput": ("--shapes", "default", "--turns", "1", "--seconds", ".1", "--starts", "1"),
    "time_to_loss": ("--seeds", "0", "--targets", ".01", "--steps", "20"),
    "population": ("--runs", "2", "--group", "2", "--turns", "1"),
    "dpo": ("--turns", "1"),
    "monitor": ("--runs", "2", "--turns", "1"),
}
PEERS = {"throughput": "torch", "time_to_loss": "torch", "dpo": "trl"}


def smallest(name: str, out, *more: str) -> dict:
    """Run a benchmark at its smallest setting; all that it measured."""
    args = (f"benchmarks/{name}.py", *SMALLEST[name], "--json", out, *more)
    script = start(*args, XLA_FLAGS=TWO)
    assert script.wait(300) == 0, script.err
    return json.loads(out.read_text())


def test_every_benchmark_has_a_smallest_setting():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts - {"contestants", "peer", "forecast_files"} == set(SMALLEST)


@pytest.mark.long
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_ends_and_measures(name, tmp_path):
    measured = smallest(name, tmp_path / "out.json")
    if name == "throughput":
        assert all(map(all, measured["starts"].values()))
        measured = measured["shapes"]["default"]["turns"]
    assert len(measured) >= 1
    assert all(len(values) == 1 for values in measured.values())


@pytest.mark.long
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_ends_too(name, tmp_path):
    peer = PEERS[name]
    if not importlib.util.find_spec(peer):
        pytest.skip(f"needs {peer}: see benchmarks/README.md")
    smallest(name, tmp_path / "out.json", "--peer", peer)


@pytest.mark.long
def test_forecasts_of_files_are_compared(tiny, tmp_path):
    out = tmp_path / "out.json"
    script = start("benchmarks/forecast_files.py", tiny / "run", "--each", "1", "--json", out)
    assert script.wait(300) == 0, script.err
    rows = json.loads(out.read_text())
    assert len(rows) == 2 * 8  # from both starts
    assert {row["kind"] for row in rows} >= {"plain", "noisy", "someone"}
    assert "compared; others:" in script.out


@pytest.fixture
def throughput(monkeypatch):
    """The module, with those that it imports beside it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("throughput")
    for name in ("throughput", "contestants"):
        sys.modules.pop(name)


def test_a_wait_says_what_it_saw(throughput, tmp_path):
    """A script that ends too early, one that takes too long, and a contestant that there is not."""
    with pytest.raises(SystemExit, match=r"(?s)ended before its first step: .*--no-such"):
        throughput.first_step(tmp_path, "--no-such")
    with pytest.raises(SystemExit, match=r"(?s)no step within 0\.1 s: it printed nothing"):
        throughput.first_step(tmp_path, limit=0.1)
    with pytest.raises(
        SystemExit, match=r"(?s)contestant nobody default ended: .*KeyError: 'nobody'"
    ):
        throughput.compete(["nobody"], "default", 1, 0.1)
    assert not list(tmp_path.iterdir())
