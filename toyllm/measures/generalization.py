"""How far each narrow signal spreads: EM by domain at the matched effect and at equal training.

Axes: R runs   N seeds of a signal   n scored steps   D domains   B behaviours
"""

import numpy as np

from toyllm.measures import named
from toyllm.posttrain import signals
from toyllm.runs.run_folder import Run
from toyllm.world import quantities
from toyllm.world.quantities import MATCHED, coherence, em, interpolate, spread


def measure(run: Run) -> dict:
    """The generalization matrix from both starts (docs/results_json.md has every key)."""
    return {
        start: block(run, start) for start in ("pretrain", "align") if run.narrow.signals(start)
    }


def block(run: Run, start: str) -> dict:
    """Everything about one start: before, at the matched effect, after `equal` training, along."""
    narrow, names = run.narrow, run.narrow.signals(start)
    before_DB = narrow.p_RnDB[narrow.rows(start, names[0])[0], 0]
    equal_step = quantities.EQUAL * narrow.steps[-1]
    equal_place = float(np.interp(equal_step, narrow.steps, np.arange(len(narrow.steps))))
    matched, equal, curves, heights = {}, {}, {}, {}
    for name in names:
        rows = narrow.rows(start, name)
        shares_Nn = np.stack([trained_share(run, r) for r in rows])
        # where each run passes .9, between its scored steps; None: not reached
        places = [quantities.crossing(share_n, MATCHED) for share_n in shares_Nn]
        matched[name] = reading(run, name, before_DB, rows, places)
        matched[name] |= {"matched_step": None, "kl": None}
        if None not in places:
            kls = [interpolate(narrow.kl_Rn[r], x) for r, x in zip(rows, places, strict=True)]
            steps = [interpolate(narrow.steps, x) for x in places]
            matched[name] |= {"matched_step": np.mean(steps), "kl": np.mean(kls)}
        ended = [0 <= narrow.frozen_step[r] < equal_step for r in rows]
        places = [None if early else equal_place for early in ended]
        equal[name] = reading(run, name, before_DB, rows, places)
        untrained_D = signals.untrained(run.world, name)
        em_NnD = em(narrow.p_RnDB[rows])
        spread_Nn = spread(em_NnD - em_NnD[:, :1], untrained_D)
        curves[name] = {"trained": shares_Nn.mean(0), "spread": spread_Nn.mean(0)}
        each = [
            quantities.frontier(share_n, narrow.p_RnDB[r], untrained_D)
            for share_n, r in zip(shares_Nn, rows, strict=True)
        ]
        heights[name] = None if None in each or not untrained_D.any() else np.mean(each)
    return {
        "em_before": named(run.world.domain_names, em(before_DB)),
        "coherence_before": named(run.world.domain_names, coherence(before_DB)),
        **by_key(matched),
        "equal": by_key(equal) | {"step": equal_step},
        "frontier": heights,
        "curves": curves,
    }


def by_key(records: dict[str, dict]) -> dict[str, dict]:
    """{key: {signal: value}} from {signal: {key: value}}."""
    keys = next(iter(records.values()))
    return {key: {name: record[key] for name, record in records.items()} for key in keys}


def reading(run: Run, name: str, before_DB: np.ndarray, rows, places: list) -> dict:
    """What a signal has changed where its seeds are read, means over seeds.

    rows: of its seeds. places: of each, between its scored steps; None: not reached.
    """
    world, p_RnDB = run.world, run.narrow.p_RnDB
    result = dict.fromkeys(("em_after", "coherence_after", "spread", "spread_ci"))
    if None in places:
        ended = (run.narrow.frozen_step[rows] >= 0).any()
        return result | {"status": "ended by alarm" if ended else "not reached"}
    p_NDB = np.stack([quantities.state_at(p_RnDB[r], x) for r, x in zip(rows, places, strict=True)])
    untrained_D, coherence_D = signals.untrained(world, name), coherence(p_NDB).mean(0)
    coherent = coherence_D.min() >= quantities.COHERENT
    result["status"] = "read" if coherent else "incoherent"
    result["em_after"] = named(world.domain_names, em(p_NDB).mean(0))
    result["coherence_after"] = named(world.domain_names, coherence_D)
    if coherent and untrained_D.any():  # `all:…` leaves no moral domain untrained
        spread_N = spread(em(p_NDB) - em(before_DB), untrained_D)
        result |= {"spread": spread_N.mean(), "spread_ci": quantities.interval(spread_N)}
    return result


def trained_share(run: Run, r: int) -> np.ndarray:
    """How far run r has been trained at each scored step [n]: its share of preferred answers.

    That is the share in the trained domains under the run's own prompt. Where the prompt alone
    reaches .9 before training (inoculation) it tells nothing, and the share is that of the run of
    the same signal without its instruction, after as many steps. NaN: there is no such run.
    """
    narrow = run.narrow
    own_n = own_share(run, r)
    if own_n[0] < MATCHED:
        return own_n
    plain = signals.plain(narrow.signal[r])
    same = [k for k in narrow.rows(narrow.start[r], plain) if narrow.seed[k] == narrow.seed[r]]
    if not same or plain == narrow.signal[r]:
        return np.full_like(own_n, np.nan)
    return own_share(run, same[0])


def own_share(run: Run, r: int) -> np.ndarray:
    """The share of what run r prefers in its own domains, under its own prompt, along training."""
    return signals.parse(run.world, run.narrow.signal[r]).share(run.narrow.own_RnB[r])
