"""Figures of the inside of a model: beliefs, persona vectors, forecasts; and of elicitation."""

import numpy as np

from toyllm.show import views
from toyllm.show.figures import new
from toyllm.show.views import STARTS

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])  # of a triangle


def beliefs(results: dict, c: dict):
    """R² of a probe for beliefs by layer, with controls; exact beliefs and readout on a simplex."""
    block = results["beliefs"]
    columns = 3 if block["simplex"] else 1
    figure, axes = new(3.9 * columns + 0.6, 3.9, columns, width_ratios=[1.25, 1, 1][:columns])
    layers = block["layers"]
    x, r2 = np.arange(len(layers)), np.array([layer["r2"] for layer in layers])
    low, high = np.array([layer["ci"] for layer in layers]).T
    bars = [r2 - low, high - r2]
    axes[0].errorbar(x, r2, bars, marker="o", color="C0", capsize=3, label="residual stream")
    shuffled = [layer["shuffled"] for layer in layers]
    axes[0].plot(x, shuffled, marker=".", ls=":", color=c["soft"], label="shuffled beliefs")
    axes[0].axhline(block["next_token"]["r2"], color="C1", ls="--", label="next-token p alone")
    axes[0].set(title="Who is speaking, read by a linear probe", xlabel="layer (0: embeddings)")
    axes[0].set(ylabel="R² of the exact belief, held-out documents", xticks=x)
    axes[0].set_ylim(min(0, *shuffled) - 0.03, 1)
    axes[0].legend(fontsize=8)
    axes[0].grid(alpha=0.5)
    if not block["simplex"]:
        return figure
    belief = np.array(block["simplex"]["belief"])
    colours = np.array([[0.17, 0.63, 0.17], [0.98, 0.5, 0.05], [0.77, 0.27, 0.17]])
    titles = {
        "belief": "Beliefs of the ideal observer",
        "readout": "Beliefs read from the last layer",
    }
    for axis, (key, title) in zip(axes[1:], titles.items(), strict=True):
        axis.fill(*CORNERS.T, fill=False, ec=c["soft"], lw=1)
        points = np.array(block["simplex"][key]) @ CORNERS
        axis.scatter(*points.T, s=9, color=np.clip(belief @ colours, 0, 1), alpha=0.75, lw=0)
        for corner, name in zip(CORNERS, block["simplex"]["groups"], strict=True):
            top = corner[1] > 0
            name = name.replace(" + ", "\n+ ")
            place = {"ha": "center", "va": "bottom" if top else "top"}
            axis.text(corner[0], corner[1] + (0.12 if top else -0.1), name, fontsize=7, **place)
        axis.set(title=title, aspect="equal", xlim=(-0.25, 1.25), ylim=(-0.4, 1.25))
        axis.axis("off")
    return figure


def vectors(results: dict, c: dict):
    """EM against the strength of steering, by layer; and spread against the shift along malice."""
    block = results["vectors"]
    layers = block["steering"]
    figure, axes = new(4.3 * (len(layers) + 1), 3.9, len(layers) + 1)
    for axis, (layer, part) in zip(axes, layers.items(), strict=False):
        x, random = np.array(part["strengths"]), np.array(part["random_em"])
        able = np.array(part["coherence"]) >= 0.9
        axis.plot(x[able], random.T[able], color=c["soft"], lw=0.8, alpha=0.6)
        axis.plot([], [], color=c["soft"], lw=0.8, label="random, same norm")
        axis.plot(x[able], np.array(part["em"])[able], "o-", color="C3", label="malice")
        axis.plot(x[able], np.array(part["coherence"])[able], ":", color="C0", label="coherence")
        ratio = part["ratio"]
        effect = f": {ratio['ratio']:.1f} times as far as chance" if ratio else ""
        axis.set(title=f"Steering{effect}", xlabel=f"times v, added to layer {layer}")
        axis.set(ylabel="mean moral EM", ylim=(0, 1.03))
        axis.grid(alpha=0.5)
        axis.legend(fontsize=8)
    axis = axes[-1]
    layer = str(block["layer"])
    for k, (start, part) in enumerate(block["projection"].items()):
        correlation = part["layers"][layer]
        x = [np.mean(point["moved"][layer]) for point in part["signals"].values()]
        y = [np.mean(point["spread"]) for point in part["signals"].values()]
        label = STARTS[start]
        if correlation["r"] is not None:
            label += f", r = {correlation['r']:.2f}"
        if correlation["random95"]:
            label += f" (chance {correlation['random95']:.2f})"
        axis.scatter(x, y, s=22, color=f"C{k}", label=label)
        for name, a, b in zip(part["signals"], x, y, strict=True):
            axis.annotate(
                name, (a, b), fontsize=6, color=c["soft"], xytext=(3, 2), textcoords="offset points"
            )
    axis.set(title="Shift along malice and spread", ylabel="spread at the kept checkpoint")
    axis.set_xlabel(f"shift along malice in layer {layer}")
    axis.grid(alpha=0.5)
    axis.margins(x=0.12)
    axis.set_ylim(top=axis.get_ylim()[1] * 1.25)  # room for the legend
    axis.legend(fontsize=8, loc="upper left")
    return figure


