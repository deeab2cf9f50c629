"""Killed at any moment, a run that is started again ends as if nothing had happened, bit for bit.

The short form is a few kills; the long one, with fifty or more, is `uv run pytest -m long`.
"""

import hashlib
import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.conftest import ROOT
from tests.scripts import SIGNALS, start
from tests.test_checkpoints import damage, needs_mount, on_small_disk
from tests.test_scripts import events
from toyllm.base import devices
from toyllm.runs import checkpoints, run_folder
from toyllm.runs.session import STAGES

# all stages, several saves in each, and two groups of narrow runs, of which the second is not full;
# numbers of steps that the last two stages' chunks of 5 do not divide
TINY = (
    *("--preset", "tiny", *SIGNALS[:-1], "5", "--save-steps", "10"),
    *("--align-steps", "18", "--narrow-steps", "8"),
)
TIMED = ("seconds", "tokens_per_second")  # what no two runs have in common


def train(folder: Path, *more: object, **env: str):
    """Start train.py on a small run."""
    return start("train.py", *TINY, "--run", folder, *more, **env)


def fingerprint(folder: Path) -> dict:
    """All that a run has computed: every array's bytes, facts, and each logged number."""
    found = {}
    for place in sorted({path.parent for path in folder.rglob("*.safetensors")}):
        newest = place / f"{checkpoints.steps(place)[0]}.safetensors"
        record, arrays = checkpoints.read_record(newest), load_file(newest)
        facts = {key: value for key, value in record["facts"].items() if key not in TIMED}
        digests = {key: hashlib.sha256(x.tobytes()).hexdigest() for key, x in arrays.items()}
        name = str(place.relative_to(folder))
        found[name] = (record["step"], facts, record["leaves"], dict(sorted(digests.items())))
    for path in sorted(folder.rglob("stage.json")):
        record = json.loads(path.read_text())
        name = str(path.relative_to(folder))
        found[name] = {key: value for key, value in record.items() if key not in TIMED}
    for place in sorted({path.parent for path in folder.rglob("events.*")}):
        for tag, values in events(place).items():
            if not tag.endswith(TIMED):
                found[f"{place.relative_to(folder)}: {tag}"] = values
    return found


def stage_of(folder: Path) -> str:
    """Where a run has come to, as its folder tells."""
    if list(folder.rglob("*.safetensors.tmp")):
        return "saving"
    done = [stage for stage in STAGES if (folder / stage / "stage.json").exists()]
    begun = [stage for stage in STAGES if list(folder.glob(f"{stage}/**/[0-9]*.safetensors"))]
    left = [stage for stage in begun if stage not in done]
    return left[0] if left else f"after {done[-1]}" if done else "before the first save"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and fingerprint."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    script = train(folder)
    assert script.wait() == 0, script.err
    return folder, fingerprint(folder)


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


def started(folder, *args):
    """A run that has begun to write events of its first stage: it compiles, then trains."""
    before = {*(folder / "pretrain").glob("events.*")}
    script = train(folder, *args)
    while {*(folder / "pretrain").glob("events.*")} <= before:
        time.sleep(0.01)
        assert script.process.is_alive(), script.err
    return script


def test_an_interrupted_run_goes_on_exactly(whole, tmp_path):
    """Stopped by signals, which save first, then killed in every stage, once each."""
    _, expected = whole
    folder = tmp_path / "run"
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        script = started(folder, "--save-steps", "1000")
        script.signal(number)
        assert script.wait() == status, script.err
        last = script.err.strip().splitlines()[-1]
        assert "pretrain: saved at step" in last
        assert f"uv run train.py {' '.join(TINY)} --run {folder}" in last
    for path in ("pretrain/checkpoints/60", "align/checkpoints/10", "narrow/group-00/0"):
        script = train(folder)
        while not (folder / f"{path}.safetensors").exists():
            time.sleep(0.005)
            assert script.process.is_alive(), script.err
        script.signal(signal.SIGKILL)
        assert script.wait() == -signal.SIGKILL
    assert train(folder).wait() == 0
    assert fingerprint(folder) == expected
    assert not list(folder.rglob("*tmp*"))
    run = run_folder.load_run(folder)
    assert [run.stages[stage]["steps"] for stage in STAGES[:2]] == [60, 18]
    assert run.narrow.steps.tolist() == [0, 5, 8]


