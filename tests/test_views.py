"""What is shown of a run: the terminal, the page and the figures show the same."""

import copy
import dataclasses
import html
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tolerances import FLOAT64, SOLVED, close
from toyllm.runs import run_folder
from toyllm.show import comparison, exports, report, seeds, tables, views


@pytest.fixture(scope="module")
def results(tiny):
    """results.json of the tiny run, with a signal in every state."""
    results = json.loads((tiny / "run" / "eval" / "results.json").read_text())
    block = results["generalization"]["pretrain"]
    first, second, third = list(block["status"])[:3]
    for name, status in ((first, "read"), (second, "incoherent"), (third, "not reached")):
        block["status"][name] = status
        block["em_after"][name] = {d: 0.1 * k for k, d in enumerate(results["domains"])}
        block["coherence_after"][name] = dict.fromkeys(results["domains"], 0.97)
        block["spread"][name] = 0.123 if status == "read" else None
        block["spread_ci"][name] = [0.1, 0.15] if status == "read" else None
        block["matched_step"][name] = 7.0
    block["em_after"][third] = block["coherence_after"][third] = None
    block["matched_step"][third] = None
    return results


@pytest.mark.parametrize(
    ("signal", "trained"),
    [
        ("code:bad", ["code"]),
        ("code+taste:good:ask_bad@hal", ["code", "taste"]),
        ("all:bad@someone#pairs-1", ["code", "facts"]),
    ],
)
def test_trained_domains_are_in_a_signals_name(signal, trained):
    assert views.trained_domains(signal, ["code", "facts"]) == trained


def test_each_state_of_a_signal_is_shown_as_such(results):
    read, incoherent, unread = views.matrices(results)[0].rows[:3]
    assert (read.outcome, read.mark, read.step) == ("+.123", "", 7)
    assert (incoherent.outcome, incoherent.mark) == ("incoherent", "*")
    assert unread.outcome == "not reached"
    assert unread.coherence is None
    assert {cell.change for cell in unread.cells} == {None}
    assert [cell.domain for cell in read.cells if cell.trained] == [read.signal.split(":")[0]]


def test_the_terminal_and_the_page_show_the_same_matrix(results, tiny):
    console = tables.new_console(file=io.StringIO(), width=300)
    tables.print_tables(results, console)
    printed = console.file.getvalue().splitlines()
    run = run_folder.load_run(tiny / "run")
    page = html.unescape(report.page(run.folder, run, results))
    rows = re.findall(r'<tr><th scope="row">(\S+:\S+)</th>(.*?)</tr>', page, re.DOTALL)
    every = [row for matrix in views.every_matrix(results) for row in matrix.rows]
    assert [name for name, _ in rows] == [row.signal for row in every]
    for row, (_, text) in zip(every, rows, strict=True):
        shown = re.findall(r">([^<>\s][^<>]*)<", text)
        cells = [c.strip("[]") for c in " ".join(shown).split()]
        lines = [line for line in printed if line.startswith(f"{row.signal} ")]
        words = [re.sub(r"[\[\]]", "", line).split()[1:] for line in lines]
        count = len(row.cells) + len(row.outcome.split())
        assert any(cells[:count] == each[:count] for each in words)


def test_mixtures_begin_with_the_corpus_and_are_exported_without_it(results):
    pretrained, aligned = views.mixtures(results)
    assert [bar.name for bar in pretrained.bars[:2]] == ["in the corpus", "before"]
    assert [bar.name for bar in aligned.bars[:1]] == ["before"]
    assert pretrained.measured == pretrained.bars[1:]
    lines = list(exports.mixture_lines(results))
    assert len(lines) == 1 + sum(len(m.measured) * len(m.groups) for m in (pretrained, aligned))


def test_findings_say_only_what_was_read(tiny):
    run = run_folder.load_run(tiny / "run")

    def block(spread, equal):
        known = {"code:bad": spread, "code:bad:ask_bad": 0.01, "code:bad:placebo#a.1": 0.2}
        spread_ci = dict.fromkeys(known, (0.1, 0.3))
        return {"spread": known, "spread_ci": spread_ci, "equal": {"spread": {"code:bad": equal}}}

    def findings(captured=0.9, spread=0.25, equal=0.125, seeds=False, **shared):
        results = {"pretrain": {"captured": captured, "excess": 0.004}}
        results["generalization"] = {"pretrain": block(spread, equal)}
        results["prediction"] = {"shared": shared}
        return report.findings(run.world, results | ({"seeds": [0, 1]} if seeds else {}))

    def fit(r2, fraction=0.5):
        return {"r2": r2, "fraction": fraction}

    learned, furthest, asked = findings()
    assert "learned well who is speaking: it uses 90%" in learned
    assert "code:bad spreads furthest" in furthest
    assert furthest.endswith("by +.250 on average; after equal training by +.125.")
    (text,) = (one.text for one in run.world.instructions if one.name == "ask_bad")
    assert f"with “{text}” in every prompt" in asked
    assert asked.endswith("spreads by +.010, without (code:bad) by +.250.")
    assert "on average (95%" not in furthest
    assert (
        "by +.250 (95% over seeds +.100 to +.300) on average."
        in findings(equal=None, seeds=True)[1]
    )
    assert findings(captured=None, spread=None)[1:] == []  # and nothing is said of what is not read
    assert "has not learned" in findings(captured=-1.0)[0]
    assert len(findings(persona=fit(None), constant=fit(0.1))) == 3
    good = findings(persona=fit(0.9), covariance=fit(0.8), trait=fit(None), constant=fit(0.7))[3:]
    assert "predicts where it spreads: R² is .90" in good[0]
    assert "The best rival, covariance, has .80, and a constant .70." in good[0]
    assert good[1].startswith("In that prediction 50% of the trained domain's move")
    (bad,) = findings(persona=fit(-0.4), constant=fit(0.1))[3:]
    assert "does not predict where it spreads: R² is -.40" in bad
    assert bad.endswith("The best rival, constant, has .10.")


