"""World files: TOML from anyone, read within limits, and the checks of single fields.

A file may extend another one, and then holds only what differs. A key path, such as
("characters", 2, "rates"), names one field of the merged file.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial, partialmethod
from pathlib import Path

import numpy as np

from toyllm.base import files, system
from toyllm.base.errors import InputError, nearest

# upper bounds for untrusted files
MAX_BYTES = 2**20
MAX_TEXTS, MAX_LETTERS = 300, 500  # texts of a list, letters of a text
MAX_NAME = 40  # letters of a name
MAX_KEY_PARTS = 10  # parts of a dotted key
MAX_BASES = 5  # files that extend one another

CORPORA = system.shipped("corpora")
NAMED_TABLES = ("characters", "instructions")  # lists whose tables are identified by their names
NAME = re.compile(rf"\w[\w.'-]{{0,{MAX_NAME - 1}}}")
# the beginning of a line of TOML: [header], [[header]] or key =, with the parts of the key
_PART = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_STATEMENT = re.compile(rf"(\[{{0,2}})\s*({_PART}(?:\s*\.\s*{_PART})*)\s*(?:\]|=)")
# strings (also unterminated, to match in linear time), comments and blanks within a line of TOML
_NOT_KEYS = re.compile(r"""\"(?:[^\"\\]|\\.?)*+\"?|'[^']*+'?|\#.*+|[ \t]++""")

Check = Callable[[object, tuple], object]  # a value and its key path → the value, checked


