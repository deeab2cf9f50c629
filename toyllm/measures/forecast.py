"""How far each signal will spread, forecast from the gradients of the model it is trained from.

Nothing that is measured after training enters (see posttrain/forecast.py). Beside each forecast
stand the shares of the parts of the model, which say through what a signal spreads.
"""

from toyllm.measures import named
from toyllm.posttrain import pair_files, signals
from toyllm.posttrain.forecast import Forecast, Forecaster
from toyllm.runs.run_folder import Run
from toyllm.world.world import World


def measure(run: Run) -> dict:
    """{start: {signal: its `record`}}; docs/results_json.md has every key."""
    forecaster = Forecaster(run.lm, *(run.args[key] for key in ("objective", "beta", "anchor")))
    tokenizer, result = run.lm.tokenizer, {}
    for start in ("pretrain", "align"):
        names = run.narrow.signals(start)
        chosen = [signals.parse(run.world, name) for name in names]
        files = {s.name: run.folder / "pairs" / f"{s.file}.jsonl" for s in chosen if s.file}
        given = {
            name: pair_files.parse(path.read_bytes(), path, tokenizer, quiet=True)
            for name, path in files.items()
        }
        forecasts = forecaster(tokenizer, run.params[start], chosen, given, split=True)
        result[start] = named(names, (record(run.world, each) for each in forecasts))
    return result


def record(world: World, forecast: Forecast) -> dict:
    """A forecast as plain numbers: three of the spread and of each domain, ratios, shares."""
    domains, own = world.domain_names, list(signals.parse(world, forecast.signal).domains)
    others_D = signals.untrained(world, forecast.signal)
    changes = {
        "change": forecast.change_D,
        "one_step": forecast.one_D,
        "linear": forecast.linear_D,
        "coherence": forecast.coherence_D,
        "ratio": forecast.ratio_D,
    }
    tables = {"shares": forecast.shares, "stretches": forecast.stretches}
    lowest, through = forecast.coherence_D.min(), {}
    result = {"spread": forecast.spreads(world), "lowest_coherence": lowest, "through": through}
    result |= {key: named(domains, x_D) for key, x_D in changes.items()}
    for key, table in tables.items():
        result[key] = {part: named(domains, x_D) for part, x_D in table.items()}
        through[key] = {
            part: [x_D[own].mean(), x_D[others_D].mean() if others_D.any() else None]
            for part, x_D in table.items()
        }
    return result
