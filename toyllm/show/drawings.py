"""Figures of a run's results, with matplotlib; each takes plain numbers and returns a Figure."""

import collections
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from toyllm.base.errors import tell
from toyllm.base.scripts import OWN_MATPLOTLIB
from toyllm.show import inside
from toyllm.show.figures import STARTS, THEMES, diverging, file_of, new

DRAWING_S = 120  # how long `eval.py` waits for figures once all else is done


class Artists:
    """Draws a figure as soon as its results are there: one process for each theme.

    They draw while the caller measures: half of what `eval.py` took on two cores was the work of a
    single one. Whatever they do, the caller goes on: threads write to them and read what they say.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.artists = {}
        for theme in THEMES:
            try:
                self.artists[theme] = Artist(folder, theme)
            except OSError as error:  # the system starts no more processes
                tell(f"no {theme} figures will be drawn in {folder}: {error}")

    def give(self, results: dict) -> None:
        """All results so far, as JSON has them."""
        for artist in self.artists.values():
            artist.lines.put(json.dumps(results) + "\n")

    def finish(self) -> dict[str, Path]:
        """Wait for the last figure, at most `DRAWING_S`. Returns {name: light file}.

        Warns of what could not be drawn.
        """
        end = time.monotonic() + DRAWING_S
        for artist in self.artists.values():
            artist.lines.put(None)
        for theme, artist in self.artists.items():
            if reason := artist.finish(end - time.monotonic()):
                tell(f"not all {theme} figures could be drawn in {self.folder}: {reason}")
        files = {name: file_of(self.folder, name, "light") for name in FIGURES}
        return {name: file for name, file in files.items() if file.exists()}


class Artist:
    """The process that draws one theme."""

    def __init__(self, folder: Path, theme: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toyllm.tools.draw", folder.absolute(), theme],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            cwd=Path(__file__).parents[2],
            env=os.environ | OWN_MATPLOTLIB,
        )
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # to write; None: no more
        self.last: collections.deque[str] = collections.deque(maxlen=20)  # that it wrote
        threading.Thread(target=self._write, daemon=True).start()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def finish(self, seconds: float) -> str:
        """Wait so long, then end the process. Returns why it failed; "": it did not."""
        try:
            status = self.process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return f"still drawing after {DRAWING_S} s"
        self.reader.join(1)
        return "".join([f"exit status {status}", *self.last][-1:]).strip() if status else ""

    def _write(self) -> None:
        with contextlib.suppress(OSError), self.process.stdin as stdin:  # `finish` says why
            for line in iter(self.lines.get, None):
                stdin.write(line)
                stdin.flush()

    def _read(self) -> None:
        with self.process.stderr as stderr:
            self.last.extend(iter(lambda: stderr.readline(1000), ""))


def matrix(results: dict, c: dict):
    """The generalization matrix: change of EM in each domain at the matched effect."""
    blocks = results["generalization"]
    domains = results["domains"]
    rows = [(start, name) for start in blocks for name in blocks[start]["status"]]
    if not rows:  # a model that was only pretrained
        return None
    table = np.full((len(rows), len(domains)), np.nan)
    for k, (start, name) in enumerate(rows):
        after = blocks[start]["em_after"][name]
        if after is not None:
            table[k] = [after[d] - blocks[start]["em_before"][d] for d in domains]
    figure, (axes,) = new(1.6 + 0.78 * len(domains), 1.6 + 0.36 * len(rows))
    image = axes.imshow(table, cmap=diverging(c), vmin=-0.9, vmax=0.9, aspect="auto")
    trained = [name.partition("@")[0].split(":")[0].split("+") for _, name in rows]
    for k, (start, name) in enumerate(rows):
        coherent = blocks[start]["status"][name] == "read"
        for d, domain in enumerate(domains):
            if np.isnan(table[k, d]):
                continue
            colour = "#ffffff" if abs(table[k, d]) > 0.5 else c["ink"]
            text = f"{table[k, d]:+.2f}".replace("0.", ".") + ("" if coherent else "*")
            weight = "bold" if domain in trained[k] else "normal"
            axes.text(
                d, k, text, ha="center", va="center", color=colour, fontsize=8, fontweight=weight
            )
            if domain in trained[k]:
                from matplotlib.patches import Rectangle

                axes.add_patch(Rectangle((d - 0.5, k - 0.5), 1, 1, fill=False, ec=c["ink"], lw=1.4))
        if blocks[start]["em_after"][name] is None:
            axes.text(
                len(domains) / 2 - 0.5,
                k,
                blocks[start]["status"][name],
                ha="center",
                va="center",
                color=c["soft"],
                fontsize=8,
            )
    moral = set(results["moral"])
    labels = [d if d in moral else f"({d})" for d in domains]
    axes.set_xticks(range(len(domains)), labels)
    axes.set_yticks(range(len(rows)), [name for _, name in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    edge = sum(start == "pretrain" for start, _ in rows)
    if 0 < edge < len(rows):
        axes.axhline(edge - 0.5, color=c["ink"], lw=2)
    for start, middle in (("pretrain", (edge - 1) / 2), ("align", (edge + len(rows) - 1) / 2)):
        if any(s == start for s, _ in rows):
            axes.text(
                len(domains) - 0.35,
                middle,
                STARTS[start],
                rotation=270,
                va="center",
                color=c["soft"],
                fontsize=9,
            )
    axes.set_title(
        "How far a narrow signal spreads: change of p(bad)/(p(good)+p(bad))\n"
        "rows: what was trained · boxes: the trained domain, at EM = .9 · "
        "(brackets): not moral · *: incoherent",
        pad=28,
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.06)
    bar.outline.set_visible(False)
    bar.set_label("change of EM")
    return figure


def predicted(results: dict, c: dict):
    """Measured ΔEM of untrained moral cells against each prediction, with R²."""
    block = results["prediction"]
    if "shared" not in block:
        return None
    names = list(block["shared"])
    figure, axes = new(3.0 * len(names), 3.5, len(names), sharey=True)
    measured = block["measured"]
    signals = list(measured)
    palette = [f"C{k % 10}" for k in range(len(signals))]
    for axis, name in zip(axes, names, strict=True):
        top = 0.0
        for k, signal in enumerate(signals):
            x = [block["predicted"][name][signal][d] for d in measured[signal]]
            y = list(measured[signal].values())
            top = max(top, *x, *y)
            axis.scatter(x, y, s=22, color=palette[k], label=signal if axis is axes[0] else None)
        axis.plot(
            [min(0, *axis.get_xlim()), top],
            [min(0, *axis.get_xlim()), top],
            color=c["soft"],
            lw=1,
            ls="--",
        )
        axis.set_title(f"{name}: R² = {block['shared'][name]['r2']:.2f}")
        axis.set_xlabel("predicted change of EM")
        axis.grid(alpha=0.5)
    axes[0].set_ylabel("measured change of EM")
    figure.legend(loc="outside right center", title="signal")
    figure.suptitle(
        "Measured against predicted, untrained moral domains, from the pretrained model",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def mixture(results: dict, c: dict):
    """Who the Assistant is: group weights with their ranges, before and after each signal."""
    block = results["mixture"]
    starts = [start for start in ("pretrain", "align") if start in block]
    groups = block["groups"]
    rows = max(1 + len(block[s]["after"]) for s in starts)
    figure, axes = new(5.2 * len(starts) + 2.5, 1.5 + 0.36 * rows, len(starts))
    for axis, start in zip(axes, starts, strict=True):
        part = block[start]
        bars = [("before", part["before"]), *part["after"].items()]
        if start == "pretrain":
            bars = [("true prior", block["truth"]), *bars]
        for k, (_, weights) in enumerate(bars):
            left = 0.0
            for g, group in enumerate(groups):
                axis.barh(
                    k,
                    weights[group],
                    left=left,
                    color=f"C{g % 10}",
                    label=group if k == 0 and axis is axes[0] else None,
                    edgecolor=c["paper"],
                    height=0.8,
                )
                if weights[group] > 0.09:
                    axis.text(
                        left + weights[group] / 2,
                        k,
                        f"{weights[group]:.2f}".lstrip("0"),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="#ffffff",
                    )
                left += weights[group]
        axis.set_yticks(range(len(bars)), [name for name, _ in bars])
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_xlabel("weight in the mixture")
        axis.set_title(STARTS[start])
        axis.tick_params(length=0)
    legend = figure.legend(
        loc="outside lower center", ncols=3, title="groups of characters", fontsize=8
    )
    legend.set_in_layout(True)
    figure.suptitle(
        "Who the Assistant is: nearest mixture of the world's characters",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def spread(results: dict, c: dict):
    """Along training: mean EM of the untrained moral domains against the trained domain's EM."""
    blocks = results["generalization"]
    if not (starts := list(blocks)):
        return None
    figure, axes = new(5.0 * len(starts) + 1.5, 3.8, len(starts), sharey=True)
    for axis, start in zip(axes, starts, strict=True):
        for k, (name, curve) in enumerate(blocks[start]["curves"].items()):
            axis.plot(
                np.array(curve["own"], float),
                np.array(curve["spread"], float),
                marker=".",
                lw=1.4,
                label=name,
                color=f"C{k % 10}",
                ls="-" if k < 10 else "--",
            )
        axis.axvline(0.9, color=c["soft"], lw=1, ls=":")
        axis.set_xlabel("EM of the trained domain, under the signal's own prompt")
        axis.set_title(STARTS[start])
        axis.grid(alpha=0.5)
        axis.legend(fontsize=7, ncols=2)
    axes[0].set_ylabel("spread: mean change of EM,\nuntrained moral domains")
    figure.suptitle(
        "Spread along training; the dotted line is the matched effect",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def calibration(results: dict, c: dict):
    """In context: the model's p(bad) against the exact predictive, and KL by turn."""
    block = results["calibration"]
    figure, (left, right) = new(9.0, 3.8, 2)
    left.plot([0, 1], [0, 1], color=c["soft"], lw=1, ls="--")
    left.scatter(block["points"]["ideal"], block["points"]["model"], s=7, alpha=0.35, color="C0")
    left.errorbar(
        [b["ideal"] for b in block["bins"]],
        [b["model"] for b in block["bins"]],
        [b["spread"] for b in block["bins"]],
        fmt="o",
        color="C3",
        capsize=2,
        ms=5,
    )
    left.set_xlabel("exact p(bad | question, header, history)")
    left.set_ylabel("model's p(bad)")
    left.set_title("Reading the speaker (bars: ±1 SD in a bin)")
    left.grid(alpha=0.5)
    turns = list(block["by_turn"])
    x = np.arange(len(turns))
    for k, (key, label) in enumerate(
        (("model", "model"), ("history_blind", "history-blind observer"))
    ):
        right.bar(
            x + 0.38 * (k - 0.5),
            [block["by_turn"][t][key] for t in turns],
            0.36,
            label=label,
            color=f"C{k}",
        )
    right.set_xticks(x, [f"turn {t}" for t in turns])
    right.set_ylabel("KL from the exact predictive (nats)", labelpad=8)
    right.set_title("What is not captured")
    right.legend()
    right.grid(axis="y", alpha=0.5)
    right.set_axisbelow(True)
    return figure


FIGURES = {  # name: how it is drawn, and the key of the results it needs
    "matrix": (matrix, "generalization"),
    "spread": (spread, "generalization"),
    "predicted": (predicted, "prediction"),
    "mixture": (mixture, "mixture"),
    "calibration": (calibration, "calibration"),
    "beliefs": (inside.beliefs, "beliefs"),
    "vectors": (inside.vectors, "vectors"),
    "elicitation": (inside.elicitation, "elicitation"),
}
