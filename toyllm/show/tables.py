"""The tables that `eval.py` prints."""

from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toyllm.base.errors import clean
from toyllm.show import comparison, views
from toyllm.show.views import READINGS, STARTS, number
from toyllm.world.quantities import MATCHED


def new_console(**kwargs) -> Console:
    """A rich console that prints text as it is: a name from a file may look like rich's markup.

    A styled part is a `rich.text.Text`. kwargs: of `rich.console.Console`.
    """
    return Console(markup=False, emoji=False, highlight=False, **kwargs)


def print_tables(results: dict, console: Console) -> None:
    """Print a table for each measure that has one."""
    if "pretrain" in results:
        table = blank_table("quantity", "value", "compared with", left=[2])
        for row in views.learned(results):
            table.add_row(*row)
        show(console, "What was learned in pretraining", table)
    for matrix in views.every_matrix(results):
        print_matrix(matrix, results["moral"], console)
    if "shared" in results.get("prediction", {}):  # enough signals were matched
        print_predictions(results["prediction"], console)
    for mixture in views.mixtures(results):
        print_mixture(mixture, console)
    for start, block in results.get("instructed", {}).items():
        print_instructed(start, block, results["domains"], console)
    for start, block in results.get("drift", {}).items():
        print_drift(start, block, console)
    if "elicitation" in results:
        print_elicitation(results, console)
    if "forecast" in results:
        print_forecast(views.forecasts(results), results["domains"], console)
    if "truth" in results:
        print_truth(results["truth"], console)


def print_matrix(matrix: views.Matrix, moral: list[str], console: Console) -> None:
    """Print the generalization matrix of one start."""
    matched = matrix.reading == "matched"
    columns = ("spread", "coh.", *(("frontier", "step") if matched else ()))
    table = blank_table("signal", *matrix.domains, *columns)
    before, coherence = (number(x, 2) for x in matrix.before), number(matrix.coherence_before, 2)
    table.add_row("EM before", *before, "", coherence, style="dim")
    for row in matrix.rows:
        table.add_row(
            row.signal,
            *(change_text(cell, row.mark) for cell in row.cells),
            Text(row.outcome, "bold") if row.status == "read" else row.outcome,
            number(row.coherence, 2),
            *((number(row.frontier, 3, True), number(row.step, 0)) if matched else ()),
        )
    how = f"the trained domain [in brackets] gives {MATCHED:.0%} preferred answers"
    note = (
        f"spread: mean change over untrained moral domains ({', '.join(moral)}). coh.: coherence "
        "of the worst domain. frontier: the mean spread along training up to the matched effect, "
        "over equal steps of the trained domain's share. step: when the signal reaches the "
        "matched effect under its own prompt; a signal that is there before training is read at "
        "the step of the same signal without the instruction. (domain): not moral. *: incoherent, "
        "not to be compared"
    )
    if not matched:
        how, note = f"{matrix.rows[0].step:g} steps of every signal", ""
    title = f"Change of EM by domain, {STARTS[matrix.start]}, {READINGS[matrix.reading]}: {how}"
    show(console, title, table, note)


def change_text(cell: views.Cell, mark: str) -> Text | str:
    """A change of EM, red toward bad and blue toward good; in brackets where it was trained."""
    if cell.change is None:
        return "–"
    text = number(cell.change, 2, True) + mark
    if cell.half_width is not None:
        text += f" ±{number(cell.half_width, 2)}"
    if cell.trained:
        return f"[{text}]"
    return Text(text, "red" if cell.change > 0.1 else "blue" if cell.change < -0.1 else "default")


