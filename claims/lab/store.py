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
        self._facts: dict[Path, dict] = {}  # group → its seconds and environment
        self._used: set[Path] = set()  # groups that have been asked for
        self._rows: dict[str, tuple[Path, int]] = {}  # key → (group, row)
        self._loaded: dict[Path, dict] = {}  # group → its arrays
        for path in sorted(folder.glob("*/0.safetensors")):
            try:
                facts = checkpoints.read_record(path)["facts"]
            except checkpoints.Damaged as error:
                raise InputError(f"{error}; remove it, and it is trained again") from error
            self._index(path.parent, {"keys": [], "seconds": 0.0, "environment": {}} | facts)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    @property
    def spent(self) -> float:
        """Seconds of training, in whichever process, of all that has been asked for."""
        return sum(self._facts[group]["seconds"] for group in self._used)

    @property
    def elsewhere(self) -> list[str]:
        """How the environments of what has been asked for differ from this process's."""
        now = provenance.environment()
        environments = [self._facts[group]["environment"] for group in self._used]
        return sorted(
            {
                f"{key}: {there[key]}, now {now[key]}"
                for there in environments
                for key in there
                if there[key] != now.get(key)
            }
        )

    def keep(self, keys: list[str], items: dict, seconds: float) -> None:
        """Save a group: {name: tree}, one row a key."""
        group = self.folder / digest(keys)[:16]
        facts = {"keys": keys, "seconds": seconds, "environment": provenance.environment()}
        checkpoints.save(group, 0, items, facts)
        self.seconds_now += seconds
        self._loaded[group] = items
        self._index(group, facts)

    def load(self, key: str) -> dict:
        """One row of {name: tree}. Raises InputError where the group is damaged."""
        group, row = self._rows[key]
        self._used.add(group)
        if group not in self._loaded:
            try:
                self._loaded[group] = checkpoints.load(group, _stored).items
            except checkpoints.Damaged as error:
                raise InputError(f"{error}; remove {group}, and it is trained again") from error
        return jax.tree.map(lambda x: x[row], self._loaded[group])

    def _index(self, group: Path, facts: dict) -> None:
        self._facts[group] = facts
        self._rows |= {key: (group, row) for row, key in enumerate(facts["keys"])}


def _stored(record: dict) -> dict:
    """What to load of a group: all its trees, in the shapes of its record."""
    trees: dict = {}
    for path, leaf in record["leaves"].items():
        *parents, last = [int(p) if p.isdecimal() else p for p in path.split("/")]
        tree = trees
        for part in parents:
            tree = tree.setdefault(part, {})
        tree[last] = leaf
    return trees
