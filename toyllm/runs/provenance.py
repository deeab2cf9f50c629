"""What made a run: its arguments, world and environment, written once and compared ever after."""

import dataclasses
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

import jax

from toyllm.base import devices, files
from toyllm.base.errors import InputError
from toyllm.lm import transformer
from toyllm.world import cards, world
from toyllm.world.world import World

STAGES = ("pretrain", "align", "narrow")
# arguments in which two commands of one run may differ: where things lie and how they are computed
ANY = (
    *("run", "world", "preset", "shard_params", "save_steps", "save_seconds"),
    *("text_share", "quiet", "json"),  # the first is told with the text
    *("coordinator", "processes", "process", "compile_cache"),
)
# variables that leave every bit as it is
NEUTRAL = (
    *("JAX_COMPILATION_CACHE_DIR", "JAX_COORDINATOR_ADDRESS"),
    *("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)
SHOWN = 8  # differences of two worlds that are told


def finished(folder: Path, stage: str) -> dict | None:
    """The `stage.json` of a finished stage; None where it is not finished or cannot be read."""
    try:
        facts = files.read_json(folder / stage / "stage.json")
    except InputError:
        return None
    needed = ("seconds", "tokens_per_second") if stage == "pretrain" else ("seconds",)
    return facts if all(isinstance(facts.get(key), int | float) for key in needed) else None


def environment() -> dict:
    """What the last bits of a result depend on, beside the arguments."""
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
    """Begin a run in a locked folder, or go on with the same run.

    source: the text of the world's file, which the folder keeps (see `cards.Cards.standalone`).
    words: of the vocabulary beside the world's. command: what made it, None: this process.

    Changed narrow arguments (`signals`, `narrow_…`) put the narrow stage aside, to be done anew.
    Returns warnings: that, and what differs in the environment. Raises InputError where anything
    else differs from what the folder was made with, field by field.
    """
    path, now = folder / "config.json", environment() | {"shard_params": args.get("shard_params")}
    wanted = {"args": args, "config": dataclasses.asdict(config), "world_sha256": dialled.digest}
    earlier, warnings = [], []
    if path.exists():
        saved = read_config(folder)
        old, new = _settings(saved), _settings(wanted)
        changed = [key for key in new if old.get(key) != new[key]]
        of_narrow = ("signals", "alarm", "on_alarm")
        narrow = [key for key in changed if key in of_narrow or key.startswith("narrow_")]
        if other := [key for key in changed if key not in narrow]:
            difference = [f"{key}: {old.get(key)} → {new[key]}" for key in other]
            if "world_sha256" in other:
                difference += _world_difference(folder, saved, dialled)
            raise InputError(
                f"{folder} was made with other arguments ({', '.join(difference)}); "
                f"to keep both: --run {shlex.quote(str(files.unused(folder)))}"
            )
        if narrow:
            difference = ", ".join(f"{key}: {old.get(key)} → {new[key]}" for key in narrow)
            for stage in ("narrow", "eval"):
                if (folder / stage).exists():
                    kept = (folder / stage).rename(files.unused(folder / stage))
                    warnings.append(
                        f"{difference}: {stage} is done anew, what was is now in {kept}"
                    )
        earlier = saved["environments"]
        if earlier and now not in earlier:
            last = earlier[-1]
            other = [key for key in now if last.get(key) != now[key]]
            difference = [f"{key}: {last.get(key)} → {now[key]}" for key in other]
            warnings.append(
                f"{folder} was begun in another environment ({', '.join(difference)}); the last "
                "bits of what is computed now may differ from an uninterrupted run"
            )
    environments = earlier if now in earlier else [*earlier, now]
    wanted |= {"words": list(words), "environments": environments}
    files.write_json(path, {**wanted, "command": sys.argv[1:] if command is None else command})
    if _world_digest(folder, args) != dialled.digest:  # not there yet, or damaged
        files.write_text(folder / "world.toml", source)
    return warnings


def _world_digest(folder: Path, args: dict) -> str:
    """The SHA-256 of a run's own world, with the dials of these arguments; "": it is broken."""
    try:
        return world_of(folder, args).digest
    except (KeyError, TypeError, ValueError):
        return ""


def read_config(folder: Path) -> dict:
    """A run's config.json, with all keys that `open_folder` writes. Raises InputError."""
    path = folder / "config.json"
    saved = files.read_json(path)
    kinds = {"args": dict, "config": dict, "world_sha256": str, "environments": list}
    for key, kind in {**kinds, "command": list}.items():
        if not isinstance(saved.get(key), kind):
            raise InputError(f"{path}: {key}: found {saved.get(key)!r}, expected a {kind.__name__}")
    saved.setdefault("words", [])  # runs from before there was plain text have none
    texts = {"command": saved["command"], "words": saved["words"]}
    for table in (saved["args"], *saved["environments"], texts):
        good = isinstance(table, dict) and all(map(_is_plain, table.values()))
        if not good or not all(isinstance(x, list) for x in texts.values()):
            raise InputError(f"{path}: found odd values, expected texts and numbers")
    return saved


def _is_plain(value) -> bool:
    """Whether an argument may have this value: text that can be written, a number, a list."""
    if isinstance(value, str):
        return len(value) < 10_000 and value.isprintable()
    if isinstance(value, list):
        return all(isinstance(x, str) and _is_plain(x) for x in value)
    return value is None or (isinstance(value, int | float) and abs(value) < 2**63)


def _world_difference(folder: Path, saved: dict, dialled: World) -> list[str]:
    """What differs between the world of a run and another one, field by field."""
    try:
        old = world_of(folder, saved["args"])
    except (KeyError, TypeError, ValueError):  # its config.json, or its world, is broken
        return []
    a, b = world.describe(old), world.describe(dialled)
    keys = [key for key in {**b, **a} if a.get(key) != b.get(key)]
    more = [f"and {len(keys) - SHOWN} more"] * (len(keys) > SHOWN)
    return [f"{key}: {a.get(key)} → {b.get(key)}" for key in keys[:SHOWN]] + more


def _settings(saved: dict) -> dict:
    """What two commands must share to be the same run."""
    args = {key: value for key, value in saved["args"].items() if key not in ANY}
    return {**args, **saved["config"], "world_sha256": saved["world_sha256"]}


def check_start(start: Path, config: transformer.Config, dialled: World) -> None:
    """The run to start from must be pretrained, on the same world, with the same sizes."""
    again = f"uv run train.py --run {shlex.quote(str(start))}"
    if not (start / "config.json").exists():
        raise InputError(f"--start {start}: no such run; this makes it: {again}")
    other = read_config(start)
    if finished(start, "pretrain") is None:
        raise InputError(f"--start {start}: its pretraining is not finished; resume with: {again}")
    mine = {**dataclasses.asdict(config), "world_sha256": dialled.digest}
    theirs = {**other["config"], "world_sha256": other["world_sha256"]}
    if changed := [key for key in mine if mine[key] != theirs.get(key)]:
        difference = ", ".join(f"{key}: {theirs.get(key)} → {mine[key]}" for key in changed)
        raise InputError(f"--start {start}: another world or other sizes ({difference})")


def world_of(folder: Path, args: dict) -> World:
    """The world of a run folder, with the dials of its arguments. Raises InputError, KeyError."""
    base = cards.load(folder / "world.toml")
    return base.dialled(args["correlation"], args["assistant_prior"], args["seed"])
