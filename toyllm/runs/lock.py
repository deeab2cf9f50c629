"""The lock of a run folder: one process at a time writes there.

The operating system holds the lock and releases it when the process ends, however it ends. So a
lock file that was left behind locks nothing.
"""

import errno
import fcntl
import json
import os
import platform
import shlex
import stat
import sys
import time
from pathlib import Path

from toyllm.base import files
from toyllm.base.errors import InputError, tell

NAME = "lock"


class Lock:
    """Holds the lock of an existing folder, from the start to the end of a `with` block.

    Raises InputError, naming the process, where another one holds it.
    """

    def __init__(self, folder: Path):
        path = folder / NAME
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self.file = os.open(path, flags, 0o644)
        except OSError as error:
            advice = f"; work on a copy of it: cp -r {shlex.quote(str(folder))} COPY"
            advice *= error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
            line = f"{path}: {error.strerror}, expected a file to write{advice}"
            raise InputError(line) from error
        if not stat.S_ISREG(os.fstat(self.file).st_mode):
            os.close(self.file)
            raise InputError(f"{path}: found a device, expected a plain file")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.file)
            raise InputError(f"{folder} is in use by {holder(path)}") from None
        except OSError as error:  # some network file systems have no locks
            tell(f"{path}: cannot be locked ({error.strerror}); let only one process write here")
        me = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}
        os.ftruncate(self.file, 0)
        os.write(self.file, json.dumps({**me, "command": shlex.join(sys.argv)}).encode())

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock."""
        os.close(self.file)


def take(folder: Path, mark: str = "config.json") -> Lock:
    """Take a run folder for this process, and make it where there is none (see `Lock`).

    mark: the file that every folder of this kind has. Raises InputError where the folder is in use,
    or has other files but not this one. Files of a file manager are ignored, with a warning.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run {folder}: found a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--run {folder}: {error.strerror}, expected a folder to make") from error
    ours = ("lock", mark, f"{mark}.tmp")  # a killed process may have left them
    others = [p for p in folder.iterdir() if p.name not in ours and not files.is_stray(p)]
    if others and not (folder / mark).exists():
        raise InputError(f"{folder}: has files but no {mark}, expected a new or empty folder")
    held = Lock(folder)
    try:
        files.check_plain(folder)
    except InputError:
        held.release()
        raise
    if strays := sorted(path for path in folder.rglob("*") if files.is_stray(path)):
        more = f" and {len(strays) - 1} more like it" * (len(strays) > 1)
        tell(f"{strays[0]}{more}: left by a file manager or file system, ignored")
    return held


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
