"""The first import of each script: it says at once that the script has started.

The imports that follow take two to three seconds, most of it JAX and Flax. Only a terminal is told,
so that what is written to a file or another program stays as it is.

An installed package has the scripts as the commands `toyllm-train` and `toyllm-eval`.
"""

import contextlib
import importlib.util
import sys

from toyllm.base import system

if sys.stderr is not None and sys.stderr.isatty():
    with contextlib.suppress(OSError, UnicodeError):  # a terminal that cannot show it misses little
        print("Loading JAX …", file=sys.stderr, flush=True)


def train() -> None:
    """Run train.py as the command `toyllm-train`."""
    _run("train.py")


def evaluate() -> None:
    """Run eval.py as the command `toyllm-eval`."""
    _run("eval.py")


def _run(script: str) -> None:
    spec = importlib.util.spec_from_file_location("__main__", system.shipped(script))
    sys.modules["__main__"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
