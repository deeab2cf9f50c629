"""Systems that lack what Linux has, simulated by hiding it; and what is installed from a wheel."""

import ast
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import toyllm
from tests.conftest import ROOT
from toyllm.base import devices, system
from toyllm.base.errors import InputError
from toyllm.base.scripts import command
from toyllm.runs import lock

ONLY_IN_SYSTEM = {"fcntl", "msvcrt", "resource", "signal", "socket", "multiprocessing", "/proc"}
# Python runs a module of this name at every start, before anything else
HIDE = """
import sys

NAMES = ("fcntl", "resource")

class Hidden:
    def find_spec(name, path=None, target=None):
        if name in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def hide(event, args):
    if event == "open" and str(args[0]).startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", str(args[0]))

for name in NAMES:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden)
sys.addaudithook(hide)
"""
# what Windows has: it locks bytes, here with the means of the other systems
LOCKING = """
import os
from toyllm.base import system

class Windows:
    LK_NBLCK = 2

    def locking(file, mode, count):
        try:
            os.lockf(file, {2: os.F_TLOCK}[mode], count)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

system.fcntl, system.msvcrt = None, Windows
"""


def read_toml() -> dict:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_only_one_module_knows_the_operating_system():
    paths = [*ROOT.glob("*.py"), *ROOT.glob("toyllm/**/*.py"), *ROOT.glob("claims/**/*.py")]
    for path in (*paths, *ROOT.glob("benchmarks/*.py")):
        found = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Constant) and str(node.value).startswith("/proc"):
                found.add("/proc")
        assert not found & ONLY_IN_SYSTEM or path == Path(system.__file__), path


def test_a_run_without_what_windows_and_macos_lack(tiny, tmp_path):
    """No fcntl, no resource, no /proc: the tiny run works, and says one line, once."""
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "hide"), str(ROOT)])}
    run, usual = tmp_path / "run", (tiny / "run").resolve()
    told = "run folders cannot be locked (this Python has neither fcntl nor msvcrt); "
    for script in (["train.py", "--preset", "tiny", "--run", run], ["eval.py", run, run / "."]):
        done = subprocess.run(
            [sys.executable, *script], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if not line.startswith(("al", "note"))]
        assert lines == [f"{told}let only one process write there"]
    assert (run / "eval" / "report.html").exists()
    assert (run / "eval" / "matrix.png").exists()
    found, whole = (json.loads((r / "config.json").read_text()) for r in (run, usual))
    assert whole["environments"][0]["processor"] == devices.processor()
    if Path("/proc/cpuinfo").exists():
        assert found["environments"][0]["processor"] != devices.processor()
    # and it computes the same
    learned = [json.loads((r / "eval" / "results.json").read_text()) for r in (run, usual)]
    assert learned[0]["generalization"] == learned[1]["generalization"]


def test_what_is_missing_has_a_substitute(monkeypatch):
    assert not system.resource or system.peak_memory() > 2**24
    text = "processor: 0\nmodel name\t: A fast one\nflags: sse4_2"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert system.cpuinfo("flags", "Features") == "flags: sse4_2"
    assert system.processor_name() == "A fast one"
    monkeypatch.setattr(system, "resource", None)
    assert math.isnan(system.peak_memory())
    monkeypatch.setattr(system, "cpuinfo", lambda *begins: "")
    assert system.processor_name()


def test_bytes_are_locked_where_files_cannot_be(tmp_path, monkeypatch):
    """As on Windows: a second process is refused, until the first has ended, however it ends."""
    code = f"{LOCKING}\nfrom pathlib import Path\nfile = system.open_plain(Path('lock'))\n"
    code += "system.lock(file)\nprint('held', flush=True)\ninput()"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", None)
    exec(LOCKING, {})
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as first:  # fmt: skip
        assert first.stdout.readline().strip() == b"held"
        with pytest.raises(InputError, match="in use by another process"), lock.hold(tmp_path):
            pass
        first.kill()
        first.wait()
    with lock.hold(tmp_path):  # the text is where it was
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_link_is_not_locked_where_the_system_would_follow_it(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_NOFOLLOW")
    (tmp_path / "other").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="symbolic links"), lock.hold(tmp_path):
        pass
    assert (tmp_path / "other").read_text() == "precious"


