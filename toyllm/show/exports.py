"""A run's results for other programs: CSV files and TensorBoard."""

from collections.abc import Iterator
from pathlib import Path

from toyllm.base import files
from toyllm.runs import provenance
from toyllm.runs.run_folder import Run
from toyllm.runs.tensorboard import SummaryWriter
from toyllm.show import views


def write_csv(folder: Path, results: dict) -> None:
    """Write the generalization matrix and the mixtures as long tables, if they were measured."""
    if "generalization" in results:
        files.write_text(folder / "generalization.csv", "\n".join(matrix_lines(results)) + "\n")
    if "mixture" in results:
        files.write_text(folder / "mixture.csv", "\n".join(mixture_lines(results)) + "\n")


def matrix_lines(results: dict) -> Iterator[str]:
    """The generalization matrix at the matched effect and after equal training."""
    yield "start,signal,read_at,domain,moral,em_before,em_after,change,coherence_after"
    for matrix in views.every_matrix(results):
        for row in matrix.rows:
            for cell in (cell for cell in row.cells if cell.after is not None):
                yield (
                    f"{matrix.start},{row.signal},{matrix.reading},{cell.domain},"
                    f"{cell.domain in results['moral']},{cell.before:.6f},{cell.after:.6f},"
                    f"{cell.change:.6f},{cell.coherence:.6f}"
                )


def mixture_lines(results: dict) -> Iterator[str]:
    """The weight of each group of characters, and the range of mixtures that fit nearly as well."""
    yield "start,signal,group,weight,low,high"
    for mixture in views.mixtures(results):
        for bar in mixture.measured:
            for group, weight in bar.weights.items():
                low, high = bar.ranges[group]
                yield f"{mixture.start},{bar.name},{group},{weight:.6f},{low:.6f},{high:.6f}"


def write_tensorboard(folder: Path, run: Run, results: dict) -> None:
    """Write a row of hyperparameters and metrics, and the mixtures as one step for each model."""
    with SummaryWriter(folder / "eval") as writer:
        arguments = {k: v for k, v in run.args.items() if k not in provenance.ANY}
        if "seeds" in results:
            arguments["seed"] = ", ".join(map(str, results["seeds"]))
        writer.hparams(folder, arguments)
        writer.scalars(0, views.summary(results))
        for name, figure in results.get("figures", {}).items():  # of several seeds
            low, high = figure["interval"] or (None, None)
            writer.scalars(0, {f"{name}/low": low, f"{name}/high": high})
        bars = [(view.start, bar) for view in views.mixtures(results) for bar in view.measured]
        for step, (start, bar) in enumerate(bars):
            weights = {f"mixture_from_{start}/{group}": w for group, w in bar.weights.items()}
            writer.scalars(step, weights)


def write_images(folder: Path, pngs: dict[str, Path]) -> None:
    """Write figures, {name: PNG file}, to TensorBoard."""
    if not pngs:
        return
    with SummaryWriter(folder) as writer:
        for name, file in pngs.items():
            writer.image(0, f"figures/{name}", file.read_bytes())
