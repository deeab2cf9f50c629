"""What a machine, a terminal or a user's settings may be like: none of it may hang or mislead."""

import ast
import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import matplotlib
import pytest

import eval as eval_script
import scorecard
from tests.conftest import ROOT
from toyllm.base import devices, files
from toyllm.base.errors import InputError, Stopped, warn
from toyllm.base.scripts import docstring, run_script
from toyllm.runs import lock, provenance, run_folder
from toyllm.show import background, figures, tables
from toyllm.tools import chat

USERS_STYLE = {"font.family": "Not A Font", "axes.facecolor": "black", "savefig.facecolor": "red",
               "figure.dpi": 300, "savefig.bbox": "tight", "text.usetex": True}  # fmt: skip


def picture(file) -> bytes:
    """What a small figure looks like, drawn as all of ours are."""
    with figures.themed("dark") as c:
        figure, (axes,) = figures.new(2, 2)
        axes.plot([1, 2], label="a_b")
        axes.set_title("x_y", color=c["ink"])
        axes.legend()
        figure.savefig(file)
    return file.read_bytes()


def test_a_figure_looks_the_same_whatever_the_users_style(tmp_path):
    plain = picture(tmp_path / "plain.png")
    with matplotlib.rc_context(USERS_STYLE):
        assert picture(tmp_path / "styled.png") == plain
        assert matplotlib.rcParams["savefig.facecolor"] == "red"  # the user's again, afterwards


