"""How a script ends: what its users may cause is told in one line, with a status of its own."""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable

import jax

from toyllm.errors import InputError, RunError, Stopped, tell


def run_script(action: Callable[[], None]) -> None:
    """Do what a script is for, and exit: 2 bad input, 1 it cannot go on, 130 or 143 stopped."""
    status, again = 0, shlex.join(["uv", "run", *sys.argv])
    try:
        action()
    except InputError as error:
        status, line = 2, str(error)
    except RunError as error:
        status, line = 1, str(error)
    except Stopped as stop:
        status, line = 128 + stop.signal, f"{stop}; this goes on: {again}"
    except KeyboardInterrupt:  # before there was anything to lose
        status, line = 130, "stopped"
    except BrokenPipeError:  # whoever reads has seen enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        status, line = 1, f"{error.filename}: {error.strerror}; with that mended: {again}"
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        why = " ".join(str(error).split())[:100]
        status = 1
        line = f"another process of this run has ended or cannot be reached ({why}); what was saved"
        line += f" is kept; start all of them again, this one with: {again}"
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        status, line = 1, repr(error)
    if not status:
        return
    tell(line)
    if jax.distributed.is_initialized():
        os._exit(status)  # a usual exit would wait for the others, who wait for this one
    sys.exit(status)
