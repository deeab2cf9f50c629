"""Files: read within bounds, written whole or not at all.

A run folder may come from anybody. So nothing is read into memory before its size is known, nothing
is unpickled, and nothing is written through a link that leads out of the folder.
"""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np

from toyllm import devices
from toyllm.errors import InputError

MOST = 2**24  # bytes of a JSON file
STRAYS = (".DS_Store", "Thumbs.db", "desktop.ini")


def read_bytes(path: Path, most: int) -> bytes:
    """A file's bytes. Raises OSError, and InputError where there are more than `most`."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"{path}: found more than {most:,} bytes, expected at most as many")
    return data


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all; only the first process writes."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; only the first process writes."""
    if not devices.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.unlink(missing_ok=True)
    try:
        with open(draft, "xb") as file:  # x: never through a link
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all; only the first process writes."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, kind: type = dict) -> dict | list:
    """Read a JSON object, or list. Raises InputError, one line, where it is missing or broken."""
    try:
        value = json.loads(read_bytes(path, MOST).decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}, expected JSON written by train.py") from error
    if not isinstance(value, kind):
        raise InputError(f"{path}: found {type(value).__name__}, expected {kind.__name__}")
    return value


def json_line(row: bytes, most: int, expected: str) -> dict:
    """One line of JSONL: an object. Raises InputError, `expected` saying what should be in it."""
    if len(row) > most:
        raise InputError(f"found {len(row):,} bytes, expected at most {most:,} in a line")
    try:
        value = json.loads(row.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"bad JSON: {error}, expected one object with {expected}") from error
    if not isinstance(value, dict):
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise InputError(f"found {shown}, expected an object with {expected}")
    return value


def unused(path: Path) -> Path:
    """The first of PATH-2, PATH-3 … that does not exist."""
    return next(p for k in itertools.count(2) if not (p := Path(f"{path}-{k}")).exists())


def unused_file(path: Path) -> Path:
    """The first of NAME-2.EXT, NAME-3.EXT … that does not exist."""
    free = (path.with_stem(f"{path.stem}-{k}") for k in itertools.count(2))
    return next(p for p in free if not p.exists())


def is_stray(path: Path) -> bool:
    """Whether a file manager or a network file system, not the user, put a file there."""
    return path.name.startswith(("._", ".nfs")) or path.name in STRAYS


def check_plain(folder: Path) -> None:
    """Raise InputError where a folder holds anything but files and folders, such as a link."""
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in folders + names):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise InputError(f"{path}: found a link or device, expected a plain file or folder")


def plain(value):
    """NumPy and NaN to what JSON has; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
