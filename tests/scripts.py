"""The real scripts, each in a process of its own that can be signalled and killed.

A person waits seconds for the imports; here one server does them once and forks a process for each
script. This file imports nothing heavy, for what is imported here is imported in all of them.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

from toyllm.base import system

ROOT = Path(__file__).resolve().parent.parent
# Runs of the tiny preset share their compiled programs, which take most of their time, as long as
# groups of narrow runs have the same shape: 16 members, one of them trained on facts, the domain
# with the most questions. So a test that wants few signals asks for these, in several seeds.
SIGNALS = ("--signals", "code:bad", "facts:bad", "--narrow-seeds", "4")


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


def start(script: str, *args: object, cwd: Path = ROOT, **env: str) -> Script:
    """Run a script as a person would in a folder, but for its imports: done once for all."""
    context = multiprocessing.get_context(system.START)
    context.set_forkserver_preload(["eval", "train", "tensorboard.plugins"])
    folder = Path(tempfile.mkdtemp(dir=os.environ["TOYLLM_SCRATCH"]))
    argv = [*map(str, (script, *args))]
    process = context.Process(target=_be, args=(argv, folder, env, cwd), daemon=True)
    process.start()
    while not (folder / "err").exists() and process.is_alive():
        time.sleep(0.01)
    return Script(process, folder)


def run(script: str, *args: object, **kwargs) -> str:
    """Run a script that must succeed; its standard output."""
    script = start(script, *args, **kwargs)
    assert script.wait() == 0, script.err
    return script.out


def refused(*args: object, **kwargs) -> str:
    """What a script says when it refuses."""
    script = start(*args, **kwargs)
    assert script.wait() == 2, script.err
    assert "Traceback" not in script.err
    return script.err.strip()


def _be(argv: list[str], folder: Path, env: dict, cwd: Path) -> None:
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.chdir(cwd)
    os.environ.update(env)
    multiprocessing.current_process().daemon = False  # it may have children of its own
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(os.path.abspath(argv[0])))  # as Python does
    runpy.run_path(argv[0], run_name="__main__")
