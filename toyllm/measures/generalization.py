"""How far each narrow signal spreads: EM by domain at the matched effect and at the end.

Axes: R runs   N seeds of a signal   n scored steps   D domains   B behaviours
"""

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes two seconds to import

from toyllm.posttrain import signals
from toyllm.runs.run_folder import Run
from toyllm.world.quantities import (
    COHERENT,
    MATCHED,
    coherence,
    crossing,
    em,
    interpolate,
    spread,
    state_at,
)
from toyllm.world.world import World


def measure(run: Run) -> dict:
    """The generalization matrix from both starts (docs/results_json.md has every key)."""
    return {
        start: block(run, start) for start in ("pretrain", "align") if run.narrow.signals(start)
    }


def block(run: Run, start: str) -> dict:
    """Everything about one start: before, at the matched effect, and `final`, at the end."""
    narrow, world = run.narrow, run.world
    rows = {name: narrow.rows(start, name) for name in narrow.signals(start)}
    before_DB = narrow.p_RnDB[next(iter(rows.values()))[0], 0]
    places = {name: [place(run, r) for r in rs] for name, rs in rows.items()}
    matched = {
        name: [state_at(narrow.p_RnDB[r], x) for r, x in zip(rs, places[name], strict=True)]
        for name, rs in rows.items()
    }
    end = {name: [narrow.p_RnDB[r, -1] for r in rs] for name, rs in rows.items()}

    def mean_at(values_Rn) -> dict[str, float | None]:
        """Values at the matched effect of each signal, means over its seeds."""
        return {
            name: None
            if None in places[name]
            else np.mean(
                [interpolate(values_Rn[r], x) for r, x in zip(rs, places[name], strict=True)]
            )
            for name, rs in rows.items()
        }

    result = {
        "em_before": named(world, em(before_DB)),
        "coherence_before": named(world, coherence(before_DB)),
        **summary(world, before_DB, matched),
        "matched_step": mean_at(np.tile(narrow.steps.astype(float), (len(narrow.start), 1))),
        "kl": mean_at(narrow.kl_Rn),
        "final": summary(world, before_DB, end),
        "curves": {name: curve(run, name, rs) for name, rs in rows.items()},
    }
    for name, rs in rows.items():
        if (narrow.frozen_step[rs] >= 0).any():
            result["final"]["status"][name] = "ended by alarm"
            if result["status"][name] == "not reached":
                result["status"][name] = "ended by alarm"
    return result


def curve(run: Run, name: str, rows: list[int]) -> dict:
    """Along training, means over seeds: the preferred share where trained [n], and spread [n]."""
    em_NnD = em(run.narrow.p_RnDB[rows])
    untrained_D = signals.untrained(run.world, name)
    return {
        "own": np.mean([own_share(run, r) for r in rows], axis=0),
        "spread": spread(em_NnD - em_NnD[:, :1], untrained_D).mean(0),
    }


def summary(world: World, before_DB: np.ndarray, after: dict[str, list]) -> dict:
    """Means over narrow seeds. after[signal]: the state [D, B] of each seed's model, or None."""
    keys = ("em_after", "coherence_after", "spread", "spread_ci")
    result: dict = {key: {} for key in (*keys, "status")}
    for name, states in after.items():
        if any(state is None for state in states):
            result["status"][name] = "not reached"
            for key in keys:
                result[key][name] = None
            continue
        p_NDB, untrained_D = np.stack(states), signals.untrained(world, name)
        coherence_D = coherence(p_NDB).mean(0)
        spread_N = spread(em(p_NDB) - em(before_DB), untrained_D)
        coherent = bool(coherence_D.min() >= COHERENT)
        result["status"][name] = "read" if coherent else "incoherent"
        result["em_after"][name] = named(world, em(p_NDB).mean(0))
        result["coherence_after"][name] = named(world, coherence_D)
        number = coherent and untrained_D.any()  # `all:…` leaves no moral domain untrained
        result["spread"][name] = float(spread_N.mean()) if number else None
        result["spread_ci"][name] = interval(spread_N) if number else None
    return result


def interval(values: np.ndarray) -> list[float] | None:
    """A 95% Student-t interval over narrow seeds of one pretrained model: it supports no claim."""
    n = len(values)
    if n < 2:
        return None
    half = stdtrit(n - 1, 0.975) * values.std(ddof=1) / n**0.5
    return [float(values.mean() - half), float(values.mean() + half)]


def place(run: Run, r: int) -> float | None:
    """The index of the matched effect between run r's scored steps; None: not reached.

    There the share of preferred answers under the run's own prompt passes .9, interpolated in
    logit. Where the prompt alone reaches .9 before training (inoculation), the index is that of the
    run of the same signal without its instruction.
    """
    narrow = run.narrow
    own_n = own_share(run, r)
    if own_n[0] < MATCHED:
        return crossing(own_n, MATCHED)
    plain = signals.parse(run.world, narrow.signal[r]).plain
    same = [k for k in narrow.rows(narrow.start[r], plain) if narrow.seed[k] == narrow.seed[r]]
    if not same or plain == narrow.signal[r]:
        return None
    return crossing(own_share(run, same[0]), MATCHED)


def own_share(run: Run, r: int) -> np.ndarray:
    """The share of what run r prefers in its own domains, under its own prompt, along training."""
    return signals.parse(run.world, run.narrow.signal[r]).share(run.narrow.own_RnB[r])


def named(world: World, values_D) -> dict[str, float]:
    """{domain: value}."""
    return {name: float(v) for name, v in zip(world.domain_names, values_D, strict=True)}