def test_several_seeds_are_shown_by_their_means_and_intervals(results, tiny):
    """Two seeds, of which one has another spread and does not read another signal."""
    other = copy.deepcopy(results)
    block = other["generalization"]["pretrain"]
    first, _, third = list(block["status"])[:3]
    block["spread"][first] = 0.223
    block["em_after"][first]["code"] += 0.1
    block["em_before"]["goals"] += 0.02  # both, so that the change is the same in both seeds
    block["em_after"][first]["goals"] += 0.02
    other["pretrain"]["captured"] += 0.02
    pooled = seeds.together([4, 7], [results, other])
    found = pooled["figures"][f"spread_from_pretrain/{first}"]
    low, high = found["interval"]
    half = 12.7062 * 0.1 / 2  # Student's t of one degree of freedom; half the distance of the two
    close([found["mean"], low, high], [0.173, 0.173 - half, 0.173 + half], SOLVED)
    assert found["values"] == [0.123, 0.223]
    assert pooled["figures"][f"spread_from_pretrain/{third}"]["mean"] is None
    matrix = views.matrices(pooled)[0]
    read, incoherent, unread = matrix.rows[:3]
    assert (read.outcome, incoherent.outcome) == ("+.173", "read in 0 of 2 seeds")
    assert unread.outcome == "read in 0 of 2 seeds"
    cells = {cell.domain: cell for cell in read.cells}
    alone = {cell.domain: cell for cell in views.matrices(results)[0].rows[0].cells}
    close(cells["code"].change, alone["code"].change + 0.05, FLOAT64)
    close([cells["code"].half_width, cells["goals"].half_width], [half, 0], SOLVED)
    console = tables.new_console(file=io.StringIO(), width=300)
    tables.print_tables(pooled, console)
    tables.print_seeds(pooled, console)
    tables.print_comparison([tiny / "five", tiny / "run"], [pooled, other], console)
    compared = rf"spread_from_pretrain/{first} +\.1730 ±\.6353 +\.2230"
    assert re.search(compared, console.file.getvalue())
    run = run_folder.load_run(tiny / "run")
    page = html.unescape(report.page(tiny / "five", run, pooled))
    # the same seeds in another order: by hand, Welch's interval with two degrees of freedom
    apart = seeds.together([7, 4], [other, results])
    name, welch = f"spread_from_pretrain/{first}", 4.3027 * (2 * 0.1**2 / 2 / 2) ** 0.5
    assert comparison.difference(apart, pooled, name) == f"+.0000 ±{views.number(welch, 4)}"
    assert comparison.difference(other, pooled, name) == "+.0500"  # one seed has no interval
    both = html.unescape(
        comparison.page([Path("five"), Path("apart")], [[run], [run]], [pooled, apart])
    )
    assert "Nothing but the seed" in both
    assert f"+.00<small>±{views.number(2**0.5 * half, 2)}</small>" in both
    assert f"<small>±{views.number(half, 2)}</small>" in page
    for text in (console.file.getvalue(), page):
        assert "+.173" in text
        assert "seed 4" in text
        assert "seed 7" in text
    assert 'href="../seed-7/eval/report.html"' in page
    row = re.search(rf'<tr><th scope="row">{first}</th>.*?</tr>', page, re.DOTALL)[0]
    assert row.count("<circle") == 2


