"""What differs between operating systems, each with a fallback where it is missing.

No other module may import these, or read /proc: tests/test_system.py checks that.
"""

import contextlib
import errno
import importlib
import math
import multiprocessing
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


def _module(name: str):
    """A module that only some systems have; None on the others."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt, resource = map(_module, ("fcntl", "msvcrt", "resource"))

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "train.py").exists()  # from a wheel, without the repository
SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM
SIGPIPE = getattr(signal, "SIGPIPE", 13)  # Windows has none
# how a process starts that shares nothing with its parent
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def shipped(name: str) -> Path:
    """A file or folder beside the package in the repository, which a wheel carries inside it."""
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parent / name


def open_plain(path: Path) -> int:
    """Open a file to read and write, or make it; never through a link. Raises OSError."""
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    # without waiting for the other end of a pipe, nor changing the ends of lines
    flags = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    return os.open(path, os.O_RDWR | os.O_CREAT | sum(flags), 0o644)


def lock(file: int) -> None:
    """Lock an open file until it is closed or this process ends, however it ends.

    Raises BlockingIOError where another process holds the lock, OSError where there are no locks.
    """
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt:
        os.lseek(file, 2**30, os.SEEK_SET)  # beyond the text: others cannot read a locked byte
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None
        finally:
            os.lseek(file, 0, os.SEEK_SET)
    else:
        raise OSError(errno.ENOSYS, "this Python has neither fcntl nor msvcrt")


@contextlib.contextmanager
def stops(handle: Callable, arrived: Callable[[int], None]) -> Iterator[None]:
    """Within this block, Ctrl-C and SIGTERM call `handle(number, frame)`, as `signal.signal` does.

    That waits until Python runs again; `arrived(number)` is called at once, in a thread of its own.
    """
    reader, writer = socket.socketpair()  # not a pipe, which Windows before 3.12 cannot unblock
    writer.setblocking(False)
    before = {number: signal.signal(number, handle) for number in (SIGINT, SIGTERM)}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with reader:
            while data := reader.recv(1):
                if data[0] in before:
                    arrived(data[0])

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # which ends the thread


def peak_memory() -> float:
    """The most bytes of memory that this process has had; NaN where the system does not tell."""
    if not resource:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cpuinfo(*begins: str) -> str:
    """The first line of /proc/cpuinfo that begins with one of these; "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(begins)), "")


def processor_name() -> str:
    """The processor's name, as a person knows it."""
    named = cpuinfo("model name").partition(":")[2].strip()
    return named or platform.processor() or platform.machine()
