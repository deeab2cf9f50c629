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
DIGEST = b'"sha256":"'  # what stands before the digest in the header
NO_DIGEST = b"0" * 64  # its digits before it is known


# a checkpoint's record (`step`, `facts`, `leaves`) → {name: tree of the shapes and dtypes to load}
Wanted = Callable[[dict], dict]


class Damaged(InputError):
    """A checkpoint that is not what was saved."""


class Checkpoint(NamedTuple):
    """A checkpoint, loaded and verified."""

    step: int
    items: dict  # name → tree of NumPy arrays
    facts: dict  # saved with them


def save(
    folder: Path, step: int, items: dict, facts: dict | None = None, keep: int | None = KEEP
) -> None:
    """Save named trees of arrays as a folder's checkpoint of a step.

    facts: what `files.plain` makes JSON of, so that a number that is not finite becomes null.
    keep: how many steps are kept, the newest ones; None: all of them.

    All processes call this, and return once the first of them has written the file. Raises RunError
    where it cannot be written; earlier checkpoints are then unchanged.
    """
    path = _path(folder, step)
    # safetensors copies memory as it lies, so in C order; `np.ascontiguousarray` lacks 0 axes
    arrays = {k: np.asarray(x, order="C") for k, x in _leaves(devices.fetch(items)).items()}
    for key, x in arrays.items():
        if str(x.dtype) not in DTYPES.values():
            why = f"{key} is {x.dtype}, expected one of {', '.join(DTYPES.values())}"
            raise RunError(f"{path}: cannot be saved: {why}")
    if devices.first():
        record = json.dumps(files.plain({"step": step, "facts": facts or {}}), allow_nan=False)
        data = safetensors.numpy.save(arrays, {"record": record, "sha256": NO_DIGEST.decode()})
        digest = hashlib.sha256(data).hexdigest().encode()
        try:
            files.write_bytes(path, data.replace(DIGEST + NO_DIGEST, DIGEST + digest, 1))
        except OSError as error:
            why = f"({error.strerror}); earlier checkpoints are unchanged"
            raise RunError(f"{path}: cannot be saved {why}") from error
        for old in steps(folder)[keep:] if keep else ():
            with contextlib.suppress(OSError):  # one too many does no harm
                _path(folder, old).unlink()
    devices.wait()


def steps(folder: Path) -> list[int]:
    """The steps of a folder's checkpoints, newest first.

    Raises InputError where there are only those of an earlier version of toyllm.
    """
    names = [path.stem for path in folder.glob("*.safetensors") if path.is_file()]
    numbers = sorted((int(x) for x in names if re.fullmatch("0|[1-9][0-9]*", x)), reverse=True)
    # earlier versions wrote a folder for each step, with a JSON file beside it
    if not numbers and any(path.stem.isdecimal() for path in folder.glob("*.json")):
        raise InputError(
            f"{folder}: its checkpoints are of an earlier version of toyllm, which this version "
            "cannot read; train the run again in another folder"
        )
    return numbers


def load(folder: Path, wanted: Wanted, step: int | None = None) -> Checkpoint:
    """Load the checkpoint of a step of a folder; None: the newest.

    wanted: a function of its record (`step`, `facts`, `leaves`) that returns the trees to load, as
        shapes and dtypes.

    Raises Damaged where there is no checkpoint or its digest is wrong, InputError where shapes or
    dtypes differ from the wanted ones.
    """
    if step is None:
        if not (existing := steps(folder)):
            raise Damaged(f"{folder}: no checkpoint")
        step = existing[0]
    return _load(_path(folder, step), wanted)


