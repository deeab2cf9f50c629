"""The claims there are, and what earlier runs of the scorecard recorded of them."""

import hashlib
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import claims
from toyllm.base import files
from toyllm.base.errors import InputError, warn
from toyllm.base.scripts import docstring

KEYS = {  # of a record
    *("claim", "number", "title", "effect", "ci", "verdict", "arms", "predictions"),
    *("related", "kind", "p_for", "p_against", "seconds", "world", "source", "environment"),
}


def available() -> dict[str, ModuleType]:
    """The modules of all claims, in the order of their numbers."""
    names = [m.name for m in pkgutil.iter_modules(claims.__path__) if not m.ispkg]
    modules = {name: importlib.import_module(f"claims.{name}") for name in names}

    def order(name: str) -> tuple[int, str]:
        digits, letters = re.fullmatch(r"(\d+)(\w*)", modules[name].NUMBER).groups()
        return int(digits), letters

    return {name: modules[name] for name in sorted(modules, key=order)}


def title(module: ModuleType) -> str:
    """What a claim says: the first line of its docstring."""
    return docstring(module).partition("\n")[0].rstrip(".")


def source(module: ModuleType) -> str:
    """SHA-256 of a claim's file: a result of another text is not a result of this one."""
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()


def current(file: Path, known: dict[str, ModuleType], world: str, wanted: tuple[str, ...]) -> dict:
    """The recorded results of this world and of the claims as they are now, by claim.

    Those that are published have no panels (see `page.rounded`).
    Warns of those that are dropped for another reason than that they are tested again. Raises
    InputError for a file of other content.
    """
    current = {}
    for record in files.read_json(file, list) if file.exists() else ():
        if not (isinstance(record, dict) and set(record) >= KEYS):
            raise InputError(f"{file}: found other keys, expected what scorecard.py wrote")
        name = record["claim"]
        if name in known and record["source"] == source(known[name]):
            if record["world"] == world:
                current[name] = record
        elif name not in wanted:
            warn(f"{file}: the result for '{name}' is stale: the claim's source has changed")
    return current
