"""How a script ends: errors that its users can cause take one line and have their own status."""

import ast
import errno
import io
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax

from toyllm.base import system
from toyllm.base.errors import InputError, RunError, Stopped, warn

# matplotlib draws to files, and ignores the user's matplotlibrc: a broken one, or a notebook's
# backend, would prevent its import
OWN_MATPLOTLIB = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}


def run_script(action: Callable[[], None]) -> None:
    """Run a script and exit: 0 done, 2 bad input, 1 cannot continue, 130 or 143 stopped."""
    prepare()
    status, again = 0, command()
    try:
        try:
            action()
        finally:
            sys.stdout.flush()
    except InputError as error:
        status, line = 2, str(error)
    except RunError as error:
        status, line = 1, str(error)
    except Stopped as stop:
        status, line = 128 + stop.signal, f"{stop}; resume with: {again}"
    except KeyboardInterrupt:  # before there was anything to lose
        status, line = 130, "stopped"
    except BrokenPipeError:  # whoever reads has seen enough, such as `| head`
        drop_output()
        sys.exit(128 + system.SIGPIPE)
    except OSError as error:
        name = error.filename or (output_fails(error) and "standard output")
        why = f"{name}: {error.strerror}" if name else str(error)
        status, line = 1, f"{why}; fix this, then rerun: {again}"
    except Exception as error:
        status, why = 1, " ".join(str(error).split())[:100]
        of_jax = isinstance(error, jax.errors.JaxRuntimeError)
        # where a process dies, the others fail in several ways; gloo carries their messages on CPUs
        if jax.distributed.is_initialized() and (of_jax or "gloo" in str(error)):
            line = f"another process of this run has ended or cannot be reached ({why}); what was "
            line += f"saved is kept; start all of them again, this one with: {again}"
        elif jax.distributed.is_initialized():
            traceback.print_exc()
            line = repr(error)
        elif of_jax and "RESOURCE_EXHAUSTED" in why:
            line = f"the device has too little free memory ({why}); end what else uses it, or "
            line += f"choose smaller sizes or JAX_PLATFORMS=cpu; then: {again}"
        else:
            raise
    if not status:
        return
    warn(line)
    if jax.distributed.is_initialized():
        os._exit(status)  # a usual exit would wait for the others, who wait for this one
    sys.exit(status)


def prepare() -> None:
    """Make the process independent of how it was started.

    A standard stream that is closed is opened on nothing: the next file would get its number, and
    what a library prints would land there. A letter that a stream does not have becomes "?".
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)
            os.set_inheritable(file, True)
            setattr(sys, name, os.fdopen(file, "w" if number else "r"))
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    os.environ.update(OWN_MATPLOTLIB)


def command(*words: object) -> str:
    """The shell command for a script (train.py …) or a tool (toyllm.tools.…) and its arguments.

    Without words: the command that started this process. Started as `toyllm-train` or the like,
    or installed without the repository, a process names the commands that it was installed with.
    """
    if not words:
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec and spec.name.startswith("toyllm.")
        words = (spec.name if module else sys.argv[0], *sys.argv[1:])
    name, *rest = map(str, words)
    tool = ["-m", name] if name.startswith("toyllm.") else []
    if system.INSTALLED or Path(sys.argv[0]).stem.startswith("toyllm-"):
        script = f"toyllm-{Path(name).stem.removeprefix('toyllm-')}"
        return shlex.join([*(["python", *tool] if tool else [script]), *rest])
    return shlex.join(["uv", "run", *(tool or [name]), *rest])


def output_fails(error: OSError) -> bool:
    """Whether an error that names no file is of standard output, which is then dropped.

    A failed write does not say of which stream it was, and may have emptied the buffer. So errors
    of a full or failing device, and no others, are tried again with one more line.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return False
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        drop_output()
        return True
    return False


def drop_output() -> None:
    """Discard what cannot be written; otherwise Python reports it once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def usage(text: str | None) -> str | None:
    """A docstring for --help: tyro joins lines, unless they are indented, as commands are here."""
    return text and re.sub(r"^(?=uv run )", "    ", text, flags=re.M)


def docstring(module: ModuleType) -> str:
    """A module's docstring, from its file: with PYTHONOPTIMIZE=2 the module itself has none."""
    source = Path(module.__file__).read_text("utf-8")
    # not ast.parse, which leaves docstrings out too since Python 3.14
    tree = compile(source, module.__file__, "exec", ast.PyCF_ONLY_AST, optimize=0)
    return ast.get_docstring(tree) or ""