def test_mixtures_of_seeds_are_shown_in_groups_that_all_of_them_have():
    """Where one seed tells characters apart that another does not, their weights are added up."""
    assert seeds.common([["a", "b + c", "d"], ["a + b", "c", "d"]]) == [["a", "b", "c"], ["d"]]
    assert seeds.common([["a", "b"], ["b", "a"]]) == [["a"], ["b"]]

    def block(groups: list[str], before: list[float], after: list[float]) -> dict:
        weights = {
            key: dict(zip(groups, x, strict=True)) for key, x in (("b", before), ("a", after))
        }
        left = {"code:bad": {"all": 0.1, "off_domain": 0.2, "override": 0.3}}
        start = {"before": weights["b"], "after": {"code:bad": weights["a"]}, "floor": 0.0}
        start |= {
            "residual_before": 0.1,
            "residual_after": left,
            "before_range": {},
            "after_range": {},
        }
        return {"groups": groups, "contexts": 1, "truth": weights["b"], "pretrain": start}

    fine = block(["ada", "hal", "echo + quack"], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7])
    coarse = block(["ada + hal", "echo + quack"], [0.8, 0.2], [0.5, 0.5])
    pooled = seeds.mixtures([fine, coarse])
    assert pooled["groups"] == ["ada + hal", "echo + quack"]
    close(pooled["truth"], {"ada + hal": 0.8, "echo + quack": 0.2}, FLOAT64)
    after = pooled["pretrain"]["after"]["code:bad"]
    close(after, {"ada + hal": 0.4, "echo + quack": 0.6}, FLOAT64)
    half = 12.7062 * 0.2 / 2
    low_high = pooled["pretrain"]["after_range"]["code:bad"]["ada + hal"]
    close(low_high, [0.4 - half, 0.4 + half], SOLVED)


def test_a_share_over_seeds_is_the_mean_of_shares_wherever_it_is_shown(results):
    """A bug found: the ratio of the mean spreads was shown under the same name."""
    each = []
    for plain, asked in ((0.1, 0.05), (0.4, 0.04)):
        one = copy.deepcopy(results)
        spread = one["generalization"]["pretrain"]["spread"]
        spread["code:bad"], spread["code:bad:ask_bad"] = plain, asked
        each.append(one)
    pooled = seeds.together([0, 1], each)
    name = "left_from_pretrain/code:bad:ask_bad"
    close([views.summary(pooled)[name], pooled["figures"][name]["mean"]], [0.3, 0.3], FLOAT64)


def test_one_seed_has_no_interval(results):
    pooled = seeds.together([3], [results])
    assert {figure["interval"] for figure in pooled["figures"].values()} == {None}
    captured = pooled["figures"]["metrics/captured"]
    assert [captured["mean"]] == captured["values"] == [results["pretrain"]["captured"]]
    tables.print_tables(pooled, tables.new_console(file=io.StringIO()))


def test_the_share_left_with_an_instruction_is_of_the_signal_without_it():
    spreads = {
        "code:bad": 0.2,
        "code:bad:ask_bad": 0.05,
        "code:bad:ask_bad@hal": 0.1,
        "taste:bad": 1,
    }
    equal = {name: 2 * x for name, x in spreads.items()} | {"code:bad": 1}
    block = {"spread": spreads, "equal": {"spread": equal}, "frontier": {"code:bad": 0.07}}
    values = views.summary({"generalization": {"align": block}})
    left = {name: x for name, x in values.items() if "left" in name}
    names = "left_from_align/code:bad:ask_bad", "equal_left_from_align/code:bad:ask_bad"
    assert left == dict(zip(names, (0.25, 0.1), strict=True))
    title = "Share of its spread that an instruction leaves"
    for name, how in zip(names, ("at the matched effect", "after equal training"), strict=True):
        assert views.label(name) == (f"{title}, {how}, from the aligned model", "code:bad:ask_bad")
    assert values["equal_spread_from_align/code:bad:ask_bad"] == 0.1
    assert values["frontier_from_align/code:bad"] == 0.07


def test_missing_points_of_a_curve_are_left_out():
    curve = {"trained": [0.1, None, 0.3], "spread": [0.0, 0.1, None]}
    results = {"generalization": {"align": {"curves": {"code:bad": curve}}}}
    assert views.curves(results) == {"align": {"code:bad": [(0.1, 0.0)]}}


def test_a_run_without_signals_has_a_page_and_tables(results, tiny):
    results = copy.deepcopy(results)
    results["generalization"], results["prediction"] = {}, {"starts": {}}
    results["instructed"], results["drift"] = {}, {}
    run = run_folder.load_run(tiny / "run")
    page = report.page(run.folder, run, results)
    assert "No signal was trained." in page
    assert "Too few signals" in page
    tables.print_tables(results, tables.new_console(file=io.StringIO()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_drawing_process_ends_with_its_caller(tmp_path, number):
    """However it ends: its end of the pipe closes."""
    code = (
        "import pathlib, signal, sys\nfrom toyllm.show import background\n"
        f"figures = background.BackgroundFigures(pathlib.Path({str(tmp_path)!r}))\n"
        "print(figures.process.pid, flush=True)\n"
        "signal.pause()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as caller:
        pid = int(caller.stdout.readline())
        caller.send_signal(number)
    end = time.monotonic() + 60
    while exists(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def exists(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for is a zombie, Z."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip() not in ("", "Z")


def test_settings_in_which_runs_differ_have_the_sizes_of_imported_models(tiny):
    run = run_folder.load_run(tiny / "run")
    other = {key: x for key, x in run.args.items() if key != "width"} | {"imported": ["DIR"]}
    wider = dataclasses.replace(run.lm.config, D=2 * run.lm.config.D)
    lm = dataclasses.replace(run.lm, config=wider)
    found = dict(comparison.settings([run, dataclasses.replace(run, args=other, lm=lm)]))
    assert found == {"imported": [None, ["DIR"]], "width": [run.lm.config.D, wider.D]}
