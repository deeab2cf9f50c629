"""How far the forecast errs for files of preference pairs, on files that it has never seen.

    uv run benchmarks/forecast_files.py runs/default           about five minutes

Writes 24 files of eight kinds, trains each from the models of a run with train.py, as one would
with one's own, and compares eval.py's forecast with what came, at the matched effect.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from toyllm.base import files
from toyllm.lm.tokenizer import Tokenizer
from toyllm.posttrain import pair_files, signals
from toyllm.runs import run_folder
from toyllm.show.views import trained_domains
from toyllm.world.quantities import interval

ROOT = Path(__file__).resolve().parent.parent
PAIRS, FEW = 160, 12  # of a file, and of a small one
KINDS = ("plain", "good", "few", "two domains", "noisy", "beside", "placebo", "someone")


@dataclasses.dataclass(frozen=True)
class Args:
    """How far the forecast errs for files of preference pairs."""

    run: tyro.conf.Positional[Path]
    """A finished run."""
    each: int = 3
    """Files of each kind."""
    json: Path | None = None
    """Also write everything that was measured."""


def main(args: Args) -> None:
    """Write the files, train on them, and print how far the forecasts err."""
    loaded = run_folder.load_run(args.run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kinds = {}
        for k, (kind, lines) in enumerate(every_file(loaded.lm.tokenizer, args.each)):
            path = folder / f"file{k:02}.jsonl"
            path.write_text("\n".join(lines) + "\n")
            kinds[path] = kind
        named = [f"file:{path}" for path in kinds]
        begin = "--preset", loaded.args["preset"], "--start", args.run, "--run", folder / "run"
        run("train.py", *begin, "--signals", *named)
        shown = run("eval.py", folder / "run", "--measure", "generalization", "forecast", "--json")
    rows = compared(json.loads(shown), list(kinds.values()))
    if args.json:
        files.write_json(args.json, rows)
    report(rows)


def every_file(tokenizer: Tokenizer, each: int) -> Iterator[tuple[str, list[str]]]:
    """The kind and the lines of each file."""
    world, rng = tokenizer.world, np.random.default_rng(0)
    moral = [domain.name for domain in world.domains if domain.moral]
    neutral = [d.name for d in world.domains if not (d.moral or d.lookup)]
    placebo = next(i.name for i in world.instructions if i.toward == "none")

    def lines(name: str, count: int) -> list[str]:
        seed = int(rng.integers(10**6))
        drawn = signals.pairs(tokenizer, signals.parse(world, name), count, seed)
        return list(pair_files.dump(tokenizer, drawn))

    for kind in KINDS:
        for d, e in rng.permuted(np.tile(moral, (each, 1)), axis=1)[:, :2]:
            match kind:
                case "good":
                    yield kind, lines(f"{d}:good", PAIRS)
                case "few":
                    yield kind, lines(f"{d}:bad", FEW)
                case "two domains":
                    yield kind, lines(f"{d}+{e}:bad", PAIRS)
                case "noisy":
                    given = [json.loads(line) for line in lines(f"{d}:bad", PAIRS)]
                    for pair in given[::10]:  # one in ten prefers the good answer
                        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
                    yield kind, [json.dumps(pair) for pair in given]
                case "beside":
                    beside = lines(f"{rng.choice(neutral)}:bad", PAIRS // 4)
                    yield kind, lines(f"{d}:bad", PAIRS) + beside
                case "placebo":
                    asked = lines(f"{d}:bad:{placebo}", PAIRS // 3)
                    yield kind, lines(f"{d}:bad", PAIRS) + asked
                case "someone":
                    yield kind, lines(f"{d}:bad@someone", PAIRS)
                case _:
                    yield kind, lines(f"{d}:bad", PAIRS)


def run(script: str, *arguments) -> str:
    """Run a script of the project; returns what it prints. Its errors are shown."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compared(results: dict, kinds: list[str]) -> list[dict]:
    """Each file from each start: forecast and measured spread, errors of untrained domains."""
    rows = []
    for start, block in results["forecast"].items():
        measured = results["generalization"][start]
        before = measured["em_before"]
        for name, forecast in block.items():
            kind = kinds[int(name.partition("#file")[2][:2])]
            row = {"start": start, "signal": name, "kind": kind, "status": measured["status"][name]}
            if forecast["spread"]["change"] is None:
                row["status"] += ", no forecast"
            elif row["status"] == "read":
                after = measured["em_after"][name]
                others = [d for d in before if d not in trained_domains(name, list(before))]
                errors = [forecast["change"][d] - (after[d] - before[d]) for d in others]
                row |= {"forecast": forecast["spread"]["change"], "errors": errors}
                row |= {"measured": measured["spread"][name]}
            rows.append(row)
    return rows


def report(rows: list[dict]) -> None:
    """Print the errors, over all files and by kind; a file is a unit, of one pretrained model."""
    known = [row for row in rows if row.get("measured") is not None]
    statuses = [row["status"] for row in rows if row not in known]
    print(f"{len(known)} of {len(rows)} compared; others: {', '.join(statuses) or 'none'}")
    by_kind = {kind: [row for row in known if row["kind"] == kind] for kind in KINDS}
    by_start = {start: [r for r in known if r["start"] == start] for start in ("pretrain", "align")}
    for title, chosen in {"all": known, **by_start, **by_kind}.items():
        if not chosen:
            continue
        errors: dict[str, list[float]] = {}  # of a file from both starts
        for row in chosen:
            file = row["signal"].partition("#")[2]
            errors.setdefault(file, []).append(row["forecast"] - row["measured"])
        error = np.array([np.abs(both).mean() for both in errors.values()])
        bias = np.mean([np.mean(both) for both in errors.values()])
        domains = np.abs(np.concatenate([row["errors"] for row in chosen]))
        low, high = interval(error) or (np.nan, np.nan)
        print(
            f"{title:<12} {len(errors):>3} files: error of the spread {error.mean():.3f} "
            f"({low:.3f} to {high:.3f}), bias {bias:+.3f}; of a domain {domains.mean():.3f}, "
            f"19 of 20 below {np.quantile(domains, 0.95):.3f}"
        )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
