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
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy

from toyllm.base import devices, files
from toyllm.base.errors import InputError, RunError

DTYPES = {"F32": "float32", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "BOOL": "bool"}
KEEP = 2  # checkpoints of a folder: the newest, and one to fall back to
SUFFIX = ".safetensors"
MAX_HEADER = 2**24  # bytes
UNSIGNED = b'"sha256":"' + b"0" * 64  # where the digest stands, before it is known


# a checkpoint's record (`step`, `facts`, `leaves`) → {name: tree of the shapes and dtypes to load}
Wanted = Callable[[dict], dict]


class Damaged(InputError):
    """A checkpoint that is not what was saved."""


class Checkpoint(NamedTuple):
    """A checkpoint, loaded and verified."""

    step: int
    items: dict  # name → tree of NumPy arrays
    facts: dict  # what was saved beside them


def save(folder: Path, step: int, items: dict, facts: dict | None = None) -> None:
    """Save named trees of arrays as a folder's checkpoint of a step; the last two steps are kept.

    All processes call this, and go on once the first of them has written the file. Raises RunError,
    one line, where it cannot be written; the checkpoints before it are then as they were.
    """
    path = _path(folder, step)
    arrays = {}
    for name, leaves in _leaves(items).items():
        for leaf, x in leaves.items():
            if str(x.dtype) not in DTYPES.values():
                raise RunError(
                    f"{path}: cannot be saved: {name}/{leaf} is of {x.dtype}, expected one of "
                    f"{', '.join(DTYPES.values())}"
                )
            arrays[f"{name}/{leaf}"] = devices.whole(x)
    if devices.first():
        record = json.dumps({"step": step, "facts": facts or {}}, allow_nan=False)
        data = safetensors.numpy.save(arrays, {"record": record, "sha256": "0" * 64})
        signed = UNSIGNED[:-64] + hashlib.sha256(data).hexdigest().encode()
        try:
            files.write_bytes(path, data.replace(UNSIGNED, signed, 1))
        except OSError as error:
            raise RunError(
                f"{path}: cannot be saved ({error.strerror}); the checkpoints before it are as "
                "they were"
            ) from error
        for old in steps(folder)[KEEP:]:
            with contextlib.suppress(OSError):  # one too many does no harm
                _path(folder, old).unlink()
    devices.wait()


def steps(folder: Path) -> list[int]:
    """The steps of a folder's checkpoints, newest first."""
    names = [path.stem for path in folder.glob(f"*{SUFFIX}") if path.is_file()]
    whole = [name for name in names if re.fullmatch("0|[1-9][0-9]*", name)]
    return sorted(map(int, whole), reverse=True)


def load(folder: Path, wanted: Wanted) -> Checkpoint:
    """Load the newest checkpoint of a folder.

    wanted: a function of its record (`step`, `facts`, `leaves`) that names the trees to load, with
        their shapes.

    Raises Damaged where it is not what was saved or where there is none, InputError where its
    shapes or dtypes are others.
    """
    _refuse_earlier_version(folder)
    if not (existing := steps(folder)):
        raise Damaged(f"{folder}: no checkpoint")
    return _load(_path(folder, existing[0]), wanted)


