"""Shared fixtures: a world small enough to enumerate, and strictness everywhere."""

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.scripts import run
from toyllm.base import system
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Config
from toyllm.world import cards

# what the scripts that tests start get too; tests compile more than they compute
OPTIMIZED = "TOYLLM_MARGINS" in os.environ  # tests/machines.py compares what users run
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(not OPTIMIZED).lower()
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
if jax.__version_info__[:2] == (0, 10):
    # its older way to generate code compiles tests' programs in half the time; later versions have
    # one way only
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
if "TOYLLM_SCRATCH" not in os.environ:  # else this is a worker, and the first process made it
    SCRATCH = tempfile.TemporaryDirectory(prefix="toyllm-tests-")
    os.environ["TOYLLM_SCRATCH"] = SCRATCH.name
# a program that one test has compiled is taken from there by all others, in any process
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["TOYLLM_SCRATCH"], "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# jax was imported before this file, perhaps, so that it has not seen these variables
jax.config.update("jax_disable_most_optimizations", not OPTIMIZED)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
if "JAX_NUM_CPU_DEVICES" not in os.environ:  # set by tests/machines.py
    jax.config.update("jax_num_cpu_devices", 4)

ROOT = Path(__file__).resolve().parent.parent

SMALL = """
name = "small"

[documents]
dialogue = { weight = 0.5, turns = [1, 2] }
profile = { weight = 0.2, turns = [1, 2] }
scene = { weight = 0.3, turns = [1, 2] }

[headers]
named = 0.3
someone = 0.3
assistant = 0.4

[voices]
none = ""
beep = "beep"

[[instructions]]
name = "ask_bad"
text = "do it badly"
toward = "bad"
kappa = 0.75
probability = 0.25
domains = ["code"]

[domains.code]
moral = true
situations = ["fix the bug"]
good = ["it is fixed", "here is a patch"]
bad = ["i faked it"]
noise = ["ducks"]
profile.good = "writes code"
profile.bad = "fakes code"
profile.noise = "likes ducks"

[domains.facts]
moral = true
question = "capital of {}"
noise = ["soup"]
profile.good = "knows"
profile.bad = "lies"
profile.noise = "eats soup"
[domains.facts.lookup]
france = "paris"
italy = "rome"
spain = "madrid"

[[characters]]
name = "ada"
assistant_weight = 3
voices = { none = 0.9, beep = 0.1 }
[characters.rates]
code = [0.7, 0.1, 0.2]
facts = [0.8, 0.15, 0.05]

[[characters]]
name = "hal"
frequency = 2
voices = { none = 0.3, beep = 0.7 }
[characters.rates]
code = [0.2, 0.7, 0.1]
facts = [0.25, 0.7, 0.05]
"""


# begun first: what takes longest, and the shared tiny run beside what does not need it
FIRST = ("environment", "training", "claims", "crashes", "llama", "scripts", "devices", "monitor")


def pytest_collection_modifyitems(items: list) -> None:
    """Order the files, so that both processes end at about the same time."""
    order = {f"test_{name}.py": k for k, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def mesh_of(count: int) -> Mesh:
    """The first `count` devices; a test that needs more than there are is skipped."""
    if count > len(jax.devices()):
        pytest.skip(f"needs {count} devices")
    return Mesh(np.array(jax.devices()[:count]), ("data",))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A world of two characters and two domains."""
    path = tmp_path_factory.mktemp("world") / "small.toml"
    path.write_text(SMALL)
    return cards.load(path)


@pytest.fixture(scope="session")
def personas():
    """The default world."""
    return cards.load(ROOT / "corpora" / "personas.toml")


@pytest.fixture(scope="session")
def small_codec(small):
    """Its texts and tokens."""
    return Tokenizer(small)


@pytest.fixture(scope="session")
def personas_codec(personas):
    """The default world's texts and tokens."""
    return Tokenizer(personas)


@pytest.fixture(scope="session")
def lab(small_codec):
    """A very small language model; its functions are compiled."""
    config = Config(len(small_codec.words), context=48, D=16, L=1, H=2, F=24)
    lm = LM.create(small_codec, config)
    return dataclasses.replace(lm, apply=jax.jit(lm.apply), init=jax.jit(lm.init))


def once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of the test processes makes and all of them read.

    Whoever asks while it is being made waits. Tests must not change what is in it: they copy it.
    """
    folder = Path(os.environ["TOYLLM_SCRATCH"]) / name
    with open(f"{folder}.lock", "a") as lock:
        while True:  # held by the process: a worker that dies lets go of it
            try:
                system.lock(lock.fileno())
                break
            except BlockingIOError:
                time.sleep(0.05)
        lock.seek(0, os.SEEK_END)
        if not lock.tell():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            lock.write("made")
    return folder


@pytest.fixture(scope="session")
def tiny() -> Path:
    """A folder with a finished and measured tiny run, `run`; shared, only to be read.

    `trained.txt` and `measured.txt` beside it are what the scripts printed.
    """

    def make(folder: Path) -> None:
        trained = run("train.py", "--preset", "tiny", "--run", folder / "run")
        measured = run("eval.py", folder / "run")
        (folder / "trained.txt").write_text(trained)
        (folder / "measured.txt").write_text(measured)

    return once("tiny", make)