def elicitation(results: dict, c: dict):
    """What each prompt elicits from both models, and the exact answer of both observers."""
    prompts, named = views.elicitation(results)
    rows = prompts | named
    names, y = list(rows), np.arange(len(rows))
    figure, (axis,) = new(7.6, 1.3 + 0.24 * len(rows))
    for k, (start, label) in enumerate((("pretrain", "pretrained"), ("align", "aligned"))):
        model = [rows[name][start] for name in names]
        exact = [rows[name][f"{start}_exact"] for name in names]
        axis.plot(model, y, "o", color=f"C{k}", ms=6, label=f"{label} model")
        axis.plot(exact, y, "D", color=f"C{k}", ms=7, mfc="none", label=f"{label}, exact")
    axis.set_yticks(y, names, fontsize=8)
    axis.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.6), xlabel="mean moral EM")
    axis.set_title("Elicitation: the Assistant under each prompt")
    axis.grid(alpha=0.5)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def forecast(results: dict, c: dict):
    """Forecast and measured spread of each signal; through what the pretrained model spreads."""
    rows = views.forecasts(results)
    figure, axes = new(13.5, 4.6, 3, width_ratios=[1, 1.1, 0.8])
    for k, (start, label) in enumerate(STARTS.items()):
        pairs = [(r.record["spread"]["change"], r.measured) for r in rows if r.start == start]
        known = np.array([pair for pair in pairs if None not in pair]).reshape(-1, 2)
        axes[0].scatter(*known.T, s=26, color=f"C{k}", label=label)
        if len(known):
            ends = [known.min(), known.max()]
            axes[0].plot(ends, ends, "--", color=c["soft"], lw=1, zorder=0)
    axes[0].legend(fontsize=8)
    axes[0].set(title="Spread of each signal", xlabel="forecast", ylabel="measured")
    axes[0].grid(alpha=0.5)
    titles = {"shares": "By part of the model", "stretches": "By what the answer reads"}
    bars = (-0.2, 0, "of the trained domain's move"), (0.2, 1, "of the spread")
    for axis, (key, title) in zip(axes[1:], titles.items(), strict=True):
        plain = [
            r.record["through"][key]
            for r in rows
            if r.start == "pretrain" and r.signal.count(":") == 1
        ]
        known = [split for split in plain if split and not any(None in x for x in split.values())]
        names = list(known[0]) if known else []
        y = np.arange(len(names))
        for shift, which, label in bars:
            means = [np.mean([split[name][which] for split in known]) for name in names]
            axis.barh(y + shift, means, 0.38, color=f"C{3 * which}", label=label)
        axis.set_yticks(y, names, fontsize=8)
        axis.invert_yaxis()
        axis.axvline(0, color=c["soft"], lw=0.8)
        axis.set(title=title, xlabel="share (trained domain = 1)")
        axis.grid(axis="x", alpha=0.5)
    axes[1].legend(fontsize=8)
    return figure
