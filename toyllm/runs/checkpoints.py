"""Checkpoints: named trees of arrays in one safetensors file, written whole or not at all.

    FOLDER/8000.safetensors     the arrays, each under `TREE/LEAF`; in its metadata `record`, the
                                step and facts as JSON, and `sha256`

`sha256` is the digest of the whole file with that digest's own digits taken as zeros, so a flipped
bit anywhere is noticed. The safetensors format holds no code, and says in its header how large each
array is before any of it is read.
"""

import contextlib
import errno
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from toyllm.base import devices, files
from toyllm.base.errors import InputError, RunError

DTYPES = {"F32": "float32", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "BOOL": "bool"}
KEEP = 2  # checkpoints of a folder: the newest, and one to fall back to
SUFFIX = ".safetensors"
MAX_HEADER = 2**24  # bytes
UNSIGNED = b'"sha256":"' + b"0" * 64  # the digest's place in the header, before it is known


# a checkpoint's record (`step`, `facts`, `leaves`) → {name: tree of the shapes and dtypes to load}
Wanted = Callable[[dict], dict]


class Damaged(InputError):
    """A checkpoint that is not what was saved."""


class Checkpoint(NamedTuple):
    """A checkpoint, loaded and verified."""

    step: int
    items: dict  # name → tree of NumPy arrays
    facts: dict  # saved with them


def save(folder: Path, step: int, items: dict, facts: dict | None = None) -> None:
    """Save named trees of arrays as a folder's checkpoint of a step; the last two steps are kept.

    All processes call this, and return once the first of them has written the file. Raises RunError
    where it cannot be written; earlier checkpoints are then unchanged.
    """
    path = _path(folder, step)
    arrays = {key: devices.whole(x) for key, x in _leaves(items).items()}
    for key, x in arrays.items():
        if str(x.dtype) not in DTYPES.values():
            expected = ", ".join(DTYPES.values())
            raise RunError(
                f"{path}: cannot be saved: {key} is {x.dtype}, expected one of {expected}"
            )
    if devices.first():
        record = json.dumps({"step": step, "facts": facts or {}}, allow_nan=False)
        data = safetensors.numpy.save(arrays, {"record": record, "sha256": "0" * 64})
        signed = UNSIGNED[:-64] + hashlib.sha256(data).hexdigest().encode()
        try:
            files.write_bytes(path, data.replace(UNSIGNED, signed, 1))
        except OSError as error:
            raise RunError(
                f"{path}: cannot be saved ({error.strerror}); earlier checkpoints are unchanged"
            ) from error
        for old in steps(folder)[KEEP:]:
            with contextlib.suppress(OSError):  # one too many does no harm
                _path(folder, old).unlink()
    devices.wait()


def steps(folder: Path) -> list[int]:
    """The steps of a folder's checkpoints, newest first."""
    names = [path.stem for path in folder.glob(f"*{SUFFIX}") if path.is_file()]
    return sorted((int(x) for x in names if re.fullmatch("0|[1-9][0-9]*", x)), reverse=True)


def load(folder: Path, wanted: Wanted) -> Checkpoint:
    """Load the newest checkpoint of a folder.

    wanted: a function of its record (`step`, `facts`, `leaves`) that returns the trees to load, as
        shapes and dtypes.

    Raises Damaged where there is no checkpoint or its digest is wrong, InputError where shapes or
    dtypes differ from the wanted ones.
    """
    _refuse_earlier_version(folder)
    if not (existing := steps(folder)):
        raise Damaged(f"{folder}: no checkpoint")
    return _load(_path(folder, existing[0]), wanted)


