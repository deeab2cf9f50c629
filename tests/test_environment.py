"""What a machine, a terminal or a user's settings may be like: none of it may hang or mislead."""

import matplotlib
import pytest

from toyllm import drawings, figures

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
    monkeypatch.setattr(drawings, "THEMES", ["light"])
    monkeypatch.setenv("MPLBACKEND", "module://a_notebook's")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "rc"))
    (tmp_path / "rc").write_bytes(b"\xff\xfe")
    (tmp_path / "calibration.png").write_text("of earlier results")
    artists = drawings.Artists(tmp_path)
    artists.give({"calibration": {}, "generalization": {}})
    artists.give({"calibration": {}, "generalization": {}, "domains": [], "mixture": {}})
    assert artists.finish() == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("not all light figures could be drawn in ")
    for reason in (
        "calibration: KeyError('points')",
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
def test_a_drawing_process_may_do_what_it_likes(tmp_path, monkeypatch, capsys, does, why):
    """It talks more than a pipe holds, reads nothing, dies or hangs: the caller goes on."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o755)
    monkeypatch.setattr(drawings.sys, "executable", str(python))
    artists = drawings.Artists(tmp_path)
    artists.give({"generalization": "x" * 1_000_000})
    if why.startswith("still"):
        monkeypatch.setattr(drawings, "DRAWING_S", 0.2)
    assert artists.finish() == {}
    assert capsys.readouterr().err.count(why) == 2
