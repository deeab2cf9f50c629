"""Figures of what is inside the model: beliefs, persona vectors, elicitation."""

import numpy as np

from toyllm.figures import new

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])  # of a triangle


def beliefs(results: dict, c: dict):
    """R² of beliefs by layer, with its controls, and the geometry: belief beside readout."""
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
    axes[0].set_xticks(x, [str(k) for k in x])
    axes[0].set_xlabel("layer (0: embeddings)")
    axes[0].set_ylabel("R² of the exact belief, held-out documents")
    axes[0].set_title("Who speaks, read by a linear probe")
    axes[0].set_ylim(min(0, *shuffled) - 0.03, 1)
    axes[0].legend(fontsize=8)
    axes[0].grid(alpha=0.5)
    if not block["simplex"]:
        return figure
    belief = np.array(block["simplex"]["belief"])
    colours = np.array([[0.17, 0.63, 0.17], [0.98, 0.5, 0.05], [0.77, 0.27, 0.17]])
    for axis, key, title in (
        (axes[1], "belief", "What the ideal observer believes"),
        (axes[2], "readout", "What the last layer says"),
    ):
        corners = np.vstack([CORNERS, CORNERS[:1]])
        axis.plot(*corners.T, color=c["soft"], lw=1)
        points = np.array(block["simplex"][key]) @ CORNERS
        axis.scatter(*points.T, s=9, color=np.clip(belief @ colours, 0, 1), alpha=0.75, lw=0)
        for corner, name in zip(CORNERS, block["simplex"]["groups"], strict=True):
            top = corner[1] > 0
            name = name.replace(" + ", "\n+ ")
            place = {"ha": "center", "va": "bottom" if top else "top"}
            axis.text(corner[0], corner[1] + (0.12 if top else -0.1), name, fontsize=7, **place)
        axis.set_title(title)
        axis.set_aspect("equal")
        axis.set_xlim(-0.25, 1.25)
        axis.set_ylim(-0.4, 1.25)
        axis.axis("off")
    return figure