def resume(folder: Path, wanted: Wanted) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint of a folder, or None, and what was wrong with newer ones.

    The caller must own the folder: damaged checkpoints are renamed, and drafts of a killed process
    are removed. Raises InputError where shapes or dtypes differ, RunError where a file cannot be
    read: it may still be good.
    """
    complaints: list[str] = []
    if devices.first():
        for draft in folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                draft.unlink()
    devices.wait()
    left = steps(folder)
    # all processes must take each decision together, or one would wait for the others forever
    while (step := devices.all_max(max(left, default=-1))) >= 0:
        left = [other for other in left if other < step]
        path, good, fault = _path(folder, step), None, None
        try:
            good = _load(path, wanted)
        except (InputError, RunError) as error:
            fault = error
        # in any process: 0 it is loaded, 1 it is damaged, 2 it cannot be loaded but may be good
        worst = devices.all_max(0 if good else 1 if isinstance(fault, Damaged) else 2)
        if worst == 0:
            return good, complaints
        if worst == 2:
            raise fault or RunError(f"{path}: another process cannot load it and says why")
        complaints.append(str(fault or f"{path}: another process reports that it is damaged"))
        if devices.first():  # keep it, so that it can be examined, but never load it again
            path.replace(path.with_name(f"{path.name}.damaged"))
        devices.wait()
    return None, complaints


def read_record(path: Path) -> dict:
    """A checkpoint file's step, facts and leaves (shapes and dtypes), from its header alone.

    Raises Damaged where there is no such header, RunError where the file cannot be read.
    """
    with _reading(path), safetensors.safe_open(path, "numpy") as file:
        return _record(path, file)


def _load(path: Path, wanted: Wanted) -> Checkpoint:
    with _reading(path):
        # before anything else: a damaged header may have wrong names and shapes
        _verify(path)
        with safetensors.safe_open(path, "numpy") as file:
            record = _record(path, file)
            try:
                abstract = wanted(record)
            except (KeyError, TypeError, ValueError) as error:
                raise Damaged(f"{path}: unexpected facts: {error!r}") from error
            _compare(path, record["leaves"], abstract)
            arrays = [file.get_tensor(key) for key in _leaves(abstract)]
    items = jax.tree.unflatten(jax.tree.structure(abstract), arrays)
    return Checkpoint(record["step"], items, record["facts"])


def _verify(path: Path) -> None:
    """Raise Damaged where the digest of a file is not the one in its header."""
    # ordinary reads notice a failing disk; mapped memory would kill the process there
    with open(path, "rb") as file:
        piece = file.read(2**24)  # has the digest, unless the header is too large to be ours
        begin = piece.index(DIGEST) + len(DIGEST)
        end = begin + len(NO_DIGEST)
        expected = piece[begin:end]
        digest = hashlib.sha256(piece[:begin] + NO_DIGEST + piece[end:])
        while piece := file.read(2**20):
            digest.update(piece)
    if digest.hexdigest().encode() != expected:
        raise Damaged(f"{path}: damaged: it is not what was saved (SHA-256)")


def _record(path: Path, file: safetensors.safe_open) -> dict:
    """The step, facts and leaves of an open checkpoint file; errors as for `_reading`."""
    record = json.loads(file.metadata()["record"])
    step, facts = record["step"], record["facts"]
    if not isinstance(facts, dict) or type(step) is not int or path != _path(path.parent, step):
        raise ValueError("record")
    names, leaves = file.keys(), {}
    for name in names:
        leaf = file.get_slice(name)
        leaves[name] = jax.ShapeDtypeStruct(leaf.get_shape(), DTYPES[leaf.get_dtype()])
    return {"step": step, "facts": facts, "leaves": leaves}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise Damaged for a bad file and for errors of the disk itself, RunError for others."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise RunError(f"{path}: cannot be read (out of memory)") from error
    except OSError as error:
        why = error.strerror or error
        if error.errno == errno.EIO:
            raise Damaged(f"{path}: damaged: {why}") from error
        raise RunError(f"{path}: cannot be read ({why})") from error
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{path}: damaged: it has no header of a checkpoint") from error


def _compare(path: Path, leaves: dict, abstract: dict) -> None:
    """Raise InputError where a leaf has another shape or dtype than is wanted, leaf by leaf."""
    wanted = {key: f"{x.dtype}{list(x.shape)}" for key, x in _leaves(abstract).items()}
    leaves = {key: x for key, x in leaves.items() if key.partition("/")[0] in abstract}
    saved = {key: f"{x.dtype}{list(x.shape)}" for key, x in leaves.items()}
    differences = [
        f"{key}: {saved.get(key, 'nothing')} → {wanted.get(key, 'nothing')}"
        for key in {**wanted, **saved}
        if saved.get(key) != wanted.get(key)
    ]
    if differences:
        shown = differences[:4] + [f"and {len(differences) - 4} more"] * (len(differences) > 4)
        raise InputError(f"{path}: saved with other shapes or dtypes ({', '.join(shown)})")


def _leaves(items: dict) -> dict:
    """{path: array} of named trees; a path begins with the tree's name: params/blocks/0/norm."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree.leaves_with_path(items)
    }


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step}.safetensors"