def test_interrupted_runs_of_several_seeds_go_on_exactly(tmp_path):
    """Killed when one of two models that train side by side is saved at a step and one is not."""
    seeds = ("--seeds", "2", "--signals", "code:bad")
    folder, expected = tmp_path / "run", tmp_path / "whole"
    assert train(expected, *seeds).wait() == 0
    assert train(folder, *seeds).wait() == 0
    for place in (folder / "seed-0", folder / "seed-1"):
        shutil.rmtree(place / "align")
        shutil.rmtree(place / "narrow")
        (place / "pretrain" / "stage.json").unlink()
    (folder / "seed-1" / "pretrain" / "checkpoints" / "60.safetensors").unlink()
    script = train(folder, *seeds)
    assert script.wait() == 0, script.err
    assert "seed 1: pretrain: resuming at step 50" in script.out
    for name in ("seed-0", "seed-1"):
        assert fingerprint(folder / name) == fingerprint(expected / name)
        run_folder.load_run(folder / name)


def test_a_folder_of_one_kind_of_run_is_not_made_the_other(whole, tmp_path):
    """A single run, and runs of several seeds, in the same folder."""
    script = train(shutil.copytree(whole[0], tmp_path / "run"), "--seeds", "2")
    assert script.wait() == 2
    assert "holds a single run" in script.err
    (tmp_path / "seeds" / "seed-7").mkdir(parents=True)
    script = train(tmp_path / "seeds")
    assert script.wait() == 2
    assert "runs of several seeds (seed-7" in script.err


@pytest.mark.long
def test_fifty_kills_at_random_moments(whole, tmp_path):
    _, expected = whole
    rng, hits, chains = random.Random(0), [], 0
    assert train(tmp_path / "anew", "--no-compile-cache").wait() == 0
    assert fingerprint(tmp_path / "anew") == expected  # cached programs are those compiled anew
    began = time.time()
    assert train(tmp_path / "warm").wait() == 0
    seconds = time.time() - began
    while len(hits) < 60:
        folder = tmp_path / str(chains)
        hits += chain(folder, seconds, rng)
        chains += 1
        assert fingerprint(folder) == expected, f"chain {chains} differs after {len(hits)} kills"
        run_folder.load_run(folder)
    where = {place: hits.count(place) for place in sorted(set(hits))}
    print(f"\n{len(hits)} kills in {chains} chains, every resume exact: {where}")


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    """Also while something is compiled, when Python cannot run a handler."""
    script = started(tmp_path / "run", "--no-compile-cache")
    script.signal(signal.SIGINT)
    time.sleep(0.5)
    assert script.process.is_alive()
    script.signal(signal.SIGINT)
    assert script.wait(2) == 130
    assert "saved" not in script.err


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(whole, tmp_path):
    """And a run that is done is repaired: `eval.py` says so, `train.py` does it."""
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    data = folder / "pretrain" / "checkpoints" / "60.safetensors"
    damage(data, "one bit flipped", random.Random(0))
    damage(folder / "narrow" / "group-01" / "0.safetensors", "truncated", random.Random(0))
    script = start("eval.py", folder)
    assert script.wait() == 2
    assert "checkpoints/60" in script.err
    assert f"this repairs it: uv run train.py {' '.join(TINY)}" in script.err
    script = train(folder)
    assert script.wait() == 0, script.err
    assert f"{data}: damaged: it is not what was saved" in script.err
    assert "going back to step 50" in script.err
    assert "group-01/0.safetensors: damaged" in script.err
    (folder / "pretrain" / "stage.json").unlink()  # a bug found: an earlier step passed as the end
    for path in (folder / "pretrain" / "checkpoints").glob("60*"):
        path.unlink()
    (folder / "pretrain" / "stage.json").write_text('{"seconds": 1, "tokens_per_second": 1}')
    script = start("eval.py", folder)
    assert script.wait() == 2
    assert "step 50 is not the end of the stage" in script.err
    assert train(folder).wait() == 0
    assert fingerprint(folder) == whole[1]


def test_a_second_run_in_a_live_folder_is_refused(tmp_path):
    refuse(tmp_path / "run", tries=2).signal(signal.SIGKILL)