def resume(folder: Path, wanted: Wanted) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint of a folder, or None, and what was wrong with newer ones.

    The caller must own the folder: damaged checkpoints are renamed, and drafts of a killed process
    are removed. Raises InputError where shapes or dtypes differ, RunError where a file cannot be
    read: it may still be good.
    """
    _refuse_earlier_version(folder)
    complaints: list[str] = []
    if devices.first():
        for draft in folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                draft.unlink()
    devices.wait()
    left = steps(folder)
    # every decision is taken in all processes together, or one would wait for the others forever
    while (step := devices.all_max(max(left, default=-1))) >= 0:
        left = [other for other in left if other < step]
        path = _path(folder, step)
        good, complaint, error = None, f"{path}: another process reports that it is damaged", None
        try:
            good = _load(path, wanted)
        except Damaged as damage:
            complaint = str(damage)
        except (InputError, RunError) as other:
            error = other
        if devices.all_max(error is not None):
            raise error or RunError(f"{path}: another process cannot load it and says why")
        if devices.all_true(good is not None):
            return good, complaints
        complaints.append(complaint)
        if devices.first():  # it is no longer loaded, but can still be looked at
            path.replace(path.with_name(f"{path.name}.damaged"))
        devices.wait()
    return None, complaints


def read_record(path: Path) -> dict:
    """The step, facts and leaves of a checkpoint file, from its header alone.

    Raises Damaged where there is no such header, RunError where the file cannot be read.
    """
    with _reading(path), open(path, "rb") as file:
        return _parse(path, _read_header(file))


def _load(path: Path, wanted: Wanted) -> Checkpoint:
    with _reading(path), open(path, "rb") as file:
        header = _read_header(file)
        record, begin = _parse(path, header), file.tell()
        digest = hashlib.sha256(_unsigned(len(header).to_bytes(8, "little") + header))
        while data := file.read(2**20):  # in pieces: trees that are not wanted may be any size
            digest.update(data)
        # before anything else: a damaged header may have wrong names and shapes
        if digest.hexdigest() != record["sha256"]:
            raise Damaged(f"{path}: damaged: it is not what was saved (SHA-256)")
        try:
            abstract = wanted(record)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{path}: unexpected facts: {error!r}") from error
        _compare(path, record["leaves"], abstract)
        arrays = []
        for key, x in _leaves(abstract).items():
            file.seek(begin + record["leaves"][key]["begin"])
            data = bytearray(file.read(math.prod(x.shape) * x.dtype.itemsize))
            arrays.append(np.frombuffer(data, x.dtype).reshape(x.shape))
    items = jax.tree.unflatten(jax.tree.structure(abstract), arrays)
    return Checkpoint(record["step"], items, record["facts"])


def _read_header(file: BinaryIO) -> bytes:
    """The JSON at the beginning of a safetensors file, after eight bytes that hold its length."""
    # an oversized header is not read; what is left of it is not JSON, and so reported as damaged
    return file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER))


def _parse(path: Path, data: bytes) -> dict:
    """The record of a checkpoint: its step and facts, its leaves, and its digest."""
    try:
        header = json.loads(data.decode("utf-8"))
        metadata = header.pop("__metadata__")
        record, leaves = json.loads(metadata["record"]), {}
        for key, entry in header.items():
            shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            if not all(type(x) is int and 0 <= x < 2**40 for x in (*shape, begin, end)):
                raise ValueError(f"sizes of {key}")
            if end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
                raise ValueError(f"sizes of {key}")
            if 8 + len(data) + end > path.stat().st_size:
                raise ValueError(f"{key} is not within the file")
            leaves[key] = {"shape": shape, "dtype": dtype, "begin": begin}
        step, facts = record["step"], record["facts"]
        if not isinstance(facts, dict) or type(step) is not int or f"{step}{SUFFIX}" != path.name:
            raise ValueError("record")
        return {"step": step, "facts": facts, "leaves": leaves, "sha256": metadata["sha256"]}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{path}: damaged: it has no header of a checkpoint") from error


def _unsigned(data: bytes) -> bytes:
    """A file as it was before its digest was known."""
    at = data.find(UNSIGNED[:-64])
    return data[:at] + UNSIGNED + data[at + len(UNSIGNED) :]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise Damaged for errors of the disk itself, RunError for others: the file may be good."""
    try:
        yield
    except MemoryError as error:
        raise RunError(f"{path}: cannot be read (out of memory)") from error
    except OSError as error:
        if error.errno == errno.EIO:
            raise Damaged(f"{path}: damaged: {error.strerror}") from error
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error


def _compare(path: Path, leaves: dict, abstract: dict) -> None:
    """Raise InputError where a leaf has another shape or dtype than is wanted, leaf by leaf."""
    wanted = {key: f"{x.dtype}{list(x.shape)}" for key, x in _leaves(abstract).items()}
    saved = {
        key: f"{leaf['dtype']}{leaf['shape']}"
        for key, leaf in leaves.items()
        if key.partition("/")[0] in abstract
    }
    differences = [
        f"{key}: {saved.get(key, 'nothing')} → {wanted.get(key, 'nothing')}"
        for key in {**wanted, **saved}
        if saved.get(key) != wanted.get(key)
    ]
    if differences:
        more = f", and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise InputError(
            f"{path}: saved with other shapes or dtypes ({', '.join(differences[:4])}{more})"
        )


def _refuse_earlier_version(folder: Path) -> None:
    """Checkpoints were folders with a record beside them, before they were single files."""
    earlier = [path for path in folder.glob("*.json") if path.stem.isdecimal()]
    if earlier and not steps(folder):
        raise InputError(
            f"{folder}: its checkpoints are of an earlier version of toyllm, which this version "
            "cannot read; train the run again in another folder"
        )


def _leaves(items: dict) -> dict:
    """{path: array} of named trees; a path begins with the tree's name: params/blocks/0/norm."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree.leaves_with_path(items)
    }


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step}{SUFFIX}"