def resume(folder: Path, wanted: Wanted) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint of a folder, or None, and what was wrong with newer ones.

    Whoever calls this owns the folder: damaged checkpoints are renamed, and what a killed process
    left half written is removed. Raises InputError where the shapes or dtypes are others, RunError
    where a checkpoint cannot be read, which says nothing about what is in it.
    """
    _refuse_earlier_version(folder)
    complaints: list[str] = []
    if devices.first():
        for draft in folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                draft.unlink()
    devices.wait()
    left = steps(folder)
    while (step := devices.together(max(left, default=-1))) >= 0:  # the same in all processes
        left = [other for other in left if other < step]
        path = _path(folder, step)
        good, complaint, error = None, f"{path}: another process reports that it is damaged", None
        try:
            good = _load(path, wanted)
        except Damaged as damage:
            complaint = str(damage)
        except (InputError, RunError) as caught:
            error = caught
        if devices.together(error is not None):
            raise error or RunError(f"{path}: another process cannot load it and says why")
        if devices.everywhere(good is not None):
            return good, complaints
        complaints.append(complaint)
        if devices.first():
            set_aside(path)
        devices.wait()
    return None, complaints


def set_aside(path: Path) -> None:
    """Rename a checkpoint, so that it is no longer loaded but can still be looked at."""
    path.replace(path.with_name(f"{path.name}.damaged"))


def describe(items: dict) -> dict:
    """{name: {leaf: its shape and dtype}} of named trees."""
    return {
        name: {
            leaf: {"shape": list(np.shape(x)), "dtype": str(x.dtype)} for leaf, x in tree.items()
        }
        for name, tree in _leaves(items).items()
    }


def read_record(path: Path) -> dict:
    """The step, facts and leaves of a checkpoint file, from its header alone.

    Raises Damaged where there is no such header, RunError where the file cannot be read.
    """
    return _parse(path, _read_header(path))


def _load(path: Path, wanted: Wanted) -> Checkpoint:
    header = _read_header(path)
    record = _parse(path, header)
    with _reading(path), open(path, "rb") as file:
        begin = 8 + len(header)
        digest = hashlib.sha256(_unsigned(file.read(begin)))
        while data := file.read(2**20):  # in pieces: trees that are not wanted may be any size
            digest.update(data)
        # first of all: in a damaged header, the names and shapes of leaves may be wrong too
        if digest.hexdigest() != record["sha256"]:
            raise Damaged(f"{path}: damaged: it is not what was saved (SHA-256)")
        try:
            abstract = wanted(record)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{path}: its facts are of another kind: {error!r}") from error
        saved = {name: record["leaves"].get(name, {}) for name in abstract}
        _compare(path, saved, describe(abstract))
        items = {}
        for name, tree in abstract.items():
            leaves = []
            for leaf, x in _leaves({name: tree})[name].items():
                file.seek(begin + saved[name][leaf]["begin"])
                data = bytearray(file.read(math.prod(x.shape) * x.dtype.itemsize))
                leaves.append(np.frombuffer(data, x.dtype).reshape(x.shape))
            items[name] = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    return Checkpoint(record["step"], items, record["facts"])


def _read_header(path: Path) -> bytes:
    """The JSON at the beginning of a safetensors file, after eight bytes that say its length."""
    with _reading(path), open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise Damaged(f"{path}: damaged: it has no header of a checkpoint")
        return file.read(size)


def _parse(path: Path, data: bytes) -> dict:
    """The record of a checkpoint: its step and facts, its leaves, and its digest."""
    try:
        header = json.loads(data.decode("utf-8"))
        metadata = header.pop("__metadata__")
        record, leaves = json.loads(metadata["record"]), {}
        for key, entry in header.items():
            name, _, leaf = key.partition("/")
            shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
            first, last = entry["data_offsets"]
            if not all(type(x) is int and 0 <= x < 2**40 for x in (*shape, first, last)):
                raise ValueError(f"sizes of {key}")
            place = {"shape": shape, "dtype": dtype, "begin": first}
            if last - first != math.prod(shape) * np.dtype(dtype).itemsize:
                raise ValueError(f"sizes of {key}")
            if 8 + len(data) + last > path.stat().st_size:
                raise ValueError(f"{key} is not within the file")
            leaves.setdefault(name, {})[leaf] = place
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
    """Raise Damaged where the disk cannot give a file back, else RunError: it may be good."""
    try:
        yield
    except MemoryError as error:
        raise RunError(f"{path}: cannot be read (out of memory)") from error
    except OSError as error:
        if error.errno == errno.EIO:
            raise Damaged(f"{path}: damaged: {error.strerror}") from error
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error


def _compare(path: Path, saved: dict, wanted: dict) -> None:
    """Raise InputError where a leaf has another shape or dtype than is wanted, leaf by leaf."""

    def spell(leaf: dict | None) -> str:
        return f"{leaf['dtype']}{leaf['shape']}" if leaf else "nothing"

    differences = []
    for name in wanted:
        for leaf in {**wanted[name], **saved[name]}:
            pair = spell(saved[name].get(leaf)), spell(wanted[name].get(leaf))
            if pair[0] != pair[1]:
                differences.append(f"{name}/{leaf}: {pair[0]} → {pair[1]}")
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
    """{name: {leaf: array}} of named trees; a leaf is named by its path, such as blocks/0/norm."""
    return {
        name: {
            jax.tree_util.keystr(path, simple=True, separator="/"): x
            for path, x in jax.tree.leaves_with_path(tree)
        }
        for name, tree in items.items()
    }


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step}{SUFFIX}"
