"""Command-line arguments: limits of their values, and presets that decide the other defaults."""

import dataclasses
import typing
from typing import Annotated, Literal, NamedTuple, TypeVar

import tyro

from toyllm.base.errors import InputError

Args = TypeVar("Args")


class Between(NamedTuple):
    """The limits of a number, to annotate a field: `rate: Annotated[float, Between(0, 1)]`."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Process:
    """How a training process runs: devices, other processes, saving, and what it prints."""

    shard_params: bool = False
    """Split parameters over devices in pretraining, for models too large for one device."""
    coordinator: str | None = None
    """HOST:PORT of the first process, where several processes (hosts) train together …"""
    processes: int | None = None
    """… the number of processes …"""
    process: Annotated[int | None, Between(0, 10**6)] = None
    """… and the index of this one, from 0 (without these three: from the environment)."""
    save_steps: Annotated[int, Between(1, 10**9)] = 2000
    """Save at least every so many steps …"""
    save_seconds: float = 30.0
    """… and every so many seconds."""
    keep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep the model of every look at held-out documents, each 1,000 steps of pretraining."""
    compile_cache: bool = True
    """Keep compiled programs for the next start."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print nothing but warnings and errors."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the results as JSON, and nothing else but warnings and errors."""


def check(args) -> None:
    """Raise InputError, naming the flag, where a number of a dataclass is outside its limits.

    Without other limits, a whole number is 1 to 1e6 and any other number 0 to 1e6.
    """
    hints = typing.get_type_hints(type(args), include_extras=True)
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if type(value) not in (int, float):
            continue
        limits = Between(int(type(value) is int), 10**6)
        for note in getattr(hints[field.name], "__metadata__", ()):
            limits = note if isinstance(note, Between) else limits
        if not limits.low <= value <= limits.high:
            flag = field.name.replace("_", "-")
            expected = f"expected {limits.low} to {limits.high}"
            raise InputError(f"--{flag}: found {value}, {expected}")


def parse(presets: dict[str, Args], argv: list[str], description: str) -> Args:
    """Read a command line; `--preset` decides the defaults of all other flags.

    presets: dataclasses by the name of their preset; the first is used unless another is named.
    """
    first = next(iter(presets))
    preset = dataclasses.make_dataclass(
        "Preset", [("preset", Literal[tuple(presets)], dataclasses.field(default=first))]
    )
    chosen, _ = tyro.cli(preset, args=argv, return_unknown_args=True, add_help=False)
    default = presets[chosen.preset]
    return tyro.cli(type(default), args=argv, default=default, description=description)