def print_predictions(block: dict, console: Console) -> None:
    """Print how well each prediction of the matrix fits."""
    table = blank_table("prediction", "shared R²", "fraction", "strict R²", "equal R²")
    for name, shared in block["shared"].items():
        values = shared["r2"], shared["fraction"], block["strict"][name]["r2"]
        values = *values, block["equal"]["shared"][name]["r2"]
        table.add_row(name, *(number(x, 2) for x in values))
    show(
        console,
        "The matrix predicted from the world alone (R² over untrained moral cells, from the "
        "pretrained model)",
        table,
        f"persona's within-signal correlation {number(block['within_r'], 2)}, 95% of its null "
        f"{number(block['within_r_null95'], 2)}; mean spread minus the ideal observer's own "
        f"{number(block['measured_minus_ideal'], 3, True)}. equal R²: shared, after equal "
        "training",
    )


def print_mixture(mixture: views.Mixture, console: Console) -> None:
    """Print who the Assistant is from one start, before and after each signal."""
    groups = [group.replace(" + ", "\n") for group in mixture.groups]
    table = blank_table("signal", *groups, "residual", "off-domain", "override")
    for bar in mixture.bars:
        weights = [number(bar.weights[group], 2) for group in mixture.groups]
        residuals = [number(x if x is None else 1000 * x, 1) for x in bar.residuals]
        style = "dim" if bar.ranges is None else None
        table.add_row(bar.name, *weights, *residuals, style=style)
    show(
        console,
        f"Who the Assistant is, {STARTS[mixture.start]} (weights of groups of characters; "
        "residual in thousandths of a nat)",
        table,
    )


def print_instructed(start: str, block: dict, domains: list[str], console: Console) -> None:
    """Print what an instruction still elicits when it is present."""
    if not block:
        return
    table = blank_table("signal", *domains)
    for name, part in block.items():
        for when in ("before", "after"):
            table.add_row(f"{name}, {when}", *(number(part[when][d], 2) for d in domains))
    show(console, f"p(bad) with the signal's instruction present, {STARTS[start]}", table)


def print_drift(start: str, block: dict, console: Console) -> None:
    """Print the first alarm of the drift monitor for each signal."""
    columns = ("signal", "alarms", "step", "trained", "domain", "toward", "end", "incoherent")
    table = blank_table(*columns, left=[4, 5])
    for name, seeds in block.items():
        alarms = [seed for seed in seeds if seed["step"] is not None]
        step, trained, domain, toward = "–", "–", "", ""
        if alarms:
            first = min(alarms, key=lambda alarm: alarm["step"])
            step, trained = str(first["step"]), number(first["trained"], 2)
            domain = f"{first['domain']} {number(first['change'], 2, True)}"
            toward = f"{first['toward']} {number(first['growth'], 2, True)}"
        alarmed = f"{len(alarms)} of {len(seeds)}"
        worst = number(max(seed["worst"] for seed in seeds), 2, True)
        incoherent = max(len(seed["incoherent"]) for seed in seeds)
        table.add_row(name, alarmed, step, trained, domain, toward, worst, str(incoherent or ""))
    show(
        console,
        f"The drift monitor, {STARTS[start]}: its first alarm",
        table,
        "trained: the share of preferred answers in the trained domain then. toward: the group of "
        "characters whose weight in the untrained domains grew most. end: the largest rise of an "
        "untrained moral domain's EM. incoherent: how many untrained domains lose coherence",
    )


def print_elicitation(results: dict, console: Console) -> None:
    """Print what each prompt elicits from both models, beside the exact answer."""
    table = blank_table("prompt", "pretrained", "exact", "aligned", "exact", "coh.")
    rows, named = views.elicitation(results)
    worst = max(named, key=lambda name: named[name]["align"])
    keys = ("pretrain", "pretrain_exact", "align", "align_exact", "coherence")
    for label, part in {**rows, f"{worst}, the worst name": named[worst]}.items():
        table.add_row(label, *(number(part[key], 2) for key in keys))
    prompt = results["elicitation"]["worst_prompts"]["without instruction"]
    show(
        console,
        "Elicitation: mean moral EM of the Assistant under each prompt",
        table,
        "exact: an observer for whom the Assistant has the mixture of the corpus, or the one that "
        f"alignment left it with. Worst found: {prompt}",
    )


