"""Notebooks as plain code: their cells, shortened, with solutions in place of exercises."""

import ast
import json
import re
from pathlib import Path


def code_cells(path: Path) -> list[dict]:
    """The code cells of a notebook, each with its source as one string under `source`."""
    cells = json.loads(path.read_text())["cells"]
    return [c | {"source": "".join(c["source"])} for c in cells if c["cell_type"] == "code"]


def shortened(code: str) -> str:
    """The same code with twenty steps of pretraining and a very small model."""
    code, steps = re.subn(r"^STEPS = \d+", "STEPS = 20", code, flags=re.M)
    code, sizes = re.subn(r"D=48, F=48\)", "D=16, F=16, L=1)", code)
    assert (steps, sizes) == (1, 1), "expected one constant STEPS and one model of width 48"
    return code


def solved(cell: dict, solutions: dict[str, str]) -> str:
    """A cell's code, in which a solution takes the place of what comes before the check."""
    name = cell["metadata"].get("lab", {}).get("exercise")
    if name not in solutions:
        return cell["source"]
    _, call, rest = re.split(r"^((?:\w+ = )?check\()", cell["source"], maxsplit=1, flags=re.M)
    return f"{solutions[name].strip()}\n\n\n{call}{rest}"


def dependents(sources: list[str], changed: list[bool]) -> list[bool]:
    """Which cells use a name that a changed cell before them assigns, directly or through others.

    A changed cell counts as its own dependent.
    """
    result, names = [], set()
    for source, is_changed in zip(sources, changed, strict=True):
        nodes = [*ast.walk(ast.parse(source))]
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
        loaded = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        result.append(is_changed or bool(loaded & names))
        names |= stored if result[-1] else set()
    return result
