"""The commands of the READMEs, run as they are written, in their order, in a folder of their own.

What differs: `train.py` gets `--preset tiny`, so that all of it takes minutes. Left out is what
needs more than this machine (other hosts, GPUs) or is tested elsewhere (pytest, TensorBoard), and
what takes too long at any size.
"""

import os
import re
import shlex

import pytest

from tests.conftest import ROOT
from tests.scripts import start

pytestmark = pytest.mark.long  # CI runs this file

PAGES = ("tools", "runs", "results", "interop", "method")
TEXTS = ("README.md", *(f"docs/{name}.md" for name in PAGES), "corpora/README.md")
# commands that are not run, and why
ELSEWHERE = {
    "pytest": "this is pytest",
    "tensorboard": "tests/test_pages.py",
    "--extra": "needs a GPU",
    "--coordinator": "needs another host; tests/test_devices.py",
    "scorecard.py": "hours at any size; tests/test_claims.py",
    "[": "a synopsis: every option at once",
    "…": "a synopsis",
    "|": "a synopsis",
    "FILE": "a synopsis",
    "RUN": "a synopsis",
}


def commands() -> list[str]:
    """Every command of the READMEs, in order, each once."""
    found: list[str] = []
    for name in TEXTS:
        text = re.sub(r"\\\n\s*", " ", (ROOT / name).read_text())
        lines = re.findall(r"^(?:    )?((?:pip install uv && )?uv run .+)$", text, re.M)
        for line in lines:
            found += re.split(r"\s{3,}|\s+#", line)[0].split("&&")
        for inline in re.findall(r"`(uv run [^`]+)`", text):  # within sentences
            found += inline.split("&&")
    found = [" ".join(part.split()) for part in found]
    found = [part for part in found if part.startswith("uv run")]
    return [c for c in dict.fromkeys(found) if not any(part in c for part in ELSEWHERE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks like a clone, with what a reader is asked to have."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "eval.py", "corpora", "toyllm", "examples"):
        os.symlink(ROOT / name, folder / name)
    pairs = start("toyllm/tools/pairs.py", "tone:bad", "--count", "20")
    assert pairs.wait() == 0
    (folder / "pairs.jsonl").write_text(pairs.out)
    (folder / "notes.jsonl").write_text('{"text": "a note of my own about the weather"}\n' * 9)
    return folder


def test_there_are_commands():
    assert len(commands()) > 20
    assert "uv run train.py" in commands()


def is_own(command: str) -> bool:
    """Whether a command is about a reader's own world or text: those are in a file of their own."""
    return any(x in command for x in ("my.toml", "runs/my", "bank", "raters", "notes"))


@pytest.mark.parametrize("command", [c for c in commands() if not is_own(c)])
def test_a_command_does_what_it_says(folder, command):
    follow(folder, command)


def follow(folder, command: str) -> None:
    """Run a command as a reader does, in a folder where those before it were run."""
    plain, _, target = command.partition(" > ")
    words = shlex.split(plain)[2:]
    if words[0] == "-m":
        words[:2] = [words[1].replace(".", "/") + ".py"]
    if words[0] == "train.py" and "--preset" not in words:
        words += ["--preset", "tiny"]
        words += [] if "--run" in words else ["--run", "runs/default"]
    if words[0].endswith("new_world.py") and (folder / words[1]).exists():
        (folder / words[1]).unlink()  # a reader of both READMEs begins anew
    script = start(*words, cwd=folder)
    stopped = "--on-alarm" in words and "ended by its alarm" in script.err
    assert script.wait() == 0 or stopped, script.err
    if target:
        (folder / target).write_text(script.out)
    if words[0] == "eval.py" and "--measure" not in words and "--list" not in words:
        run = next((w for w in words[1:] if w.startswith("runs/")), "runs/default")
        assert (folder / run / "eval" / "report.html").exists()