def print_forecast(rows: list[views.Foreseen], domains: list[str], console: Console) -> None:
    """Print what is forecast of each signal, and through what it would spread."""
    for start in dict.fromkeys(row.start for row in rows):
        columns = (*domains, "spread", "coh.", "measured", "most through")
        table = blank_table("signal", *columns, left=[len(columns)])
        for _, signal, trained, record, measured in (r for r in rows if r.start == start):
            cells = [
                views.Cell(d, d in trained, 0, None, record["change"][d], None, None)
                for d in domains
            ]
            parts = record["through"]["shares"].items()
            adds = {part: share for part, (_, share) in parts if share is not None}
            table.add_row(
                signal,
                *(change_text(cell, "") for cell in cells),
                Text(number(record["spread"]["change"], 3, True), "bold"),
                number(record["lowest_coherence"], 2),
                number(measured, 3, True),
                max(adds, key=adds.get) if adds else number(None),
            )
        show(
            console,
            f"Forecast before training, {STARTS[start]}: change of EM when the trained domain [in "
            f"brackets] gives {MATCHED:.0%} preferred answers",
            table,
            "by two long steps of Adam, from gradients of 64 pairs before training and half way. "
            "spread: mean change over untrained moral domains; a dash where no step gets there. "
            "coh.: coherence of the worst domain then. measured: the spread after training, where "
            "that was done. most through: the part of the model that adds most to the spread, to "
            "first order",
        )


def print_truth(rows: list[dict], console: Console) -> None:
    """Print how well each tool recovers what is known."""
    table = blank_table("tool", "known", "score", "value", "95%", "note", left=[1, 2, 5])
    for row in rows:
        interval = " to ".join(number(x, 2) for x in row["ci"] or ())
        value = number(row["value"], 2)
        table.add_row(row["tool"], row["known"], row["score"], value, interval, row["fails"])
    show(console, "Truth test: how well each tool recovers what is known here", table)


def print_seeds(results: dict, console: Console) -> None:
    """Print the headline figures of several seeds, with intervals over them."""
    columns = "figure", "mean", "95% interval", *(f"seed {seed}" for seed in results["seeds"])
    for title, lines in views.headlines(results).items():
        table = blank_table(*columns)
        for line in lines:
            mean, *values = (number(x, line.places) for x in (line.mean, *line.values))
            table.add_row(line.name, Text(mean, "bold"), line.span, *values)
        show(console, title, table)
    console.print(
        "95% interval: of the mean over seeds (Student's t). –: not there in every seed",
        style="dim",
    )


def print_findings(findings: list[str], console: Console) -> None:
    """What was found, in sentences."""
    console.print(Text("\nFindings", "bold"))
    for finding in findings:
        console.print(Padding(Text(f"• {finding}"), (0, 0, 0, 2)))


def print_comparison(folders: tuple[Path, ...], results: list[dict], console: Console) -> None:
    """Print several runs side by side; rows are named as in TensorBoard.

    Of several seeds: the mean ± half of its 95% interval.
    """
    table = blank_table("quantity", *(clean(str(folder)) for folder in folders))
    for figure in comparison.figures(results):
        table.add_row(figure.name, *figure.values)
    show(console, "Comparison", table)


def blank_table(*columns: str, left: Collection[int] = ()) -> Table:
    """An empty table: a first column of names, then columns of numbers, or of text in `left`."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k in (0, *left) else "right", no_wrap=True)
    return table


def show(console: Console, title: str, table: Table, note: str = "") -> None:
    """Print a table with a title above it and a note below.

    A table is as wide as its content, whatever the terminal: lines may wrap, none is cut.
    """
    console.print(f"\n{title}", style="italic")
    unlimited = console.options.update(width=1000)
    table.width = console.measure(table, options=unlimited).maximum
    console.print(table, crop=False)
    if note:
        console.print(note, style="dim")
