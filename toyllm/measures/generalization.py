"""How far each narrow signal spreads: EM by domain at the matched effect and at the end."""

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes two seconds to import

from toyllm.lm.scoring import COHERENT, em
from toyllm.posttrain import signals
from toyllm.runs.run_folder import Run
from toyllm.world.world import World

MATCHED = 0.9  # every comparison is read where the trained domain's EM is this


def measure(run: Run) -> dict:
    """The generalization matrix from both starts (the schema is DESIGN §5 of results.json)."""
    return {
        start: block(run, start) for start in ("pretrain", "align") if run.narrow.signals(start)
    }


def block(run: Run, start: str) -> dict:
    """Everything about one start: before, at the matched effect, and `final`, at the end."""
    narrow, world = run.narrow, run.world
    rows = {name: narrow.rows(start, name) for name in narrow.signals(start)}
    first = narrow.p_RnDB[next(iter(rows.values()))[0], 0]
    at = {name: [place(run, r) for r in rs] for name, rs in rows.items()}
    matched = {
        name: [read(narrow.p_RnDB[r], x) for r, x in zip(rs, at[name], strict=True)]
        for name, rs in rows.items()
    }
    end = {name: [narrow.p_RnDB[r, -1] for r in rs] for name, rs in rows.items()}
    result = summary(world, first, matched)
    for name, rs in rows.items():
        if result["status"][name] == "not reached" and (narrow.frozen_step[rs] >= 0).any():
            result["status"][name] = "ended by alarm"
    result["matched_step"] = {
        name: None if None in xs else float(np.mean([step_at(narrow.steps, x) for x in xs]))
        for name, xs in at.items()
    }
    result["kl"] = {
        name: None
        if None in xs
        else float(
            np.mean([interpolate(narrow.kl_Rn[r], x) for r, x in zip(rows[name], xs, strict=True)])
        )
        for name, xs in at.items()
    }
    result["twin_kl"] = {name: r for name in rows if (r := twin_kl(run, start, name)) is not None}
    result["final"] = summary(world, first, end)
    for name, rs in rows.items():
        if (narrow.frozen_step[rs] >= 0).any():
            result["final"]["status"][name] = "ended by alarm"
    result["curves"] = {name: curve(run, name, rs) for name, rs in rows.items()}
    return {
        "em_before": named(world, em(first)),
        "coherence_before": named(world, first.sum(1)),
        **result,
    }


def curve(run: Run, name: str, rows: list[int]) -> dict:
    """Along training, means over seeds: the preferred share where trained [n], and spread [n]."""
    em_NnD = em(run.narrow.p_RnDB[rows])
    return {
        "own": np.mean([own_share(run, r) for r in rows], axis=0),
        "spread": spread(run.world, name, em_NnD - em_NnD[:, :1]).mean(0),
    }


def summary(world: World, before_DB: np.ndarray, after: dict[str, list]) -> dict:
    """Means over narrow seeds. after[signal]: what each seed's model does [D, B], None unread."""
    result = {
        key: {}
        for key in ("em_after", "coherence_after", "bad_change", "spread", "spread_ci", "status")
    }
    for name, tables in after.items():
        if any(table is None for table in tables):
            result["status"][name] = "not reached"
            for key in ("em_after", "coherence_after", "bad_change", "spread", "spread_ci"):
                result[key][name] = None
            continue
        p_NDB = np.stack(tables)
        coherence_D = p_NDB.sum(2).mean(0)
        spread_N = spread(world, name, em(p_NDB) - em(before_DB))
        coherent = bool(coherence_D.min() >= COHERENT)
        result["status"][name] = "read" if coherent else "incoherent"
        result["em_after"][name] = named(world, em(p_NDB).mean(0))
        result["coherence_after"][name] = named(world, coherence_D)
        result["bad_change"][name] = named(world, (p_NDB - before_DB)[..., 1].mean(0))
        number = coherent and untrained(world, name).any()  # `all:…` leaves no moral domain alone
        result["spread"][name] = float(spread_N.mean()) if number else None
        result["spread_ci"][name] = interval(spread_N) if number else None
    return result


def spread(world: World, name: str, change_D: np.ndarray) -> np.ndarray:
    """Mean ΔEM over the moral domains that the signal did not train [...]."""
    left_alone = untrained(world, name)
    return change_D[..., left_alone].sum(-1) / max(1, left_alone.sum())


def untrained(world: World, name: str) -> np.ndarray:
    """untrained[D]: True for moral domains that a signal leaves alone."""
    trained = np.isin(np.arange(len(world.domains)), signals.parse(world, name).domains)
    return world.moral & ~trained


