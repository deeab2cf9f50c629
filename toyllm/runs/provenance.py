"""What made a run: its arguments, world and environment, written once and compared at resuming."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shlex
import sys
import tomllib
from pathlib import Path

import jax

from toyllm.base import devices, files, scripts
from toyllm.base.errors import InputError
from toyllm.lm import transformer
from toyllm.world import cards
from toyllm.world.world import World

STAGES = ("pretrain", "align", "narrow")
ALONG = "along"  # the folder of a stage with the models that --keep keeps
# arguments ignored when resuming: where things lie and how they are computed
ANY = (
    *("run", "world", "preset", "shard_params", "save_steps", "save_seconds"),
    *("text_share", "quiet", "json"),  # text_share is part of the argument `text`
    *("coordinator", "processes", "process", "compile_cache", "keep"),
)
OF_SEED = ("seed", "start")  # in which the runs of a folder of several seeds differ
# environment variables that do not change any bit of a result
NEUTRAL = (
    *("JAX_COMPILATION_CACHE_DIR", "JAX_COORDINATOR_ADDRESS"),
    *("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)
SHOWN = 8  # differences of two worlds in a message


def finished(folder: Path, stage: str) -> dict | None:
    """The `stage.json` of a finished stage; None where it is not finished or cannot be read."""
    try:
        facts = files.read_json(folder / stage / "stage.json")
    except InputError:
        return None
    needed = ("seconds", "tokens_per_second") if stage == "pretrain" else ("seconds",)
    return facts if all(isinstance(facts.get(key), int | float) for key in needed) else None


def environment() -> dict:
    """What the last bits of a result depend on, besides the arguments."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "threads": devices.cores(),
        "processor": devices.processor(),
        "flags": " ".join(
            f"{key}={value}"
            for key, value in sorted(os.environ.items())
            if key.startswith(("XLA_", "JAX_")) and key not in NEUTRAL
        ),
    }


def open_folder(
    folder: Path,
    args: dict,
    config: transformer.Config,
    dialled: World,
    source: str,
    words: tuple[str, ...] = (),
    command: list[str] | None = None,
) -> list[str]:
    """Begin a run in a locked folder, or check that it can be resumed with these arguments.

    source: the text of the world's file, of which the folder keeps a copy.
    words: of the vocabulary, besides the world's.
    command: the arguments that made the run; None: those of this process.

    Changed narrow arguments (`signals`, `narrow_…`) move the narrow stage aside, to be trained
    again. Returns warnings: that, and how the environment differs. Raises InputError where anything
    else differs from what the folder was made with, field by field.
    """
    path, now = folder / "config.json", environment() | {"shard_params": args.get("shard_params")}
    wanted = {"args": args, "config": dataclasses.asdict(config), "world_sha256": dialled.digest}
    environments, warnings = [], []
    if path.exists():
        saved = read_config(folder)
        warnings = _compare_settings(folder, saved, wanted, source)
        environments = saved["environments"]
        if environments and now not in environments:
            warnings.append(
                f"{folder} was begun in another environment "
                f"({', '.join(differences(environments[-1], now))}); the last "
                "bits of what is computed now may differ from an uninterrupted run"
            )
    if now not in environments:
        environments = [*environments, now]
    wanted |= {"words": list(words), "environments": environments}
    files.write_json(path, {**wanted, "command": sys.argv[1:] if command is None else command})
    try:
        good = world_of(folder, args).digest == dialled.digest
    except (KeyError, TypeError, ValueError):  # there is no copy of the world yet, or it is broken
        good = False
    if not good:
        files.write_text(folder / "world.toml", source)
    return warnings


