"""TOML files that anybody may have written: checked field by field, told in one line.

How much time and memory a file can take of us is bounded before it is parsed. A file may extend
another one: it says only what is different.
"""

import re
import tomllib
from pathlib import Path

import numpy as np

from toyllm.base import files
from toyllm.base.errors import InputError, nearest

MOST = 2**20  # bytes of a file
MOST_TEXTS, MOST_LETTERS = 300, 500  # texts of a list, letters of a text
DEEPEST = 10  # parts of a key
MOST_BASES = 5  # files that extend one another
CORPORA = Path(__file__).resolve().parents[2] / "corpora"
LISTS = ("characters", "instructions")  # lists of tables with names
MOST_NAME = 40  # letters of a name
NAME = re.compile(rf"\w[\w.'-]{{0,{MOST_NAME - 1}}}")
# in a line of TOML: texts (also without an end, so that no letter is read twice), comments, blanks
ASIDE = re.compile(r"""\"(?:[^\"\\]|\\.?)*+\"?|'[^']*+'?|\#.*+|[ \t]++""")


class Reader:
    """A parsed file, and the checks of its fields; `where` says which one, as a path of keys.

    table: with what it extends. own: what it says itself. base: the file that it extends, or None.
    """

    def __init__(self, path: str | Path, depth: int = 0):
        """Read and parse. Raises InputError, one line `file:line: what, found …, expected …`."""
        path = Path(path)
        try:
            source = files.decode(files.read_bytes(path, MOST), path)
        except OSError as error:
            raise InputError(f"{path}: cannot read the world: {error.strerror}") from error
        if not source.strip():
            raise InputError(f"{path}: the file is empty, expected a world (corpora/README.md)")
        if number := _too_deep(source):
            raise InputError(
                f"{path}:{number}: found a key of many parts, expected at most {DEEPEST}"
            )
        try:
            self.table = self.own = tomllib.loads(source)
        except (ValueError, RecursionError) as error:  # also numbers too long, tables too deep
            found = re.search(r"line (\d+)", str(error))
            line = int(found[1]) if found else source.count("\n") + 1
            raise InputError(f"{path}:{line}: bad TOML: {error}, expected a world file") from error
        self.path, self.source, self.base = str(path), source, None
        self.lines = source.splitlines()
        if "extends" in self.own:
            self.base = type(self)(self._base_path(path, depth), depth + 1)
            own = {key: x for key, x in self.own.items() if key not in ("extends", "without")}
            for part in (self.base, self):
                part._check_lists()
            self.table = _merged(self._without(self.own.get("without", {})), own)

    def _base_path(self, path: Path, depth: int) -> Path:
        """Where the file lies that this one extends: beside it, or in corpora/."""
        name, where = self.own["extends"], ("extends",)
        if not isinstance(name, str) or Path(name).name != name:
            self.fail(where, "extends", repr(name), "the name of a file beside it or in corpora/")
        if depth == MOST_BASES:
            self.fail(where, "extends", f"'{name}'", f"at most {MOST_BASES} files, none twice")
        places = [folder / name for folder in (path.parent, CORPORA)]
        for place in places:
            if place.is_file() and place.resolve() != path.resolve():
                return place
        others = [file for folder in (path.parent, CORPORA) for file in folder.glob("*.toml")]
        names = [file.name for file in others if file.resolve() != path.resolve()]
        expected = "another file, beside it or in corpora/" + nearest(name, names)
        self.fail(where, "extends", f"'{name}'", expected)

    def _check_lists(self) -> None:
        """What is merged name by name must be tables with names, each once."""
        for kind in LISTS:
            cards = self.own.get(kind, [])
            if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
                self.fail((kind,), kind, repr(cards), f"tables [[{kind}]]")
            names = [_name(card) for card in cards]
            for name in names:
                if names.count(name) > 1:
                    self.fail((kind,), f"duplicate name in {kind}", f"'{name}'", "each once")
        if not isinstance(self.own.get("domains", {}), dict):
            self.fail(("domains",), "domains", repr(self.own["domains"]), "a table")

    def _without(self, leave: object) -> dict:
        """The base's table without some of its characters, domains, instructions."""
        table = dict(self.base.table)
        kinds = (*LISTS, "domains")
        self.fields(leave, ("without",), {}, dict.fromkeys(kinds, list))
        for kind, names in leave.items():
            known = [*(table.get(kind) or ())]
            known = known if kind == "domains" else [_name(card) for card in known]
            for name in names:
                if name not in known:
                    near = ", ".join(map(str, known)) + nearest(str(name), map(str, known))
                    self.fail(("without", kind), f"without {kind}", f"'{name}'", f"one of {near}")
            if kind == "domains":
                table = _without_domains(table, names)
            else:
                table[kind] = [card for card in table[kind] if _name(card) not in names]
        return table

    def fail(self, where: tuple, what: str, found: object, expected: str) -> None:
        """Raise InputError with the file and the line of `where`."""
        found = str(found).replace("\n", " ")
        found = found if len(found) <= 60 else found[:57] + "..."
        path, line = self.place(where)
        raise InputError(f"{path}:{line}: {what}: found {found}, expected {expected}")

    def place(self, where: tuple) -> tuple[str, int]:
        """The file, and the line in it, of the deepest part of the key path `where`.

        Of this file and those that it extends: the one that says most of it, the last word first.
        """
        found = []
        source = self
        while source:
            found.append((*source._line(self._translated(where, source)), source.path))
            source = source.base
        _, line, path = max(found, key=lambda part: part[0])
        return path, line

    def _translated(self, where: tuple, source: "Reader") -> tuple:
        """A path of keys in this table as a path in what another source says itself."""
        if source.base is None and source is self:
            return where
        if len(where) < 2 or where[0] not in LISTS or not isinstance(where[1], int):
            return where
        name = _name(self.table[where[0]][where[1]])
        names = [_name(card) for card in source.own.get(where[0], [])]
        return (where[0], names.index(name) if name in names else -1, *where[2:])

    def _line(self, where: tuple) -> tuple[int, int]:
        """How many parts of a path of keys this file's source spells out, and in what line."""
        best, header, counts, reached = 1, (), {}, 0
        for number, text in enumerate(self.lines, 1):
            text = text.strip()[:MOST_LETTERS]  # a key stands at the beginning
            if text.startswith("[["):
                name = text.strip("[] ").split("]")[0]
                counts[name] = counts.get(name, -1) + 1
                header = (name, counts[name])
                prefix = header
            elif match := re.match(r"\[([^\[\]]+)\]\s*(#|$)", text):
                parts = tuple(part.strip(" \"'") for part in match[1].split("."))
                array = (parts[0], counts[parts[0]]) if parts[0] in counts else parts[:1]
                header = prefix = (*array, *parts[1:])
            elif match := re.match(r"([\w.\"' -]+?)\s*=", text):
                key = match[1].strip()
                parts = (key[1:-1],) if key[0] in "\"'" else tuple(key.split("."))
                prefix = (*header, *(part.strip(" \"'") for part in parts))
            else:
                continue
            depth = 0
            while depth < min(len(prefix), len(where)) and prefix[depth] == where[depth]:
                depth += 1
            if depth == len(prefix) and depth > reached:
                best, reached = number, depth
        if reached < len(where) and isinstance(where[-1], str):
            # the last part may be an item of a list: the line of its table that quotes it
            for number in range(best, len(self.lines)):
                text = self.lines[number]
                if text.lstrip().startswith("["):
                    break
                if f'"{where[-1]}"' in text or f"'{where[-1]}'" in text:
                    return len(where), number + 1
        return reached, best

    def fields(self, table: object, where: tuple, required: dict, optional: dict) -> dict:
        """Check the keys of a table and the types of its values."""
        if not isinstance(table, dict):
            self.fail(where, spell(where), repr(table), "a table")
        known = {**required, **optional}
        for key in table:
            if key not in known:
                self.fail(
                    (*where, key),
                    "unknown key",
                    f"'{key}'",
                    f"one of {', '.join(known)}" + nearest(key, known),
                )
        for key in required:
            if key not in table:
                self.fail(where, f"missing field in {spell(where)}", "nothing", f"'{key}'")
        for key, value in table.items():
            kind = known[key]
            good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if not good:
                names = {str: "text", dict: "a table", list: "a list", bool: "true or false"}
                self.fail((*where, key), key, repr(value), names.get(kind, "a number"))
        return table

    def number(self, value: object, where: tuple, high: float = np.inf) -> float:
        """A finite number from 0 to `high`."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= high or value == np.inf:
            bounds = "a finite number >= 0" if high == np.inf else f"a number from 0 to {high:g}"
            self.fail(where, where[-1] if isinstance(where[-1], str) else where[-2], value, bounds)
        return float(value)

    def weights(self, values: list[float], where: tuple) -> np.ndarray:
        """Shares that sum to 1."""
        total = sum(values)
        if not 0 < total < np.inf:
            self.fail(where, f"weights of {spell(where)}", f"a sum of {total:g}", "more than 0")
        return np.array(values, dtype=np.float64) / total

    def text(self, value: object, where: tuple, allow_empty: bool = False) -> str:
        """Words with single spaces between."""
        if not isinstance(value, str):
            self.fail(where, where[-1], repr(value), "text")
        words = value.split()
        if not words and not allow_empty:
            self.fail(where, str(where[-1]), "an empty text", "at least one word")
        if len(value) > MOST_LETTERS:
            self.fail(where, str(where[-1]), value, f"at most {MOST_LETTERS} letters")
        if not "".join(words).isprintable():
            self.fail(where, str(where[-1]), repr(value), "letters that can be printed")
        if special := [word for word in words if word.startswith("<")]:
            self.fail(where, str(where[-1]), f"'{special[0]}'", "no word that begins with '<'")
        return " ".join(words)

    def name(self, value: str, where: tuple, what: str) -> str:
        """A name: it stands in signals, files and tables."""
        if not NAME.fullmatch(value):
            self.fail(where, what, f"'{value}'", "one word of at most 40 letters, digits and .'-_")
        return value

    def most(self, values: list | dict, where: tuple, most: int) -> None:
        """No more entries than these."""
        if len(values) > most:
            self.fail(where, spell(where), f"{len(values)} entries", f"at most {most}")

    def texts(self, values: object, where: tuple) -> tuple[str, ...]:
        """A list of texts, each once."""
        if not isinstance(values, list) or not values:
            self.fail(where, f"{spell(where)}", repr(values), "a list of at least one text")
        self.most(values, where, MOST_TEXTS)
        texts = tuple(self.text(value, (*where, value)) for value in values)
        for i, text in enumerate(texts):
            if text in texts[:i]:
                self.fail(
                    (*where, values[i]),
                    f"duplicate text in {where[-1]}",
                    f"'{text}'",
                    "each text once",
                )
        return texts


def _merged(base: dict, own: dict) -> dict:
    """What a base says, and what is said on top of it; lists of named tables name by name.

    Tables are merged key by key, but for a character's voices, which are shares of one whole.
    """
    merged = dict(base)
    for key, value in own.items():
        before = base.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[key] = _merged(before, value)
        elif key in LISTS and isinstance(before, list) and isinstance(value, list):
            merged[key] = _merged_list(before, value)
        else:
            merged[key] = value
    return merged


def _merged_list(base: list, own: list) -> list:
    names = [_name(card) for card in base]
    merged = list(base)
    for card in own:
        if _name(card) is not None and _name(card) in names:
            k = names.index(_name(card))
            merged[k] = _merged(merged[k], card)
            if "voices" in card:
                merged[k]["voices"] = card["voices"]
        else:
            merged.append(card)
    return merged


def _name(card: object) -> object:
    return card.get("name") if isinstance(card, dict) else None


def _without_domains(table: dict, names: list) -> dict:
    """A world without some domains, in rates and in the scope of instructions neither."""

    def left(part: object) -> object:
        if isinstance(part, dict):
            return {key: value for key, value in part.items() if key not in names}
        return [name for name in part if name not in names] if isinstance(part, list) else part

    table = {**table, "domains": left(table["domains"])}
    for kind, key in (("characters", "rates"), ("instructions", "domains")):
        table[kind] = [{**card, key: left(card.get(key))} for card in table.get(kind, [])]
    return table


def _too_deep(source: str) -> int:
    """The first line with a key of more than DEEPEST parts, a.b.c…; 0: none.

    The time that `tomllib` takes grows with their square: such a file could keep us for hours.
    """
    for number, line in enumerate(source.split("\n"), 1):
        if line.count(".") >= DEEPEST:
            keys = re.split(r"[^\w.-]", ASIDE.sub("", line))
            if max(key.count(".") for key in keys) >= DEEPEST:
                return number
    return 0


def spell(where: tuple) -> str:
    """A key path as a reader would say it: ('characters', 2, 'rates') → characters[2].rates."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.lstrip(".") or "the file"
