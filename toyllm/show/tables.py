"""The tables that `eval.py` prints."""

import re
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from toyllm.base.errors import clean
from toyllm.posttrain import signals
from toyllm.runs import run_folder
from toyllm.show.figures import STARTS


def new_console(**kwargs) -> Console:
    """A console that shows texts as they are: strangers' names may hold what rich takes for markup.

    A styled part is a `rich.text.Text`. kwargs: of `rich.console.Console`.
    """
    return Console(markup=False, emoji=False, highlight=False, **kwargs)


def print_tables(run: run_folder.Run, results: dict, console: Console) -> None:
    """The tables that a person reads."""
    if "pretrain" in results:
        print_learned(results["pretrain"], console)
    for start, block in results.get("generalization", {}).items():
        print_matrix(run, results, start, block, console)
    if results.get("prediction", {}).get("shared"):
        print_prediction(results["prediction"], console)
    if "mixture" in results:
        print_mixture(results["mixture"], console)
    if "instructed" in results:
        print_instructed(results, console)
    for start, block in results.get("drift", {}).items():
        print_drift(start, block, console)
    if "elicitation" in results:
        print_elicitation(results["elicitation"], console)
    if "truth" in results:
        print_truth(results["truth"], console)


def print_learned(p: dict, console: Console) -> None:
    """What pretraining learned."""
    table = blank_table("figure", "value", "beside it")
    table.columns[2].justify = "left"
    table.add_row(
        "excess over the floor (nats/token)",
        number(p["excess"], 4),
        f"history-blind observer {number(p['excess_history_blind'], 4)}, "
        f"name-blind {number(p['excess_name_blind'], 4)}",
    )
    low, high = p["captured_interval"]
    table.add_row(
        "captured (who is speaking)",
        number(p["captured"]),
        f"1 ideal, 0 history-blind; 95% over questions {number(low)} to {number(high)}",
    )
    table.add_row(
        "error of the Assistant's p(bad)",
        number(p["assistant_error"]),
        "mean over domains, against π·θ",
    )
    table.add_row(
        "error of named characters' p(bad)",
        number(p["named_error"]),
        f"worst: {p['named_worst']} {number(p['named_error_worst'])}",
    )
    table.add_row("coherence of the Assistant", number(p["coherence"]), "worst domain")
    show(console, "What was learned in pretraining", table)


def print_matrix(
    run: run_folder.Run, results: dict, start: str, block: dict, console: Console
) -> None:
    """The generalization matrix of one start."""
    table = blank_table("signal", *results["domains"], "spread", "end", "coh.", "step")
    before = block["em_before"]
    table.add_row(
        "EM before",
        *(number(before[d], 2) for d in results["domains"]),
        "",
        "",
        number(min(block["coherence_before"].values()), 2),
        "",
        style="dim",
    )
    for name, status in block["status"].items():
        after, end = block["em_after"][name], block["final"]["spread"][name]
        trained = [results["domains"][d] for d in signals.parse(run.world, name).domains]
        cells = [
            "–" if after is None else "*" if d in trained else colour(after[d] - before[d])
            for d in results["domains"]
        ]
        spread = block["spread"][name]
        shown = Text(number(spread), "bold") if status == "read" else status
        coherence = block["coherence_after"][name]
        worst = number(min(coherence.values()), 2) if coherence else "–"
        table.add_row(
            name, *cells, shown, number(end), worst, number(block["matched_step"][name], 0)
        )
    show(
        console,
        f"Change of EM by domain, {STARTS[start]}, where the trained domain (*) has EM .9",
        table,
        f"spread: mean change over untrained moral domains ({', '.join(results['moral'])}), there "
        "and at the end of training (– if incoherent there: a coherence below .95, so no number). "
        "coh.: the worst domain's coherence. step: when it was read; a signal above .9 under its "
        "own prompt before training (one that asks openly) is read at its plain twin's",
    )


def colour(change: float) -> Text:
    """A change of EM, red where it is more bad, green where less."""
    tint = "red" if change > 0.1 else "green" if change < -0.1 else "default"
    return Text(number(change, 2), tint)


def print_prediction(p: dict, console: Console) -> None:
    """Predictions of the matrix and their rivals."""
    table = blank_table("prediction", "shared R²", "fraction", "strict R²")
    for name, fitted in p["shared"].items():
        table.add_row(
            name,
            number(fitted["r2"], 2),
            number(fitted["fraction"], 2),
            number(p["strict"][name]["r2"], 2),
        )
    show(
        console,
        "The matrix predicted from the world alone (R² over untrained moral cells, from the "
        "pretrained model)",
        table,
        f"persona's within-signal correlation {number(p['within_r'], 2)}, 95% of its null "
        f"{number(p['within_r_null95'], 2)}; mean spread minus the ideal observer's own "
        f"{number(p['measured_minus_ideal'], 3, True)}",
    )


def print_mixture(m: dict, console: Console) -> None:
    """Who the Assistant is, before and after."""
    for start in ("pretrain", "align"):
        if start not in m:
            continue
        part = m[start]
        table = blank_table(
            "signal",
            *(group.replace(" + ", "\n") for group in m["groups"]),
            *("residual", "off-domain", "override"),
        )
        if start == "pretrain":
            table.add_row(
                "true prior",
                *(number(m["truth"][g], 2) for g in m["groups"]),
                "",
                "",
                "",
                style="dim",
            )
        table.add_row(
            "before",
            *(number(part["before"][g], 2) for g in m["groups"]),
            number(1000 * part["residual_before"], 1),
            "",
            "",
        )
        for name, weights in part["after"].items():
            left = part["residual_after"][name]
            thousandths = [
                None if left[k] is None else 1000 * left[k]
                for k in ("all", "off_domain", "override")
            ]
            table.add_row(
                name,
                *(number(weights[g], 2) for g in m["groups"]),
                *(number(x, 1) for x in thousandths),
            )
        show(
            console,
            f"Who the Assistant is, {STARTS[start]} (weights of groups of characters; "
            "residual in thousandths of a nat)",
            table,
        )


