"""The labs, run as code with few steps: unsolved, solved, and with each wrong solution."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from tests import notebooks
from tests.conftest import ROOT
from tests.scripts import run

FOLDER = ROOT / "examples" / "labs"
LABS = dict(enumerate(sorted(FOLDER.glob("*.ipynb")), 1))
# runs the solved lab; then, in the names that it left, what changes where nothing is solved; then
# each wrong solution in a copy of these names
RUNNER = """
import json, sys, matplotlib
matplotlib.use("agg")
given = json.load(open(sys.argv[1]))
names = {"__name__": "__main__"}
for source in given["cells"]:
    exec(source, names)
import checks
print("== wrong")
for name, mistake, source in given["wrong"]:
    exec(source, dict(names))
    print("accepted" if checks.RESULTS[name] else "refused", name, mistake)
print("== unsolved")
for source in given["unsolved"]:
    exec(source, names)
"""


def load(name: str):
    """A module of the labs' folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOLUTIONS = load("solutions").SOLUTIONS


def exercises(lab: int) -> dict[str, dict]:
    """The cells of a lab's exercises by their names."""
    named = ((c["metadata"]["lab"].get("exercise"), c) for c in notebooks.code_cells(LABS[lab]))
    return {name: cell for name, cell in named if name}


def wrong(lab: int) -> list[tuple[str, str, str]]:
    """Every wrong solution of a lab: the exercise, the mistake and the cell's code."""
    result = []
    for name, cell in exercises(lab).items():
        solution, mistakes = SOLUTIONS[lab][name]
        for mistake, (old, new) in mistakes.items():
            assert old in solution, f"{name}, {mistake}: {old!r} is not in the solution"
            changed = notebooks.solved(cell, {name: solution.replace(old, new)})
            result.append((name, mistake, changed))
    return result


def run_lab(lab: int, tmp_path, cwd, short=True) -> tuple[str, str, str]:
    """What is printed by a solved lab, by its wrong solutions, and where nothing is solved."""
    cells = notebooks.code_cells(LABS[lab])
    solutions = {name: solution for name, (solution, _) in SOLUTIONS[lab].items()}
    solved = [notebooks.solved(cell, solutions) for cell in cells]
    unsolved = [cell["source"] for cell in cells]
    if short:
        mark = "\n# next cell\n"
        solved, unsolved = (
            notebooks.shortened(mark.join(x)).split(mark) for x in (solved, unsolved)
        )
        # what no exercise changes is not run again, but for the score
        changed = ["exercise" in c["metadata"]["lab"] or "summary(" in c["source"] for c in cells]
        again = notebooks.dependents(unsolved, changed)
        unsolved = [source for source, is_run in zip(unsolved, again, strict=True) if is_run]
    given = {"cells": solved, "wrong": wrong(lab), "unsolved": unsolved}
    (tmp_path / "given.json").write_text(json.dumps(given))
    (tmp_path / "runner.py").write_text(RUNNER)
    if short:
        printed = run(tmp_path / "runner.py", tmp_path / "given.json", cwd=cwd)
    else:  # as a reader runs it: tests compile without optimizations, which takes minutes here
        env = {name: x for name, x in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
        command = [sys.executable, tmp_path / "runner.py", tmp_path / "given.json"]
        env["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    first, others = printed.split("== wrong\n")
    return first, *others.split("== unsolved\n")


def judge(lab: int, solved: str, mistaken: str, unsolved: str) -> None:
    """Assert what the checks say of solutions, of wrong solutions and of cells with dots."""
    total, mistakes = len(SOLUTIONS[lab]), len(wrong(lab))
    assert f"lab {lab}: {total} of {total} exercises passed" in solved
    assert mistakes >= 10
    assert mistaken.count("\nrefused ") == mistakes, re.findall("accepted .*", mistaken)
    # the reason is the mistake and not that the code does not run
    assert mistaken.count("not right yet: ") == mistakes, re.findall(".*raised.*", mistaken)
    assert unsolved.count("not done yet") == total
    assert f"lab {lab}: 0 of {total} exercises passed" in unsolved


@pytest.mark.parametrize("lab", LABS)
def test_the_checks_pass_the_solutions_alone(lab, tmp_path):
    judge(lab, *run_lab(lab, tmp_path, FOLDER))


@pytest.mark.long
@pytest.mark.parametrize("lab", LABS)
def test_a_lab_runs_at_full_length(lab, tmp_path):
    judge(lab, *run_lab(lab, tmp_path, ROOT, short=False))


@pytest.mark.parametrize("lab", LABS)
def test_a_lab_says_how_long_its_cells_take_and_is_stored_without_outputs(lab):
    registered = {n for n, (number, _) in load("checks").EXERCISES.items() if number == lab}
    assert set(exercises(lab)) == set(SOLUTIONS[lab]) == registered
    for cell in notebooks.code_cells(LABS[lab]):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        assert re.match(r"# (about \d+|under a) (s|second) on two cores\n", cell["source"])
        assert 0 <= cell["metadata"]["lab"]["seconds"] <= 60
    assert not re.search(r"/(home|root|tmp|work)/", LABS[lab].read_text())


def test_a_check_says_what_is_wrong(capsys):
    checks = load("checks")
    for name, answer, line in (
        ("posterior", ..., "not done yet"),
        ("posterior", lambda prior_C, likelihood_TC: None, "not done yet"),
        ("posterior", 3, "not right yet: expected a function, found int"),
        ("posterior", lambda p, x: p[:2], "expected shape (5,), found shape (2,)"),
        ("posterior", lambda p: p, "your code raised TypeError"),
        ("nats_per_token", lambda p, n: "much", "expected numbers, found str"),
        ("nats_per_token", lambda p, n: p.sum() / (n - 1).sum(), "a loss is minus the log"),
    ):
        assert not checks.check(name, answer)
        assert line in capsys.readouterr().out
    assert checks.summary(1) == (0, 6)