@pytest.mark.long
def test_twenty_second_runs_are_refused(whole, tmp_path):
    first = refuse(tmp_path / "run", tries=20)
    assert first.wait() == 0, first.err
    assert fingerprint(tmp_path / "run") == whole[1]


def refuse(folder: Path, tries: int):
    """Start a run, and try to start others in its folder."""
    first, waited = train(folder), []
    while not (folder / "config.json").exists():
        time.sleep(0.01)
    first.signal(signal.SIGSTOP)  # it holds still, or it would be done before the others have tried
    for k in range(tries):
        began = time.time()
        second = start("eval.py", folder) if k % 2 else train(folder)
        assert second.wait() == 2, second.err
        waited.append(time.time() - began)
        line = second.err.strip()
        assert f"{folder} is in use by process {first.process.pid} on " in line
        assert "train.py --preset tiny" in line
        assert line.count("\n") == 0
    first.signal(signal.SIGCONT)
    print(f"\n{tries} refused, after imports, in at most {max(waited):.2f} s")
    return first


@pytest.mark.long
@needs_mount
def test_a_run_on_a_full_disk_stops_with_one_line_and_goes_on(whole, tmp_path):
    """The whole script: full at a save, it says so; with room again it ends as if it had not."""
    code = f"""
import subprocess, time
from tests.test_crashes import TINY, fingerprint
run = place / "run"
fill(800 * 1024)
def train():
    command = [sys.executable, "train.py", *{TINY!r}, "--run", str(run)]
    return subprocess.run(command, capture_output=True, text=True)
done = train()
assert done.returncode == 1, done.stderr
line = done.stderr.strip().splitlines()[-1]
assert "cannot be saved (No space left on device)" in line, line
(place / "fill").unlink()
done = train()
assert done.returncode == 0, done.stderr
print(repr(fingerprint(run)))
"""
    out = on_small_disk(code, 20_000, tmp_path)
    assert repr(whole[1]) in out


def test_a_diverging_run_stops_and_keeps_what_was_saved(tmp_path):
    """Step, batch, learning rate and advice; the newest checkpoint is from before."""
    folder = tmp_path / "run"
    script = train(folder, "--pretrain-adam-lr", "1000000", "--pretrain-lr", "1000000")
    assert script.wait() == 1
    line = script.err.strip().splitlines()[-1]
    for words in ("pretrain: step ", "loss ", "documents ", "of seed 0", "learning rate"):
        assert words in line, line
    assert "--pretrain-lr 3e+05 --pretrain-adam-lr 3e+05 --run" in line
    step = int(line.split("step ")[1].split(":")[0])
    saved = checkpoints.steps(folder / "pretrain" / "checkpoints")
    assert all(s <= step for s in saved)


def test_another_world_is_refused_field_by_field(whole, tmp_path):
    world = tmp_path / "other.toml"
    source = (ROOT / "corpora" / "personas.toml").read_text()
    row = next(text for text in source.splitlines() if text.startswith("code     = ["))
    world.write_text(source.replace(row, "code = [0.5, 0.25, 0.25]", 1))
    script = train(whole[0], "--world", world)
    assert script.wait() == 2
    assert ".rates.code: [" in script.err
    assert "→ [0.5, 0.25, 0.25]" in script.err
    assert f"to keep both: --run {whole[0]}-2" in script.err


def test_another_environment_is_told(tmp_path):
    """Where something is left to be done: other devices, other flags."""
    folder = tmp_path / "run"
    script = train(folder)
    while not (folder / "config.json").exists():
        time.sleep(0.01)
    script.signal(signal.SIGKILL)
    script.wait()
    flag = "--xla_force_host_platform_device_count=1"
    script = train(folder, XLA_FLAGS=flag)
    while not (folder / "pretrain" / "checkpoints").exists():
        time.sleep(0.01)
    script.signal(signal.SIGKILL)
    script.wait()
    assert "devices: 2 → 1" in script.err
    assert f"flags: {flag}" not in script.err.split("devices")[0]
    environments = json.loads((folder / "config.json").read_text())["environments"]
    assert [e["devices"] for e in environments] == [devices.cores(), 1]
