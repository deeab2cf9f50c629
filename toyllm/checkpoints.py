"""Checkpoints: named trees of arrays, written whole or not at all, every leaf with its SHA-256.

    FOLDER/8000/        the arrays, by Orbax, one folder for each named tree
    FOLDER/8000.json    its record, written last: facts; shape, dtype and SHA-256 of each leaf;
                        SHA-256 of each file, and of the record itself

Orbax survives being killed, but loads a flipped bit and casts a dtype without a word, and knows no
way back to an older step; so each leaf is compared with its record, and what does not agree is
never used.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from toyllm import devices, files
from toyllm.errors import DISK, InputError, RunError

LEAF = {"shape", "dtype", "sha256"}  # what the record says of each leaf
DTYPES = ("float32", "bfloat16", "int32", "uint32", "bool")
KEEP = 2  # checkpoints of a folder: the newest, and one to fall back to


# a checkpoint's record → {name: tree of the shapes and dtypes to load}
Wanted = Callable[[dict], dict]


class Damaged(InputError):
    """A checkpoint that is not what was saved."""


class Checkpoint(NamedTuple):
    """A checkpoint, loaded and verified."""

    step: int
    items: dict  # name → tree of NumPy arrays
    facts: dict  # what was said beside it


def save(folder: Path, step: int, items: dict, facts: dict | None = None) -> None:
    """Save named trees of arrays as `folder/step`; the last two steps are kept.

    All processes call this; each writes what its devices hold. Raises RunError, one line, where it
    cannot be written; the steps before are then as they were.
    """
    ocp = _orbax()
    path = folder.absolute() / str(step)
    record = {"step": step, "facts": facts or {}, "leaves": describe(items, digests=True)}
    try:
        # while this is there, what else there is of the step is not whole
        files.write_text(_marker(path), "")
        ocp.save_checkpointables(path, items, overwrite=True)
        if devices.first():
            record["files"] = _digests(path)
            files.write_json(_record(path), {**record, "sha256": _digest(record)})
            _marker(path).unlink()
    except Exception as error:  # Orbax wraps what the disk says in many kinds of error
        if devices.first():
            _clean(folder)
        raise RunError(
            f"{folder / str(step)}: cannot be saved ({_reason(error)}); the checkpoints before it "
            "are as they were"
        ) from error
    if devices.first():
        for old in steps(folder)[KEEP:]:
            _remove(folder / str(old))
        _clean(folder)


def steps(folder: Path) -> list[int]:
    """The steps of a folder's checkpoints, newest first."""
    names = [path.name for path in folder.glob("*") if path.is_dir()]
    found = [int(name) for name in names if name.isdecimal() and len(name) < 12]
    return sorted(found, reverse=True)


def load(folder: Path, wanted: Wanted) -> Checkpoint:
    """Load the newest checkpoint of a folder.

    wanted: a function of its record (`step`, `facts`, `leaves`) that names the trees to load, with
        their shapes.

    Raises Damaged where it is not what was saved or where there is none, InputError where its
    shapes or dtypes are others.
    """
    if not (found := steps(folder)):
        raise Damaged(f"{folder}: no checkpoint")
    return _load(folder / str(found[0]), wanted)


def resume(folder: Path, wanted: Wanted) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint of a folder, or None, and what was wrong with newer ones.

    Whoever calls this owns the folder: damaged checkpoints are renamed `STEP.damaged`, and what a
    killed process left half written is removed.
    """
    complaints: list[str] = []
    if devices.first():
        _clean(folder)
    devices.wait()
    left = steps(folder)
    while (step := devices.together(max(left, default=-1))) >= 0:  # the same in all processes
        left = [other for other in left if other < step]
        path = folder / str(step)
        good, complaint, error = None, f"{path}: damaged, says another process", None
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
    """Rename a checkpoint, so that nothing takes it for one and everything can be looked at."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    if _record(path).exists():
        _record(path).replace(_record(aside))


def describe(items: dict, digests: bool = False) -> dict:
    """{name: {leaf: its shape, dtype and, if asked, SHA-256}} of named trees."""

    def leaf(x) -> dict:
        told = {"shape": list(np.shape(x)), "dtype": str(x.dtype)}
        return told | {"sha256": hashlib.sha256(devices.whole(x)).hexdigest()} if digests else told

    return {
        name: {_spell(key): leaf(x) for key, x in jax.tree.leaves_with_path(tree)}
        for name, tree in items.items()
    }


