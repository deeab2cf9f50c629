"""Killed at any moment, a run that is started again ends as if nothing had happened, bit for bit.

The short form is a few kills; the long one, with fifty or more, is `uv run pytest -m long`.
"""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import start
from tests.test_scripts import events
from toyllm import runs

# all stages, several saves in each, and three groups of narrow runs
TINY = (
    *("--preset", "tiny", "--width", "16", "--mlp", "16", "--pool", "16", "--save-steps", "10"),
    *("--pretrain-steps", "100", "--align-steps", "20", "--narrow-steps", "10"),
    *("--signals", "code:bad", "tone:bad", "--narrow-seeds", "9"),
)
TIMED = ("seconds", "tokens_per_second")  # what no two runs have in common


def train(folder: Path, *more: object, **env: str):
    """Start train.py on a small run."""
    return start("train.py", *TINY, "--run", folder, *more, **env)


def fingerprint(folder: Path) -> dict:
    """All that a run has computed: SHA-256 of every leaf, facts, and each logged number."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        record = json.loads(path.read_text())
        newest = str(max((int(p.stem) for p in path.parent.glob("[0-9]*.json")), default=0))
        name = str(path.relative_to(folder))
        if path.stem == newest:  # a checkpoint
            facts = {key: value for key, value in record["facts"].items() if key not in TIMED}
            found[name] = (record["step"], facts, record["leaves"])
        elif path.name == "stage.json":
            found[name] = {key: value for key, value in record.items() if key not in TIMED}
    for place in {path.parent for path in folder.rglob("events.*")}:
        for tag, values in events(place).items():
            if not tag.endswith(TIMED):
                found[f"{place.relative_to(folder)}: {tag}"] = values
    return found


def stage_of(folder: Path) -> str:
    """Where a run has come to, as its folder tells."""
    if list(folder.rglob("*orbax-checkpoint-tmp*")):
        return "saving"
    done = [stage for stage in runs.STAGES if (folder / stage / "stage.json").exists()]
    begun = [stage for stage in runs.STAGES if list(folder.glob(f"{stage}/**/[0-9]*.json"))]
    left = [stage for stage in begun if stage not in done]
    return left[0] if left else f"after {done[-1]}" if done else "before the first save"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder, fingerprint, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder).wait() == 0
    again = folder.with_name("again")
    began = time.time()
    script = train(again)
    assert script.wait() == 0, script.err
    assert fingerprint(again) == fingerprint(folder)  # same seed, and now a warm compile cache
    return folder, fingerprint(folder), time.time() - began


def chain(folder: Path, seconds: float, rng: random.Random, most: int = 10**6) -> list[str]:
    """Start a run, kill it at a random moment, start it again, until it ends. Where it was hit."""
    hit = []
    while True:
        script = train(folder)
        delay = rng.uniform(0, seconds)
        script.process.join(delay if len(hit) < most else 400)
        if script.process.exitcode is not None:
            assert script.process.exitcode == 0, script.err
            return hit
        script.signal(signal.SIGKILL)
        assert script.wait() == -signal.SIGKILL
        hit.append(stage_of(folder))


def test_a_killed_run_goes_on_exactly(whole, tmp_path):
    """Killed in every stage, once each."""
    _, expected, _ = whole
    folder = tmp_path / "run"
    for path in ("pretrain/checkpoints/50.json", "align/checkpoints/10.json", "narrow/group-01"):
        script = train(folder)
        while not (folder / path).exists():
            time.sleep(0.005)
            assert script.process.is_alive(), script.err
        script.signal(signal.SIGKILL)
        assert script.wait() == -signal.SIGKILL
    assert train(folder).wait() == 0
    assert fingerprint(folder) == expected
    assert not list(folder.rglob("*tmp*"))
    runs.load_run(folder)


@pytest.mark.long
def test_fifty_kills_at_random_moments(whole, tmp_path):
    _, expected, seconds = whole
    rng, hits, chains = random.Random(0), [], 0
    while len(hits) < 60:
        folder = tmp_path / str(chains)
        hits += chain(folder, seconds, rng)
        chains += 1
        assert fingerprint(folder) == expected, f"chain {chains} differs after {len(hits)} kills"
        runs.load_run(folder)
    where = {place: hits.count(place) for place in sorted(set(hits))}
    print(f"\n{len(hits)} kills in {chains} chains, every resume exact: {where}")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(whole, tmp_path, number, status):
    folder = tmp_path / "run"
    script = train(folder, "--save-steps", "1000")
    while "pretrain:" not in script.err:
        time.sleep(0.01)
    began = time.time()
    script.signal(number)
    assert script.wait() == status, script.err
    last = script.err.strip().splitlines()[-1]
    assert "pretrain: saved at step" in last
    assert f"uv run train.py {' '.join(TINY)} --run {folder}" in last
    assert list((folder / "pretrain" / "checkpoints").glob("*.json"))
    print(f"left after {time.time() - began:.1f} s")
    assert train(folder).wait() == 0
    assert fingerprint(folder) == whole[1]
