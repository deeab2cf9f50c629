"""The lock of a run folder: one process at a time writes there.

The operating system holds the lock and releases it when the process ends, however it ends. So a
lock file that was left behind locks nothing.
"""

import contextlib
import errno
import json
import os
import platform
import shlex
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from toyllm.base import files, system
from toyllm.base.errors import InputError, warn, warn_once

NAME = "lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder within a `with` block.

    Raises InputError, naming the process, where another one holds it.
    """
    path = folder / NAME
    try:
        file = system.open_plain(path)
    except OSError as error:
        advice = f"; work on a copy of it: cp -r {shlex.quote(str(folder))} COPY"
        advice *= error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        line = f"{path}: {error.strerror}, expected a file to write{advice}"
        raise InputError(line) from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InputError(f"{path}: found a device, expected a plain file")
        try:
            system.lock(file)
        except BlockingIOError:
            raise InputError(f"{folder} is in use by {holder(path)}") from None
        except OSError as error:  # some network file systems have no locks
            what = path if system.fcntl or system.msvcrt else "run folders"
            warn_once(
                f"{what} cannot be locked ({error.strerror}); let only one process write there"
            )
        me = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}
        os.ftruncate(file, 0)
        os.write(file, json.dumps({**me, "command": shlex.join(sys.argv)}).encode())
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def take(folder: Path, mark: str = "config.json") -> Iterator[None]:
    """Take a run folder for this process, and make it where there is none (see `hold`).

    mark: the file that every folder of this kind has. Raises InputError where the folder is in use,
    or has other files but not this one. Files of a file manager are ignored, with a warning.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run {folder}: found a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--run {folder}: {error.strerror}, expected a folder to make") from error
    ours = (NAME, mark, f"{mark}.tmp")  # a killed process may have left them
    others = [p for p in folder.iterdir() if p.name not in ours and not files.is_stray(p)]
    if others and not (folder / mark).exists():
        raise InputError(f"{folder}: has files but no {mark}, expected a new or empty folder")
    with hold(folder):
        files.check_plain(folder)
        if strays := sorted(path for path in folder.rglob("*") if files.is_stray(path)):
            more = f" and {len(strays) - 1} more like it" * (len(strays) > 1)
            warn(f"{strays[0]}{more}: left by a file manager or file system, ignored")
        yield


def holder(path: Path) -> str:
    """The process that holds the lock, in words, from what it wrote there."""
    try:
        record = files.read_json(path)
        pid, host = int(record["pid"]), str(record["host"])
        text = f"process {pid} on {host} since {record['since']} ({record['command']})"
        there = f" on {host}" * (host != platform.node())
        text += f"; wait for it, or end it: kill {pid}{there}"
    except (InputError, KeyError, ValueError, TypeError):
        text = "another process"
    return text[:400]