def test_messages_name_the_commands_that_there_are(monkeypatch):
    tool = "toyllm.tools.show"
    assert command("eval.py", "my run") == "uv run eval.py 'my run'"
    assert command(tool, 3) == f"uv run -m {tool} 3"
    monkeypatch.setattr(sys, "argv", ["/bin/toyllm-train", "--preset", "tiny"])
    assert command() == "toyllm-train --preset tiny"
    assert command("eval.py", "my run") == "toyllm-eval 'my run'"
    monkeypatch.setattr(sys, "argv", ["chat.py"])
    monkeypatch.setattr(system, "INSTALLED", True)
    assert command(tool, 3) == f"python -m {tool} 3"
    assert command("train.py") == "toyllm-train"


def test_what_a_wheel_carries_is_found_in_it(tmp_path, monkeypatch):
    carried = read_toml()["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for name, place in carried.items():
        assert system.shipped(name) == ROOT / name
        assert place == f"toyllm/{name}"
        (tmp_path / "toyllm" / name).mkdir(parents=True)
    monkeypatch.setattr(system, "PACKAGE", tmp_path / "toyllm")
    assert {system.shipped(name) for name in carried} == {tmp_path / p for p in carried.values()}


def test_a_citation_is_of_this_version():
    """A small part of YAML, so that no parser is needed."""
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    fields = dict(re.findall(r"^([\w-]+): *(.*)$", text, re.M))
    required = {"cff-version", "message", "title", "authors"}
    assert required <= set(fields)
    assert fields["cff-version"] == "1.2.0"
    project = read_toml()["project"]
    assert fields["version"] == project["version"] == toyllm.__version__
    assert fields["license"] == project["license"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", fields["date-released"])
    (holder,) = re.findall(r"Copyright \(c\) \d+ (.*)", (ROOT / "LICENSE").read_text())
    assert re.findall(r"^  - name: (.*)$", text, re.M) == [holder]
    if "pyyaml" in {d.name.lower() for d in metadata.distributions()}:
        import yaml

        assert yaml.safe_load(text)["authors"] == [{"name": holder}]


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("uv"), reason="needs uv, and a registry of packages")
def test_a_wheel_away_from_the_repository_does_the_main_job(tmp_path):
    """Built from the source archive, installed beside this environment's other packages."""
    subprocess.run(["uv", "build", "-q", "--out-dir", tmp_path / "dist", ROOT], check=True)
    (wheel,), (source,) = ((tmp_path / "dist").glob(f"*{end}") for end in (".whl", ".tar.gz"))
    inside = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in inside} == {"toyllm"}
    worlds = {f"toyllm/corpora/{path.name}" for path in (ROOT / "corpora").glob("*.toml")}
    assert {*worlds, "toyllm/tools/starter.toml", "toyllm/show/report.html"} <= set(inside)
    with tarfile.open(source) as archive:
        assert any(name.endswith("/CITATION.cff") for name in archive.getnames())
    site, away = tmp_path / "site", tmp_path / "away"
    target = ["--target", site, "--python", sys.executable]
    subprocess.run(["uv", "pip", "install", "-q", "--no-deps", *target, wheel], check=True)
    away.mkdir()

    def does(words: str) -> str:
        name, *rest = shlex.split(words)
        program = ["-m", name] if name.startswith("toyllm.") else [site / "bin" / name]
        done = subprocess.run(
            [sys.executable, *program, *rest], cwd=away, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(site)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert does("toyllm-train --preset tiny").endswith("toyllm-eval runs/tiny\n")
    does("toyllm-eval runs/tiny")
    assert (away / "runs" / "tiny" / "eval" / "matrix.png").exists()
    world = json.loads((away / "runs" / "tiny" / "config.json").read_text())["args"]["world"]
    assert world == str(site / "toyllm" / "corpora" / "personas.toml")
    assert "python -m toyllm.tools.audit my.toml" in does("toyllm.tools.new_world my.toml")
    does("toyllm.tools.audit my.toml")
