"""Trained models of claims, stored in groups under keys that identify how they were made.

FOLDER/GROUP/0.safetensors: a checkpoint of trees stacked along axis 0, one row for each key; its
record has the keys, the seconds that training took, and its environment.
"""

from pathlib import Path

import jax

from claims.lab.arms import digest
from toyllm.base.errors import InputError
from toyllm.runs import checkpoints, provenance


class Store:
    """Rows of trained arrays by key."""

    def __init__(self, folder: Path):
        """Index the groups of earlier processes; arrays are loaded when they are first needed."""
        self.folder = folder
        self.seconds_now = 0.0  # of training, kept by this process
        self._seconds: dict = {}  # group → seconds, in whichever process
        self._environments: dict = {}  # group → where it was trained
        self._used: set = set()  # groups that have been asked for
        self._rows: dict = {}  # key → (group, row)
        self._loaded: dict = {}  # group → its arrays
        for path in sorted(folder.glob("*/0.safetensors")):
            try:
                facts = checkpoints.read_record(path)["facts"]
            except checkpoints.Damaged as error:
                raise InputError(f"{error}; remove it, and it is trained again") from error
            self._seconds[path.parent] = facts.get("seconds", 0.0)
            self._environments[path.parent] = facts.get("environment", {})
            for row, key in enumerate(facts.get("keys", ())):
                self._rows[key] = path.parent, row

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    @property
    def spent(self) -> float:
        """Seconds of training, in whichever process, of all that has been asked for."""
        return sum(self._seconds[group] for group in self._used)

    @property
    def elsewhere(self) -> list[str]:
        """How the environments of what has been asked for differ from this process's."""
        now = provenance.environment()
        return sorted(
            {
                f"{key}: {there[key]}, now {now[key]}"
                for there in (self._environments[group] for group in self._used)
                for key in there
                if there[key] != now.get(key)
            }
        )

    def keep(self, keys: list[str], items: dict, seconds: float) -> None:
        """Save a group: {name: tree}, one row a key."""
        group = self.folder / digest(keys)[:16]
        environment = provenance.environment()
        facts = {"keys": keys, "seconds": seconds, "environment": environment}
        checkpoints.save(group, 0, items, facts)
        self.seconds_now += seconds
        self._seconds[group], self._environments[group] = seconds, environment
        self._loaded[group] = items
        self._rows |= {key: (group, row) for row, key in enumerate(keys)}

    def load(self, key: str, *names: str) -> dict:
        """One row of the named trees. Raises InputError where the group is damaged."""
        group, row = self._rows[key]
        self._used.add(group)
        if group not in self._loaded:
            try:
                self._loaded[group] = checkpoints.load(group, _stored(names)).items
            except checkpoints.Damaged as error:
                raise InputError(f"{error}; remove {group}, and it is trained again") from error
        return jax.tree.map(lambda x: x[row], self._loaded[group])


def _stored(names: tuple[str, ...]) -> checkpoints.Wanted:
    """What to load of a group: these trees, in the shapes of its record."""

    def wanted(record: dict) -> dict:
        trees: dict = {}
        for path, leaf in record["leaves"].items():
            *parents, last = [int(p) if p.isdecimal() else p for p in path.split("/")]
            tree = trees
            for part in parents:
                tree = tree.setdefault(part, {})
            tree[last] = leaf
        return {name: trees[name] for name in names}

    return wanted
