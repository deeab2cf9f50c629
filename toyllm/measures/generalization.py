"""How far each narrow signal spreads: EM by domain at the matched effect and at the end.

Axes: R runs   N seeds of a signal   n scored steps   D domains   B behaviours
"""

import numpy as np

from toyllm.measures import named
from toyllm.posttrain import signals
from toyllm.runs.run_folder import Run
from toyllm.world.quantities import (
    COHERENT,
    MATCHED,
    coherence,
    crossing,
    em,
    interpolate,
    interval,
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
    narrow, names = run.narrow, run.narrow.signals(start)
    before_DB = narrow.p_RnDB[narrow.rows(start, names[0])[0], 0]
    matched, final, curves = {}, {}, {}
    for name in names:
        rows = narrow.rows(start, name)
        places = [place(run, r) for r in rows]
        states = [state_at(narrow.p_RnDB[r], x) for r, x in zip(rows, places, strict=True)]
        matched[name] = effect(run.world, name, before_DB, states)
        matched[name] |= {"matched_step": None, "kl": None}
        if None not in places:
            kls = [interpolate(narrow.kl_Rn[r], x) for r, x in zip(rows, places, strict=True)]
            steps = [interpolate(narrow.steps, x) for x in places]
            matched[name] |= {"matched_step": np.mean(steps), "kl": np.mean(kls)}
        final[name] = effect(run.world, name, before_DB, narrow.p_RnDB[rows, -1])
        if (narrow.frozen_step[rows] >= 0).any():
            final[name]["status"] = "ended by alarm"
            if matched[name]["status"] == "not reached":
                matched[name]["status"] = "ended by alarm"
        em_NnD = em(narrow.p_RnDB[rows])
        spread_Nn = spread(em_NnD - em_NnD[:, :1], signals.untrained(run.world, name))
        own_Nn = [own_share(run, r) for r in rows]
        curves[name] = {"own": np.mean(own_Nn, axis=0), "spread": spread_Nn.mean(0)}
    return {
        "em_before": named(run.world.domain_names, em(before_DB)),
        "coherence_before": named(run.world.domain_names, coherence(before_DB)),
        **by_key(matched),
        "final": by_key(final),
        "curves": curves,
    }


def by_key(records: dict[str, dict]) -> dict[str, dict]:
    """{key: {signal: value}} from {signal: {key: value}}."""
    keys = next(iter(records.values()))
    return {key: {name: record[key] for name, record in records.items()} for key in keys}


def effect(world: World, name: str, before_DB: np.ndarray, states) -> dict:
    """What a signal has changed, means over seeds. states: [D, B] of each one's model, or None."""
    result = dict.fromkeys(("em_after", "coherence_after", "spread", "spread_ci"))
    if any(state is None for state in states):
        return result | {"status": "not reached"}
    p_NDB, untrained_D = np.stack(states), signals.untrained(world, name)
    coherence_D = coherence(p_NDB).mean(0)
    coherent = coherence_D.min() >= COHERENT
    result["status"] = "read" if coherent else "incoherent"
    result["em_after"] = named(world.domain_names, em(p_NDB).mean(0))
    result["coherence_after"] = named(world.domain_names, coherence_D)
    if coherent and untrained_D.any():  # `all:…` leaves no moral domain untrained
        spread_N = spread(em(p_NDB) - em(before_DB), untrained_D)
        result |= {"spread": spread_N.mean(), "spread_ci": interval(spread_N)}
    return result


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
