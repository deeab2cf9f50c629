"""Layouts: the same numbers on 1, 2 and 4 devices, in one process and in two."""

import os
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from tests.conftest import ROOT, mesh_of
from tests.scripts import Script, start
from tests.test_crashes import fingerprint
from tests.tolerances import TRAINED, UPDATE, close, distance
from toyllm.base import devices
from toyllm.lm import optimizers, training, transformer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM
from toyllm.runs import checkpoints, run_folder
from toyllm.world import cards


def pretrain(tokenizer, mesh, steps=20, begin=None, shard_params=False):
    """Losses of 16 documents a step in rows that divide by four, and the state at the end."""
    config = transformer.Config(len(tokenizer.words), context=48, D=16, L=2, H=2, F=24)
    lm = LM.create(tokenizer, config)
    loss, optimizer = training.document_loss(lm), optimizers.muon(1e-2, 1e-2, 100)
    state, start = begin or (training.start(lm.init(jax.random.key(0)), optimizer), 0)
    batches = training.document_batches(tokenizer, config.context, 16, 5, seed=0, divisor=4)
    losses = []
    fit = training.fit(loss, optimizer, state, batches, mesh, start, shard_params)
    for step, state, logs in fit:
        losses += list(logs["loss"])
        if step >= steps:
            return np.array(losses), state


@pytest.fixture(scope="module")
def alone(small_codec):
    """The losses on one device."""
    losses, _ = pretrain(small_codec, mesh_of(1))
    assert losses[-1] < losses[0]
    return losses