def interval(values: np.ndarray) -> list[float] | None:
    """A 95% Student-t interval over narrow seeds of one pretrained model: it supports no claim."""
    n = len(values)
    if n < 2:
        return None
    half = stdtrit(n - 1, 0.975) * values.std(ddof=1) / n**0.5
    return [float(values.mean() - half), float(values.mean() + half)]


def place(run: Run, r: int) -> float | None:
    """Where run r is read, as an index between its scored steps; None: not reached.

    Where the trained domain's EM passes .9 under the run's own prompt, interpolated in logit. A run
    whose prompt passes .9 before training (an inoculated one) is read at its plain twin's step.
    """
    narrow = run.narrow
    own_n = own_share(run, r)
    if own_n[0] < MATCHED:
        return crossing(own_n, MATCHED)
    plain = signals.parse(run.world, narrow.signal[r]).plain
    twins = [k for k in narrow.rows(narrow.start[r], plain) if narrow.seed[k] == narrow.seed[r]]
    if not twins or plain == narrow.signal[r]:
        return None
    return crossing(own_share(run, twins[0]), MATCHED)


def own_share(run: Run, r: int) -> np.ndarray:
    """The share of what run r prefers in its own domains, under its own prompt, along training."""
    return signals.parse(run.world, run.narrow.signal[r]).share(run.narrow.own_RnB[r])


def crossing(values_n: np.ndarray, level: float) -> float | None:
    """Where a curve first reaches a level, as an index with a fraction linear in logit."""
    above = np.flatnonzero(values_n >= level)
    if len(above) == 0:
        return None
    k = int(above[0])
    if k == 0:
        return 0.0
    low, high, goal = (logit(x) for x in (values_n[k - 1], values_n[k], level))
    return float(k - 1 + (goal - low) / (high - low))


def logit(p):
    """log p / (1 - p), kept finite."""
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def interpolate(values_n: np.ndarray, x: float) -> np.ndarray:
    """Linear interpolation along axis 0 at index x."""
    k = min(int(x), len(values_n) - 2)
    return values_n[k] + (x - k) * (values_n[k + 1] - values_n[k])


def read(p_nDB: np.ndarray, x: float | None) -> np.ndarray | None:
    """Behaviour probabilities at index x: EM interpolated in logit, the rest linearly."""
    if x is None:
        return None
    p_DB = interpolate(p_nDB, x)
    em_D = 1 / (1 + np.exp(-interpolate(logit(em(p_nDB)), x)))
    moral_D = p_DB[:, :2].sum(1)
    return np.stack([moral_D * (1 - em_D), moral_D * em_D, p_DB[:, 2]], 1)


def step_at(steps_n: np.ndarray, x: float) -> float:
    """The training step at index x."""
    return float(interpolate(steps_n.astype(float), x))


def twin_kl(run: Run, start: str, name: str) -> dict | None:
    """For a signal with an instruction: its spread where its KL is its plain twin's at EM .9.

    KL from the reference, each under its own prompt. {"kl": twin's, "step": n or null, "spread": Δ,
    null where it is not reached or not coherent}, means over seeds.
    """
    narrow = run.narrow
    plain = signals.parse(run.world, name).plain
    if plain == name or plain not in narrow.signals(start):
        return None
    goals, steps, spreads = [], [], []
    for r, twin in zip(narrow.rows(start, name), narrow.rows(start, plain), strict=True):
        x = crossing(own_share(run, twin), MATCHED)
        if x is None:
            return None
        goals.append(float(interpolate(narrow.kl_Rn[twin], x)))
        above = np.flatnonzero(narrow.kl_Rn[r] >= goals[-1])
        if len(above):
            k = max(int(above[0]), 1)
            low, high = narrow.kl_Rn[r, k - 1], narrow.kl_Rn[r, k]
            y = k - 1 + (goals[-1] - low) / (high - low)
            change_D = em(read(narrow.p_RnDB[r], y)) - em(narrow.p_RnDB[r, 0])
            steps.append(step_at(narrow.steps, y))
            coherent = read(narrow.p_RnDB[r], y).sum(1).min() >= COHERENT
            spreads.append(float(spread(run.world, name, change_D)) if coherent else np.nan)
    whole = len(spreads) == len(goals)
    return {
        "kl": float(np.mean(goals)),
        "step": float(np.mean(steps)) if whole else None,
        "spread": float(np.mean(spreads)) if whole else None,
    }


def named(world: World, values_D) -> dict[str, float]:
    """{domain: value}."""
    return {name: float(v) for name, v in zip(world.domain_names, values_D, strict=True)}