def _load(path: Path, wanted: Wanted) -> Checkpoint:
    record = _read_record(path)
    try:
        abstract = wanted(record)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{_record(path)}: {error!r}, expected the facts of another kind") from error
    saved = {name: record["leaves"].get(name, {}) for name in abstract}
    _compare(path, saved, describe(abstract))
    _check_files(path, record, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract)))
    for name, tree in abstract.items():
        _check_chunks(path / name, tree)
    ocp = _orbax()
    place = jax.sharding.NamedSharding(devices.mesh(), jax.sharding.PartitionSpec())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract
    )
    try:
        items = ocp.load_checkpointables(path.absolute(), abstract)
    except Exception as error:  # its bytes are those that were saved: it is not the checkpoint
        raise RunError(f"{path}: cannot be loaded ({_reason(error)})") from error
    items = jax.device_get(items)
    for name, leaves in describe(items, digests=True).items():
        for leaf, found in leaves.items():
            if found != saved[name][leaf]:
                raise Damaged(f"{path / name}: damaged: {leaf} is not what was saved (SHA-256)")
    return Checkpoint(record["step"], items, record["facts"])


def _read_record(path: Path) -> dict:
    try:
        record = files.read_json(_record(path))
    except InputError as error:
        _raise_unless_damage(error.__cause__)
        raise Damaged(f"{error} (the record of a checkpoint)") from error
    said = record.pop("sha256", None)
    step = record.get("step")
    if said != _digest(record) or type(step) is not int or step != int(path.name):
        raise Damaged(f"{_record(path)}: damaged: it is not what was saved (SHA-256)")
    try:
        leaves = [leaf for tree in record["leaves"].values() for leaf in tree.values()]
        dicts = isinstance(record["facts"], dict) and isinstance(record["files"], dict)
        good = dicts and all(map(_is_leaf, leaves))
    except (AttributeError, KeyError, TypeError):
        good = False
    if not good:
        raise Damaged(f"{_record(path)}: found other keys, expected a checkpoint's record")
    return record


def _is_leaf(leaf: dict) -> bool:
    sizes = all(type(x) is int and 0 <= x < 2**40 for x in leaf["shape"])
    return set(leaf) == LEAF and sizes and leaf["dtype"] in DTYPES


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


def _check_files(path: Path, record: dict, size: int) -> None:
    """Before Orbax reads them: plain files, the recorded ones, of about as many bytes as arrays."""
    try:
        files.check_plain(path)
    except InputError as error:
        raise Damaged(str(error)) from error
    total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if not size / 64 - 2**24 <= total <= 8 * size + 2**24:
        raise Damaged(f"{path}: {total:,} bytes in files, expected about {size:,}")
    try:
        found = _digests(path)
    except OSError as error:
        _raise_unless_damage(error)
        raise Damaged(f"{error.filename}: damaged: {error.strerror}") from error
    for name in sorted({**record["files"], **found}):
        if found.get(name) != record["files"].get(name):
            how = "is not what was saved" if name in found else "is missing"
            raise Damaged(f"{path / name}: damaged: it {how} (SHA-256)")


def _raise_unless_damage(error: BaseException | None) -> None:
    """Only a disk that cannot give back what it took is damage; else nothing is set aside."""
    if isinstance(error, OSError) and error.errno != errno.EIO:
        raise RunError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _check_chunks(path: Path, tree) -> None:
    """The stored arrays must be as large as they are said to be, and be read in such pieces."""
    import tensorstore

    store = {"driver": "ocdbt", "base": f"file://{path.absolute()}/"}
    for keys, x in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(keys, simple=True, separator=".")
        spec = {"driver": "zarr3", "kvstore": {**store, "path": f"{name}/"}}
        try:
            array = tensorstore.open(spec, open=True, read=True).result()
        except ValueError as error:
            raise Damaged(f"{path}: {name}: {_reason(error)}") from error
        layout = array.chunk_layout
        pieces = [array.shape, layout.read_chunk.shape, layout.write_chunk.shape]
        if any(math.prod(piece or ()) > max(x.size, 1) for piece in pieces):
            raise Damaged(f"{path}: {name}: stored in pieces larger than the array")


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".saving")


def _digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digests(path: Path) -> dict[str, str]:
    """The SHA-256 of every file of a checkpoint."""
    found = sorted(file for file in path.rglob("*") if file.is_file())
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found
    }


def _spell(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = " ".join(str(error).split())
    for told in map(os.strerror, DISK):
        if told in text:
            return told
    return text if len(text) < 160 else text[:157] + "..."


def _remove(path: Path) -> None:
    """Remove a checkpoint; its arrays under another name, so that half of them is never seen."""
    aside = path.with_name(f"{path.name}.orbax-checkpoint-tmp-removed")
    with contextlib.suppress(OSError):
        path.rename(aside)
    with contextlib.suppress(OSError):
        _record(path).unlink()
    shutil.rmtree(aside, ignore_errors=True)


def _clean(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob("*orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("*.saving"):
        _remove(path.with_suffix(""))
        path.unlink()
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.glob("*.json"):
        if path.stem.isdecimal() and not path.with_suffix("").exists():
            path.unlink(missing_ok=True)


def _orbax():
    """Orbax's second interface, imported when it is first needed."""
    from orbax.checkpoint import v1

    # what cannot be saved or loaded is told in one line; Orbax says more, and forgets coroutines
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    return v1