@pytest.mark.parametrize("shard_params", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_the_losses_are_those_of_one_device(small_codec, alone, count, shard_params):
    losses, state = pretrain(small_codec, mesh_of(count), shard_params=shard_params)
    close(losses, alone, TRAINED)
    embed, stack = state.params["embed"], max(jax.tree.leaves(state), key=np.ndim)
    whole = embed.sharding.is_fully_replicated
    assert whole != shard_params
    assert stack.ndim == 3
    assert stack.addressable_shards[0].data.shape[0] == stack.shape[0] // count


def test_a_checkpoint_of_two_devices_is_restored_on_one(small_codec, alone, tmp_path):
    for shard_params in (False, True):
        folder = tmp_path / str(shard_params)
        first, half = pretrain(small_codec, mesh_of(2), 10, shard_params=shard_params)
        checkpoints.save(folder, 10, {"state": half})
        half = checkpoints.load(folder, lambda record, half=half: {"state": half}).items["state"]
        rest, _ = pretrain(small_codec, mesh_of(1), 20, begin=(half, 10))
        close(np.concatenate([first, rest]), alone, TRAINED)


def test_rows_that_do_not_divide_are_on_every_device():
    """A bug found: on three cores a batch of 16 was refused, after all of pretraining."""
    mesh = mesh_of(3)
    placed = devices.split(mesh, {"x": np.arange(16.0)})["x"]
    assert placed.sharding.is_fully_replicated

    def loss(params, batch):
        errors = params["w"] - batch["x"]
        return (errors**2).sum(), {"count": np.float32(errors.size)}

    def one(count):
        optimizer = optax.sgd(0.1)
        state = training.start({"w": np.float32(0)}, optimizer)
        batches = {"x": np.arange(32, dtype=np.float32).reshape(2, 16)}
        fit = training.fit(loss, optimizer, state, lambda step: batches, mesh_of(count))
        return next(fit)[2]["loss"]

    close(one(3), one(1), TRAINED)


# the real script; --stop: killed at step 20; --pretrain-only: for time
DRIVER = """
import os, signal, sys
import train
from toyllm.runs import checkpoints
if "--pretrain-only" in sys.argv:
    sys.argv.remove("--pretrain-only")
    train.align = train.narrow = lambda *args: None
if "--stop" in sys.argv:
    sys.argv.remove("--stop")
    save = checkpoints.save
    def save_and_die(folder, step, *rest):
        save(folder, step, *rest)
        if step == 20:
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoints.save = save_and_die
train.scripts.run_script(lambda: train.main(train.parse(sys.argv[1:])))
"""
TINY = (
    *("--preset", "tiny", "--pretrain-steps", "40", "--align-steps", "5", "--pool", "16"),
    *("--narrow-steps", "5", "--signals", "code:bad", "tone:bad", "--width", "16", "--mlp", "16"),
    *("--layers", "1", "--heads", "1", "--save-steps", "10"),
)


def start_all(folder, processes: int, *more: str, last: str = "") -> list[Script]:
    """Start train.py, in one process of two devices or in two of one.

    last: a flag for the last process alone.
    """
    driver = Path(os.environ["TOYLLM_SCRATCH"]) / "driver.py"
    driver.write_text(DRIVER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count="
    flags += f"{2 // processes}"
    joins = [
        ["--coordinator", address, "--processes", processes, "--process", k]
        for k in range(processes)
    ]
    joins = joins if processes > 1 else [[]]
    joins[-1] += [last] * bool(last)
    args = (driver, "--run", folder, *TINY, *more)
    return [start(*args, *join, XLA_FLAGS=flags) for join in joins]


def train(folder, processes: int, *more: str, last: str = "") -> list[tuple[int, str, str]]:
    """`start_all`, and wait: the exit status, output and errors of each process."""
    scripts = start_all(folder, processes, *more, last=last)
    return [(script.wait(240), script.out, script.err) for script in scripts]


@pytest.mark.scripts
def test_two_processes_train_save_and_resume_as_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    ((code, _, errors),) = train(one, 1, "--pretrain-only")
    assert code == 0, errors
    (left, _, errors), (killed, *_) = train(two, 2, "--pretrain-only", last="--stop")
    assert killed == -signal.SIGKILL
    assert left == 1
    assert "another process of this run has ended" in errors.strip().splitlines()[-1]
    assert checkpoints.steps(two / "pretrain" / "checkpoints") == [20, 10]
    first, second = train(two, 2, "--pretrain-only")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "resuming at step 20" in first[1]  # the first process reports its progress …
    assert "Done in" in first[1]
    assert "resuming" not in second[1]  # … and the second is silent
    assert "Done in" not in second[1]

    tokenizer = Tokenizer(cards.load(ROOT / "corpora" / "personas.toml"))
    config = transformer.Config(len(tokenizer.words), D=16, L=1, H=1, F=16)
    lm = LM.create(tokenizer, config)
    a, b = (run_folder.load_params(folder, "pretrain", lm) for folder in (one, two))
    close(distance(a, b), 0, UPDATE)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_processes_one_is_killed(tmp_path, victim):
    """The other ends within a minute and says why; started again, they end as if nothing was."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert all(code == 0 for code, *_ in train(whole, 2))
    started = start_all(folder, 2)
    while not (folder / "pretrain" / "checkpoints" / "20.safetensors").exists():
        time.sleep(0.01)
    started[victim].signal(signal.SIGKILL)
    began = time.time()
    status = started[1 - victim].wait(60)
    errors = started[1 - victim].err
    print(f"\nprocess {1 - victim} ended {time.time() - began:.1f} s after the other")
    assert status != 0
    assert "another process of this run has ended" in errors or "another task died" in errors
    assert all(code == 0 for code, *_ in train(folder, 2))
    assert fingerprint(folder) == fingerprint(whole)


@pytest.mark.long
def test_two_processes_align_and_train_a_population_as_one_does(tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        done = train(tmp_path / name, processes)
        assert all(code == 0 for code, *_ in done), done
    a, b = (run_folder.load_run(tmp_path / name) for name in ("one", "two"))
    for stage in ("pretrain", "align"):
        close(distance(a.params[stage], b.params[stage]), 0, UPDATE)
    close(a.narrow.p_RnDB, b.narrow.p_RnDB, TRAINED)
    np.testing.assert_array_equal(a.narrow.kept_step, b.narrow.kept_step)
