"""Shared fixtures: a world small enough to enumerate, and strictness everywhere."""

import contextlib
import dataclasses
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from toyllm import cards
from toyllm.text import Codec

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # tests compile more than they compute

# the scripts that tests start do the same, and share what one of them has compiled
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
SCRATCH = tempfile.TemporaryDirectory(prefix="toyllm-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(SCRATCH.name, "compiled")

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


@dataclasses.dataclass
class Script:
    """A script that runs in a process of its own, with what it prints."""

    process: multiprocessing.Process
    folder: Path

    @property
    def out(self) -> str:
        """Standard output so far."""
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        """Standard error so far."""
        return (self.folder / "err").read_text()

    def signal(self, number: int) -> None:
        """Send a signal; it may have ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, timeout: float = 400) -> int:
        """Its exit status once it has ended; negative: the signal that killed it."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.err}"
        return self.process.exitcode


def start(script: str, *args: object, **env: str) -> Script:
    """Run a script as a person would, but for its imports: those are done once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eval", "train", "orbax.checkpoint.v1", "tensorboard.plugins"])
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name))
    argv = [script, *map(str, args)]
    process = context.Process(target=_be, args=(argv, folder, env), daemon=True)
    process.start()
    while not (folder / "err").exists() and process.is_alive():
        time.sleep(0.01)
    return Script(process, folder)


def _be(argv: list[str], folder: Path, env: dict) -> None:
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))
    os.chdir(ROOT)
    os.environ.update(env)
    multiprocessing.current_process().daemon = False  # it may have children of its own
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def mesh_of(count: int) -> Mesh:
    """The first `count` devices."""
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
    return Codec(small)


@pytest.fixture(scope="session")
def personas_codec(personas):
    """The default world's texts and tokens."""
    return Codec(personas)