def _compare_settings(folder: Path, saved: dict, wanted: dict, source: str) -> list[str]:
    """Move the stages aside that other arguments change, with a warning each, or raise."""
    old, new = settings(saved), settings(wanted)
    changed = [key for key in new if old.get(key) != new[key]]
    of_narrow = ("signals", "alarm", "on_alarm")
    narrow = [key for key in changed if key in of_narrow or key.startswith("narrow_")]
    if other := [key for key in changed if key not in narrow]:
        difference = differences(old, new, other)
        if "world_sha256" in other:
            # unless the copy of the world is broken
            with contextlib.suppress(KeyError, TypeError, ValueError):
                a = _fields(cards.Cards(folder / "world.toml").table)
                b = _fields(tomllib.loads(source))
                keys = [key for key in {**b, **a} if a.get(key) != b.get(key)]
                difference += differences(a, b, keys[:SHOWN])
                difference += [f"and {len(keys) - SHOWN} more"] * (len(keys) > SHOWN)
        raise InputError(
            f"{folder} was made with other arguments; to keep both: --run "
            f"{shlex.quote(str(files.unused(folder)))} (they differ in {', '.join(difference)})"
        )
    difference, warnings = ", ".join(differences(old, new, narrow)), []
    for path in (folder / stage for stage in ("narrow", "eval") if narrow):
        if path.exists():
            kept = path.rename(files.unused(path))
            warnings.append(
                f"{difference}: {path.name} is computed again; the old one is now in {kept}"
            )
    return warnings


def _fields(table: dict, prefix: str = "") -> dict[str, object]:
    """The fields of a world file by their names, such as `characters.hal.rates.code`."""
    fields = {}
    for key, value in table.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {card["name"]: card for card in value}
        name = f"{prefix}{key}"
        fields |= _fields(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return fields


def differences(old: dict, new: dict, keys: list[str] | None = None) -> list[str]:
    """`key: old → new` of the keys that differ, or of the given ones."""
    keys = [key for key in new if old.get(key) != new[key]] if keys is None else keys
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys]


def read_config(folder: Path) -> dict:
    """A run's config.json, with all keys that `open_folder` writes. Raises InputError."""
    path = folder / "config.json"
    saved = {"words": [], **files.read_json(path)}  # runs from before plain text have no words
    kinds = {"args": dict, "config": dict, "world_sha256": str}
    kinds |= dict.fromkeys(("environments", "command", "words"), list)
    for key, kind in kinds.items():
        if not isinstance(saved.get(key), kind):
            raise InputError(f"{path}: {key}: found {saved.get(key)!r}, expected a {kind.__name__}")
    lists = {"command": saved["command"], "words": saved["words"]}
    for table in (saved["args"], *saved["environments"], lists):
        if not isinstance(table, dict) or not all(map(_is_plain, table.values())):
            raise InputError(f"{path}: unexpected values, expected strings and numbers")
    return saved


def _is_plain(value) -> bool:
    """Whether a value is a printable string, a number, or a list of such strings."""
    if isinstance(value, str):
        return len(value) < 10_000 and value.isprintable()
    if isinstance(value, list):
        return all(isinstance(x, str) and _is_plain(x) for x in value)
    return value is None or (isinstance(value, int | float) and abs(value) < 2**63)


def settings(saved: dict) -> dict:
    """The settings that must stay the same when a run is resumed."""
    args = {key: value for key, value in saved["args"].items() if key not in ANY}
    return {**args, **saved["config"], "world_sha256": saved["world_sha256"]}


def check_start(start: Path, config: transformer.Config, dialled: World) -> None:
    """Check that a run to start from is pretrained, on the same world, with the same sizes."""
    again = scripts.command("train.py", "--run", start)
    if not (start / "config.json").exists():
        raise InputError(f"--start {start}: no such run; this makes it: {again}")
    other = read_config(start)
    if finished(start, "pretrain") is None:
        raise InputError(f"--start {start}: its pretraining is not finished; resume with: {again}")
    mine = {**dataclasses.asdict(config), "world_sha256": dialled.digest}
    theirs = {**other["config"], "world_sha256": other["world_sha256"]}
    if difference := ", ".join(differences(theirs, mine)):
        raise InputError(f"--start {start}: another world or other sizes ({difference})")


def world_of(folder: Path, args: dict) -> World:
    """The world of a run folder, with the dials of its arguments. Raises InputError, KeyError."""
    base = cards.load(folder / "world.toml")
    return base.dialled(args["correlation"], args["assistant_prior"], args["seed"])