def test_a_figure_that_cannot_be_drawn_is_a_warning_that_says_why(tmp_path, monkeypatch, capsys):
    """In a real process, with settings that keep matplotlib from being imported."""
    monkeypatch.setenv("MPLBACKEND", "module://a_notebook's")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "rc"))
    (tmp_path / "rc").write_bytes(b"\xff\xfe")
    (tmp_path / "calibration.png").write_text("of earlier results")
    drawn = background.BackgroundFigures(tmp_path)
    drawn.add({"calibration": {}, "generalization": {"pretrain": {}}})
    drawn.add({"calibration": {}, "domains": [], "mixture": {"pretrain": {}}})
    assert drawn.finish() == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("not all figures could be drawn in ")
    for reason in (
        "calibration: KeyError('points')",
        "calibration-dark: KeyError('points')",
        "matrix: KeyError('domains')",
        "mixture: Key",
    ):
        assert reason in line


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("head -c 1000000 /dev/zero >&2; echo oh no >&2; exit 3", "oh no"),
        ("exit 3", "exit status 3"),
        ("exec sleep 60", "still drawing after 0.2 s"),
    ],
)
def test_a_drawing_process_cannot_stop_its_caller(tmp_path, monkeypatch, capsys, does, why):
    """It writes more than a pipe holds, reads nothing, dies or hangs."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o755)
    monkeypatch.setattr(background.sys, "executable", str(python))
    drawn = background.BackgroundFigures(tmp_path)
    drawn.add({"generalization": "x" * 1_000_000})
    if why.startswith("still"):
        monkeypatch.setattr(background, "LIMIT_S", 0.2)
    assert drawn.finish() == {}
    assert capsys.readouterr().err.count(why) == 1


def ended(action, capsys) -> tuple[int, str]:
    """How a script ends that does this: its status, and the line that it tells."""
    with pytest.raises(SystemExit) as end:
        run_script(action)
    (line,) = capsys.readouterr().err.splitlines()
    return end.value.code, line


def test_a_platform_that_is_not_there_is_told_in_one_line(tmp_path):
    """By whatever starts the backend first, here a tool that has nothing to do with devices."""
    command = [sys.executable, "-m", "toyllm.tools.new_world", tmp_path / "my.toml"]
    env = os.environ | {"JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    for part in ("JAX_PLATFORMS=nonsense", "there are: ", "unset it", "jax's plugin for nonsense"):
        assert part in line


@pytest.mark.parametrize("asks", [devices.mesh, devices.local_mesh, devices.first, devices.setup])
@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("the driver is too old")])
def test_whatever_asks_for_devices_says_why_there_are_none(monkeypatch, capsys, asks, error):
    def broken():
        raise error

    monkeypatch.setattr(jax, "devices", broken)
    monkeypatch.setattr(type(jax.config), "jax_platforms", None, raising=False)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    status, line = ended(asks, capsys)
    assert status == 2
    assert line == f"no device can be used: {str(error) or 'jax has no plugin for it'}"


def test_too_little_memory_on_a_device_is_told_in_one_line(capsys):
    def action():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes")

    status, line = ended(action, capsys)
    assert status == 1
    assert "too little free memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes)" in line


def test_64_bit_floats_are_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with jax.enable_x64(True), pytest.raises(InputError, match="env -u JAX_ENABLE_X64"):
        devices.setup()


@pytest.mark.parametrize(("asked", "count"), [(3, None), (-1, 7)])
def test_a_number_of_devices_that_was_asked_for_stays(monkeypatch, asked, count):
    """Such as by JAX_NUM_CPU_DEVICES; else there are as many as cores."""
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", asked, raising=False)
    monkeypatch.setattr(devices, "cores", lambda: 7)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    devices.setup()
    assert updates.get("jax_num_cpu_devices") == count


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),  # at least one
        ({"cpu.max": "9900000 100000"}, 8),  # no more than the process is bound to
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "350000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({}, 8),
    ],
)
def test_a_containers_quota_bounds_the_cores(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert devices.cores(tmp_path) == cores


def test_a_script_works_in_the_oddest_of_environments(tmp_path):
    """No home, no locale, no docstrings, a notebook's backend, and nowhere to write errors."""
    env = {"PYTHONOPTIMIZE": "2", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C",
           "PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://a_notebook's"}  # fmt: skip
    shell = f"exec '{sys.executable}' eval.py --list <&- 2>&-"
    done = subprocess.run(["/bin/sh", "-c", shell], env=env, cwd=ROOT, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert b"learned         What pretraining learned" in done.stdout


def test_closed_streams_are_opened_on_nothing(monkeypatch):
    """Else the next files would be numbers 0 to 2, with what libraries print in them."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    asked = []

    def action():
        print("lost")
        warn("lost")
        asked.append(sys.stdin.read())

    run_script(action)
    assert asked == [""]
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert os.get_inheritable(stream.fileno())
        stream.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_a_stream_does_not_have_are_replaced(monkeypatch, encoding):
    shown, typed = io.BytesIO(), io.BytesIO(b"\xff\n")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, "utf-8"))

    def action():
        print("R² → 文", input())
        table = tables.blank_table("→", "文")
        table.add_row("ρ", chat.bar(0.3, 8))
        tables.show(tables.new_console(), "R² → 文", table, "…")

    run_script(action)
    assert b"? ?" in shown.getvalue()


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert devices.cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert devices.cache_folder().startswith("/cache/toyllm/")


def test_docstrings_are_read_from_the_file(monkeypatch):
    """PYTHONOPTIMIZE=2 leaves them out."""
    monkeypatch.setattr(scorecard, "__doc__", None)
    assert docstring(scorecard).startswith("Test every claim")


def full() -> io.TextIOWrapper:
    """A file on a disk that is full."""
    try:
        return open("/dev/full", "w")
    except OSError:
        pytest.skip("there is no /dev/full here")


@pytest.mark.parametrize("count", [1, 10_000])  # less and more than Python buffers
def test_a_full_disk_behind_standard_output_is_told(monkeypatch, capsys, count):
    with full() as file:
        monkeypatch.setattr(sys, "stdout", file)
        status, line = ended(lambda: print("line\n" * count), capsys)
    assert status == 1
    assert line.startswith("standard output: No space left on device; ")


def test_a_full_disk_behind_standard_error_ends_nothing(monkeypatch):
    with full() as file:
        monkeypatch.setattr(sys, "stderr", file)
        run_script(lambda: warn("a warning"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # or closing it would fail


def test_an_error_of_the_system_without_a_file_is_told(capsys):
    def action():
        raise OSError(errno.EIO, "Input/output error")

    status, line = ended(action, capsys)
    assert status == 1
    assert line.startswith("[Errno 5] Input/output error; ")


ODD = "[/red]c:bug:[red]"


def test_names_that_look_like_markup_are_shown_as_they_are(tiny):
    """Of domains, signals and runs, in every table: they come from strangers."""
    text = (tiny / "run" / "eval" / "results.json").read_text()
    results = json.loads(text.replace('"code', f'"{ODD}'))
    console = tables.new_console(file=io.StringIO(), width=300)
    tables.print_tables(results, console)
    tables.print_comparison([Path(ODD), Path("b")], [results, results], console)
    shown = re.sub(" +", " ", console.file.getvalue())
    for part in (f"\nsignal {ODD} facts", f"\n{ODD}:bad ", f"({ODD}, facts", f"\nquantity {ODD} b"):
        assert part in shown


def test_the_chat_shows_names_as_they_are():
    console = tables.new_console(file=io.StringIO(), width=300)
    talk = SimpleNamespace(world=SimpleNamespace(domains=()), begin=lambda name: None)
    talk.switch, talk.name, talk.turns = talk.begin, ODD, []
    terminal = chat.Chat(talk, console, None)
    terminal.begin(ODD)
    terminal.switch(ODD)
    assert console.file.getvalue().count(ODD) == 2


def test_printed_commands_can_be_typed_wherever_the_run_is(tmp_path, monkeypatch, capsys):
    run = tmp_path / "my run; no 'other'"
    command = f"uv run train.py --run {shlex.quote(str(run))}"
    with pytest.raises(InputError) as error:
        run_folder.load_run(run)
    assert str(error.value).endswith(command)
    with pytest.raises(InputError) as error:
        provenance.check_start(run, None, None)
    assert str(error.value).endswith(command)

    def stopped():
        raise Stopped(15)

    monkeypatch.setattr(sys, "argv", ["eval.py", str(run)])
    status, line = ended(stopped, capsys)
    assert status == 128 + 15
    assert line.endswith(f"uv run eval.py {shlex.quote(str(run))}")


@pytest.fixture
def read_only(tiny, monkeypatch) -> Path:
    """A run on a file system where nothing can be written."""
    folder, opened = tiny / "run", os.open

    def refuse(path, flags, *rest, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(devices, "setup", lambda *_: None)
    return folder


def test_a_run_that_cannot_be_written_is_not_measured(read_only, capsys):
    arguments = eval_script.Args(runs=(read_only,), measure=(("learned",),))
    status, line = ended(lambda: eval_script.main(arguments), capsys)
    assert status == 2
    assert line.startswith(f"{read_only}/lock: Read-only file system")
    assert line.endswith(f"cp -r {shlex.quote(str(read_only))} COPY")


def test_a_run_that_cannot_be_written_can_be_talked_to(read_only, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/switch\n"))
    run_script(lambda: chat.main(chat.Args(read_only)))
    out, err = capsys.readouterr()
    assert "→ pretrain" in out
    assert not err


def test_a_drawing_process_that_cannot_be_started_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(background.sys, "executable", str(tmp_path / "none"))
    drawn = background.BackgroundFigures(tmp_path)
    drawn.add({})
    assert drawn.finish() == {}
    assert capsys.readouterr().err.count("No such file or directory") == 1


def test_a_reader_that_has_seen_enough_ends_a_script_quietly(monkeypatch, capsys):
    """As in `eval.py --list | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(SystemExit) as end:
            run_script(lambda: print("line"))
    assert end.value.code == 128 + signal.SIGPIPE
    assert not capsys.readouterr().err


def test_names_in_any_script_are_shown_whole():
    table = tables.blank_table("сигнал", "数学")
    table.add_row("код:плохо", "善")
    console = tables.new_console(file=io.StringIO(), width=12)
    tables.show(console, "世界", table)
    assert re.sub(" +", " ", console.file.getvalue()) == "\n世界\nсигнал 数学 \nкод:плохо 善 \n"


def test_what_a_killed_process_left_hinders_nobody(tmp_path):
    (tmp_path / "lock").write_text('{"pid": 1, "host": "here", "since": "now", "command": ""}')
    (tmp_path / "config.json.tmp").write_text("{")
    with lock.take(tmp_path):
        files.write_json(tmp_path / "config.json", {})
    assert files.read_json(tmp_path / "config.json") == {}


@pytest.mark.filterwarnings("ignore:Error (reading|writing) persistent compilation cache")
def test_a_cache_folder_that_cannot_be_written_costs_a_warning_at_most(tmp_path, monkeypatch):
    from jax.experimental.compilation_cache import compilation_cache

    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file" / "cache"))
    try:
        assert jax.jit(lambda x: x * 3 + 0.125)(2.0) == 6.125
    finally:
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("script", ["train.py", "eval.py", "scorecard.py"])
def test_a_script_says_at_once_that_it_starts(script):
    """Before any slow import; and only on a terminal, so that other programs read only results."""
    head = ast.parse((ROOT / script).read_text()).body[1]
    assert ast.unparse(head) == "import toyllm.base.starting"
    command = [sys.executable, "-c", "import toyllm.base.starting"]
    screen, terminal = os.openpty()
    with os.fdopen(screen, "rb", buffering=0) as reader:
        subprocess.run(command, stderr=terminal, check=True, cwd=ROOT)
        os.close(terminal)
        assert "Loading JAX" in reader.read(100).decode()
    assert subprocess.run(command, stderr=subprocess.PIPE, check=True, cwd=ROOT).stderr == b""