def print_instructed(results: dict, console: Console) -> None:
    """With the cue present: what the instruction still elicits."""
    for start, block in results["instructed"].items():
        if not block:
            continue
        table = blank_table("signal", *results["domains"])
        for name, part in block.items():
            for when in ("before", "after"):
                values = (number(part[when][d], 2) for d in results["domains"])
                table.add_row(f"{name}, {when}", *values)
        title = f"p(bad) with the signal's instruction present, {STARTS[start]}"
        show(console, title, table)


def print_drift(start: str, block: dict, console: Console) -> None:
    """What the drift monitor says of each signal."""
    table = blank_table("signal", "alarms", "step", "trained", "domain", "toward", "end", "apart")
    table.columns[4].justify = table.columns[5].justify = "left"
    for name, seeds in block.items():
        rung = [found for found in seeds if found["step"] is not None]
        worst = max(found["worst"] for found in seeds)
        apart = str(max(len(found["incoherent"]) for found in seeds) or "")
        cells = ("–", "–", "", "")
        if rung:
            first = min(rung, key=lambda found: found["step"])
            cells = (
                str(first["step"]),
                number(first["trained"], 2),
                f"{first['domain']} {number(first['change'], 2, True)}",
                f"{first['toward']} {number(first['growth'], 2, True)}",
            )
        table.add_row(name, f"{len(rung)} of {len(seeds)}", *cells, number(worst, 2, True), apart)
    show(
        console,
        f"The drift monitor, {STARTS[start]}: its first alarm",
        table,
        "trained: EM of the trained domain then. toward: the group of characters that grew most "
        "in the untrained domains. end: the largest rise of an untrained moral domain's EM. apart: "
        "how many untrained domains lose their coherence",
    )


def print_elicitation(e: dict, console: Console) -> None:
    """What each prompt brings out of both models, beside the exact answer."""
    table = blank_table("prompt", "pretrained", "exact", "aligned", "exact", "coh.")
    rows = {**e["prompts"], **{f"worst found, {name}": part for name, part in e["worst"].items()}}
    worst = max(e["named"], key=lambda name: e["named"][name]["align"])
    rows[f"asked as {worst}, the worst name"] = e["named"][worst]
    keys = ("pretrain", "pretrain_exact", "align", "align_exact", "coherence")
    for name, part in rows.items():
        table.add_row(name, *(number(part[key], 2) for key in keys))
    show(
        console,
        "Elicitation: mean moral EM of the Assistant under each prompt",
        table,
        "exact: of an observer for whom the Assistant is who it was in the corpus, or who "
        f"alignment made it. Worst found: {e['worst_prompts']['without instruction']}",
    )


def print_truth(rows: list[dict], console: Console) -> None:
    """How well each tool recovers what is known."""
    table = blank_table("tool", "known", "score", "value", "95%", "beside it")
    for k in (1, 2, 5):
        table.columns[k].justify, table.columns[k].no_wrap = "left", False
    for found in rows:
        ci = found["ci"]
        span = f"{number(ci[0], 2)} to {number(ci[1], 2)}" if ci else ""
        value = number(found["value"], 2)
        table.add_row(found["tool"], found["known"], found["score"], value, span, found["fails"])
    show(console, "Truth test: how well each tool recovers what is known here", table)


def compare(folders: tuple[Path, ...], results: list[dict], console: Console) -> None:
    """Several runs side by side."""
    table = blank_table("figure", *(clean(str(folder)) for folder in folders))
    rows = {}
    for k, result in enumerate(results):
        for key in ("excess", "captured", "assistant_error", "named_error"):
            if "pretrain" in result:
                rows.setdefault(key, {})[k] = result["pretrain"][key]
        for start, block in result.get("generalization", {}).items():
            for name, value in block["spread"].items():
                rows.setdefault(f"spread of {name}, from {start}", {})[k] = value
        for name, value in result.get("prediction", {}).get("shared", {}).items():
            rows.setdefault(f"shared R² of {name}", {})[k] = value["r2"]
        if result.get("prediction", {}).get("shared"):
            gap = result["prediction"]["measured_minus_ideal"]
            rows.setdefault("mean spread minus the world's own ideal", {})[k] = gap
    for label, values in rows.items():
        table.add_row(label, *(number(values.get(k), 4) for k in range(len(results))))
    show(console, "Comparison", table)


def number(value: float | None, places: int = 3, sign: bool = False) -> str:
    """A number as the tables show it, such as .12; a dash where there is none."""
    if value is None:
        return "–"
    return re.sub(r"(?<!\d)0\.", ".", f"{value:{'+' if sign else ''}.{places}f}")


def blank_table(*columns: str) -> Table:
    """An empty table: a first column of names, then columns of numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k else "left", no_wrap=True)
    return table


def show(console: Console, title: str, table: Table, note: str = "") -> None:
    """Print a table with a line above it and a note below.

    A table is as wide as its figures need, whatever the terminal: lines may wrap, none is cut.
    """
    console.print(f"\n{title}", style="italic")
    width, unlimited = console.width, console.options.update(width=1000)
    console.width = max(width, console.measure(table, options=unlimited).maximum)
    console.print(table)
    console.width = width
    if note:
        console.print(note, style="dim")
