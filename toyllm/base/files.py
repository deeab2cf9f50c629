"""Files: read within bounds, written whole or not at all.

A run folder may come from anybody. So nothing is read into memory before its size is known, nothing
is unpickled, and nothing is written through a link that leads out of the folder.
"""

import contextlib
import itertools
import json
import math
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from toyllm.base import devices
from toyllm.base.errors import InputError

MAX_BYTES = 2**24  # of a JSON file
STRAYS = (".DS_Store", "Thumbs.db", "desktop.ini")


def read_bytes(path: Path, limit: int) -> bytes:
    """A file's bytes. Raises OSError, and InputError for a file of more than `limit` bytes."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)  # the size of a pipe is not known before it is read
    check_size(data, path, limit)
    return data


def read_input(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a file that a user names. Raises InputError: it cannot read `what`."""
    try:
        return read_bytes(path, limit)
    except OSError as error:
        raise InputError(f"{path}: cannot read {what}: {error.strerror}") from error


def check_size(data: bytes, path: Path, limit: int) -> None:
    """Raise InputError where a file has more than `limit` bytes."""
    if len(data) > limit:
        raise InputError(f"{path}: the file exceeds the limit of {limit:,} bytes")


def decode(data: bytes, path: str | Path) -> str:
    """UTF-8 bytes as text, without the byte-order mark that some editors write before it.

    Raises InputError with the line and byte of bad UTF-8, or the name of another encoding.
    """
    encoding = json.detect_encoding(data[:4]).upper().replace("-LE", "LE").replace("-BE", "BE")
    if not encoding.startswith("UTF-8") and any(data[:4]):
        raise InputError(
            f"{path}: found text encoded as {encoding}, expected UTF-8; save it as UTF-8, or "
            f"convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > utf-8-copy"
        )
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = data[error.start]
        raise InputError(f"{path}:{line}: found byte 0x{byte:02x}, expected UTF-8 text") from error


def label(path: Path) -> str:
    """A file's name; of a pipe "pipe", for a name such as /dev/fd/63 changes every time."""
    return path.name if path.is_file() else "pipe"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; only the first process writes. Raises OSError."""
    if not devices.first():
        return
    draft = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        with open(draft, "xb") as file:  # x: never through a link
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all; only the first process writes."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all; only the first process writes."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, kind: type = dict) -> dict | list:
    """Read a JSON object, or list. Raises InputError, one line, where it is missing or broken."""
    try:
        value = json.loads(decode(read_bytes(path, MAX_BYTES), path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}, expected JSON written by train.py") from error
    if not isinstance(value, kind):
        raise InputError(f"{path}: found {type(value).__name__}, expected {kind.__name__}")
    return value


def read_records(
    data: bytes,
    path: Path,
    parse: Callable[[dict], object],
    expected: str,
    limits: tuple[int, int],
    quiet: bool = False,
) -> list[tuple[str, object]]:
    """The objects of a JSONL file, or of one JSON array, as `parse` returns them.

    Each comes with its place, `path:line` or `path: item N`. Blank lines are skipped.

    expected: what an object should hold, in words.
    limits: the most letters of a line, and the most records.
    quiet: show no progress; otherwise a terminal shows a bar after a second.

    Raises InputError with the place of the first fault, including those that `parse` raises.
    """
    text = decode(data, path).removesuffix("\n")
    array = text.lstrip().startswith("[")
    rows = _items(text, path) if array else text.split("\n")
    if len(rows) > limits[1]:
        kind = "items" if array else "lines"
        raise InputError(f"{path}: found {len(rows):,} {kind}, expected at most {limits[1]:,}")
    records = []
    bar = tqdm(iterable=rows, desc="reading", delay=1, leave=False, disable=quiet or None)
    for number, row in enumerate(bar, 1):
        if not array and not row.strip():
            continue
        place = f"{path}: item {number}" if array else f"{path}:{number}"
        try:
            value = row if array else _json_line(row, limits[0], expected)
            if not isinstance(value, dict):
                raise InputError(f"found {shorten(value)}, expected an object {expected}")
            records.append((place, parse(value)))
        except InputError as error:
            bar.close()  # otherwise the message would follow the bar on its line
            raise InputError(f"{place}: {error}") from None
    return records


def _json_line(line: str, limit: int, expected: str) -> object:
    if len(line) > limit:
        raise InputError(f"found {len(line):,} letters, expected at most {limit:,} in a line")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"bad JSON: {error}, expected one object {expected}") from error


def _items(text: str, path: Path) -> list:
    """The items of a JSON array, which is parsed as a whole and so must be smaller than JSONL."""
    if len(text) > MAX_BYTES:
        convert = "import json, sys; [print(json.dumps(x)) for x in json.load(sys.stdin)]"
        raise InputError(
            f"{path}: found a JSON array of more than {MAX_BYTES:,} letters, expected one object "
            f'a line (JSONL); convert it: python3 -c "{convert}" < {shlex.quote(str(path))} '
            "> lines.jsonl"
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InputError(
            f"{path}:{line}: bad JSON: {error}, expected one object a line, or one array of them"
        ) from error


def shorten(value: object) -> str:
    """A value as Python shows it, in at most 60 letters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unused(path: Path) -> Path:
    """The first of PATH-2, PATH-3 … that does not exist; a file keeps its extension: NAME-2.EXT."""
    suffix = path.suffix if path.is_file() else ""
    stem = str(path).removesuffix(suffix)
    return next(p for k in itertools.count(2) if not (p := Path(f"{stem}-{k}{suffix}")).exists())


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