class Reader:
    """A parsed world file, and the checks of its fields.

    table: the file merged with those that it extends. own: the file alone. base: the file that it
    extends, or None.
    """

    def __init__(self, path: str | Path, depth: int = 0, data: bytes | None = None):
        """Read and parse. Raises InputError, one line `file:line: what: found …, expected …`.

        data: the file's bytes, where they have been read: a pipe can be read only once.
        """
        path = Path(path)
        if data is None:
            data = files.read_input(path, MAX_BYTES, "the world")
        files.check_size(data, path, MAX_BYTES)
        self.source = files.decode(data, path)
        if not self.source.strip():
            raise InputError(f"{path}: the file is empty, expected a world (corpora/README.md)")
        self.path, self.lines, self.base = str(path), self.source.split("\n"), None
        self.table = self.own = self._parse()
        if "extends" in self.own:
            self.base = type(self)(self._base_path(path, depth), depth + 1)
            self.base._check_named_tables()
            self._check_named_tables()
            own = {key: x for key, x in self.own.items() if key not in ("extends", "without")}
            self.table = _merge(self._reduced_base(), own)

    def _parse(self) -> dict:
        for number, line in enumerate(self.lines, 1):
            # tomllib takes time quadratic in the parts of a key: a hostile file could take hours
            keys = re.split(r"[^\w.-]", _NOT_KEYS.sub("", line)) if line.count(".") else [""]
            if max(key.count(".") for key in keys) >= MAX_KEY_PARTS:
                raise InputError(
                    f"{self.path}:{number}: a key has too many parts, expected at most "
                    f"{MAX_KEY_PARTS}"
                )
        try:
            return tomllib.loads(self.source)
        except (ValueError, RecursionError) as error:  # also numbers too long, tables too deep
            match = re.search(r"line (\d+)", str(error))
            line = match[1] if match else len(self.lines)
            raise InputError(
                f"{self.path}:{line}: bad TOML: {error}, expected a world file (text needs quotes)"
            ) from error

    def _base_path(self, path: Path, depth: int) -> Path:
        """Where the base is: beside this file, or in corpora/."""
        name, key_path = self.own["extends"], ("extends",)
        if not isinstance(name, str) or Path(name).name != name:
            self.fail(key_path, name, "the name of a file beside it or in corpora/")
        if depth == MAX_BASES:
            self.fail(key_path, name, f"at most {MAX_BASES} files, none twice")
        others = [
            file
            for folder in (path.parent, CORPORA)
            for file in (folder / name, *folder.glob("*.toml"))
            if file.is_file() and file.resolve() != path.resolve()
        ]
        for file in others:
            if file.name == name:
                return file
        near = nearest(name, [file.name for file in others])
        self.fail(key_path, name, f"another file, beside it or in corpora/{near}")

    def _check_named_tables(self) -> None:
        """What is merged name by name must be tables with names, each once."""
        for kind in NAMED_TABLES:
            cards = self.own.get(kind, [])
            if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
                self.fail((kind,), cards, f"tables [[{kind}]]")
            paths = [(kind, i, "name") for i in range(len(cards))]
            names = [self.text(c.get("name", ""), p) for c, p in zip(cards, paths, strict=True)]
            self.unique(names, paths, f"duplicate name in {kind}")
        self.entries(self.own.get("domains", {}), ("domains",), dict, MAX_TEXTS, empty=True)

    def _reduced_base(self) -> dict:
        """The base's table, less the characters, domains and instructions named in `without`."""
        table = dict(self.base.table)
        names_list = partial(self.entries, kind=list, limit=MAX_TEXTS, empty=True)
        kinds = dict.fromkeys((*NAMED_TABLES, "domains"), names_list)
        without = self.fields(self.own.get("without", {}), ("without",), {}, kinds)
        for kind, names in without.items():
            known = [*table.get(kind, ())]
            known = known if kind == "domains" else [card["name"] for card in known]
            for name in names:
                if name not in known:
                    near = ", ".join(known) + nearest(name, known)
                    self.fail(("without", kind), name, f"one of {near}", f"without {kind}")
            if kind == "domains":
                # a domain also occurs in the rates of characters and the scope of instructions
                table[kind] = _less(table[kind], names)
                for other, key in (("characters", "rates"), ("instructions", "domains")):
                    cards = table.get(other, [])
                    table[other] = [{**c, key: _less(c.get(key), names)} for c in cards]
            else:
                table[kind] = [card for card in table[kind] if card["name"] not in names]
        return table

    def fail(
        self, key_path: tuple, value: object, expected: str, what: str = "", found: str = ""
    ) -> None:
        """Raise InputError with the file and line of a key, or of `value` within its lines.

        what, found: phrases in place of the key path and the value.
        """
        path, line = self.place(key_path, value if isinstance(value, str) else "")
        what, found = what or self.spell(key_path), found or files.shorten(value)
        raise InputError(f"{path}:{line}: {what}: found {found}, expected {expected}")

    def spell(self, key_path: tuple) -> str:
        """A key path as text: ('characters', 2, 'rates') → characters.hal.rates."""
        parts, value = [], self.table
        for key in key_path:
            inside = isinstance(value, dict | list) and (isinstance(key, int) or key in value)
            value = value[key] if inside else None
            name = str(value.get("name", "")) if isinstance(value, dict) else ""
            index = f"[{key}]" if isinstance(key, int) else f".{key}"
            parts.append(f".{name}" if isinstance(key, int) and NAME.fullmatch(name) else index)
        return "".join(parts).lstrip(".") or "the file"

    def place(self, key_path: tuple, item: str = "") -> tuple[str, int]:
        """The file, and the line in it, that says most of a key path, this file first."""
        lines, source = [], self
        while source:
            lines.append((*source._line(self._path_in(source, key_path), item), source.path))
            source = source.base
        *_, line, path = max(lines, key=lambda x: x[:2])
        return path, line

    def _path_in(self, source: "Reader", key_path: tuple) -> tuple:
        """A key path as the file of `source` has it, where named tables may be in another order."""
        if len(key_path) < 2 or key_path[0] not in NAMED_TABLES or not (self.base or source.base):
            return key_path
        kind, index, *rest = key_path
        names = [card.get("name") for card in source.own.get(kind, [])]
        name = self.table[kind][index].get("name")
        return (kind, names.index(name) if name in names else -1, *rest)

    def _line(self, key_path: tuple, item: str) -> tuple[int, bool, int]:
        """How many parts of a key path this file spells out, whether its item, and the line."""
        depth, line = 0, 1
        for number, path in self._statements():
            if len(path) > depth and path == key_path[: len(path)]:
                depth, line = len(path), number
        for number, text in enumerate(self.lines[line - 1 :] if item else (), line):
            if number > line and text.lstrip().startswith("["):  # the next table
                break
            if f'"{item}"' in text or f"'{item}'" in text:
                return depth, True, number
        return depth, False, line

    def _statements(self) -> Iterator[tuple[int, tuple]]:
        """The number of each line that begins with a header or a key, and its key path."""
        header, counts = (), {}
        for number, line in enumerate(self.lines, 1):
            if match := _STATEMENT.match(line.strip()[:MAX_LETTERS]):
                path = tuple(part.strip("\"'") for part in re.findall(_PART, match[2]))
                if match[1] == "[[":
                    counts[path[0]] = counts.get(path[0], -1) + 1
                if match[1]:
                    index = (counts[path[0]],) if path[0] in counts else ()
                    header = path = (path[0], *index, *path[1:])
                else:
                    path = (*header, *path)
                yield number, path

    def fields(
        self,
        table: object,
        key_path: tuple,
        required: dict[str, Check],
        optional: dict[str, Check] | None = None,
    ) -> dict:
        """The values of a table, each checked by the function that is given for its key."""
        checks = required | (optional or {})
        if not isinstance(table, dict):
            self.fail(key_path, table, "a table")
        inside = self.spell(key_path)
        for key in table:
            if key not in checks:
                known = f"one of {', '.join(checks)}{nearest(key, checks)}"
                self.fail((*key_path, key), None, known, f"unknown key in {inside}", repr(key))
        for key in required:
            if key not in table:
                self.fail(key_path, None, repr(key), f"missing field in {inside}", "nothing")
        return {key: checks[key](table[key], (*key_path, key)) for key in checks if key in table}

    def entries(
        self, values: object, key_path: tuple, kind: type, limit: int, empty: bool = False
    ) -> object:
        """A list or a table, as `kind` says, of at most `limit` entries."""
        name = "list" if kind is list else "table"
        if not isinstance(values, kind):
            self.fail(key_path, values, f"a {name}")
        if not values and not empty:
            self.fail(key_path, values, f"a {name} of at least one entry")
        if len(values) > limit:
            self.fail(key_path, None, f"at most {limit}", found=f"{len(values)} entries")
        return values

    def unique(self, values: Sequence[str], key_paths: Sequence[tuple], what: str) -> None:
        """Check that no value occurs twice."""
        for i, value in enumerate(values):
            if value in values[:i]:
                self.fail(key_paths[i], value, "each once", what)

    def boolean(self, value: object, key_path: tuple) -> bool:
        """True or false."""
        if not isinstance(value, bool):
            self.fail(key_path, value, "true or false")
        return value

    def number(self, value: object, key_path: tuple, high: float = np.inf) -> float:
        """A finite number from 0 to `high`."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= high or value == np.inf:
            bounds = "a finite number >= 0" if high == np.inf else f"a number from 0 to {high:g}"
            self.fail(key_path, value, bounds)
        return float(value)

    share = partialmethod(number, high=1)  # a number from 0 to 1

    def weights(self, values: list[float], key_path: tuple) -> np.ndarray:
        """Shares in proportion to `values`."""
        total = sum(values)
        if not 0 < total < np.inf:
            what = f"weights of {self.spell(key_path)}"
            self.fail(key_path, None, "more than 0", what, f"a sum of {total:g}")
        return np.array(values, dtype=np.float64) / total

    def whole(self, shares: list[float], key_path: tuple, what: str) -> list[float]:
        """Shares that sum to 1 as they stand."""
        if abs(sum(shares) - 1) > 1e-6:
            self.fail(key_path, None, "1", what, f"a sum of {sum(shares):.6g}")
        return shares

    def text(self, value: object, key_path: tuple, empty: bool = False) -> str:
        """Words with single spaces between."""
        if not isinstance(value, str):
            self.fail(key_path, value, "text")
        words = value.split()
        if not words and not empty:
            self.fail(key_path, value, "at least one word", found="an empty text")
        if len(value) > MAX_LETTERS:
            self.fail(key_path, value, f"at most {MAX_LETTERS} letters")
        if not "".join(words).isprintable():
            self.fail(key_path, value, "letters that can be printed")
        if special := [word for word in words if word.startswith("<")]:
            self.fail(key_path, value, "no word that begins with '<'", found=repr(special[0]))
        return " ".join(words)

    maybe_text = partialmethod(text, empty=True)  # a text that may be empty

    def name(self, value: object, key_path: tuple) -> str:
        """A name: it becomes part of signals, file names and tables."""
        if not NAME.fullmatch(self.text(value, key_path)):
            expected = f"one word of at most {MAX_NAME} letters, digits and .'-_"
            self.fail(key_path, value, expected)
        return value

    def texts(self, values: object, key_path: tuple) -> tuple[str, ...]:
        """A list of texts, each once."""
        self.entries(values, key_path, list, MAX_TEXTS)
        texts = tuple(self.text(value, key_path) for value in values)
        self.unique(texts, [key_path] * len(texts), f"duplicate text in {self.spell(key_path)}")
        return texts


def _merge(base: dict, own: dict, key_path: tuple = ()) -> dict:
    """`own` on top of `base`, key by key, and named tables name by name."""
    merged = dict(base)
    for key, value in own.items():
        path, before = (*key_path, key), base.get(key)
        if path in [(kind,) for kind in NAMED_TABLES] and isinstance(before, list):
            before, value = ({card["name"]: card for card in cards} for cards in (before, value))
            merged[key] = list(_merge(before, value, path).values())
        elif isinstance(before, dict) and isinstance(value, dict) and path[2:] != ("voices",):
            merged[key] = _merge(before, value, path)
        else:  # a character's voices are shares of one whole: they replace those of the base
            merged[key] = value
    return merged


def _less(part: object, names: list) -> object:
    """A list or table without the entries of some names; any other value as it is."""
    if isinstance(part, dict):
        return {key: value for key, value in part.items() if key not in names}
    return [name for name in part if name not in names] if isinstance(part, list) else part
