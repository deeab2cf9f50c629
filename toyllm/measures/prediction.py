"""The generalization matrix predicted from the world alone, by persona inference and by rivals.

A signal is evidence: training toward bad in domain s moves the Assistant's prior over characters
from w to w' ∝ w exp(λ ℓ_c), ℓ_c = log θ_bad - log θ_good (pairs) or log θ_bad (SFT).

- strict: all of the trained domain's log-odds move is persona; λ fitted there, nothing else.
- shared: only a fraction f of that move is persona, the rest a local edit; one f for all signals,
  fitted for each signal on the *other* ones.

Rivals, given the same fraction: constant (one number for every cell), global (one logit offset for
every domain), covariance (ΔEM in proportion to Cov_π of the two domains' traits).
"""

import numpy as np

from toyllm.measures import generalization
from toyllm.measures.audit import em_covariance
from toyllm.posttrain import signals
from toyllm.runs.run_folder import Run
from toyllm.world import persona
from toyllm.world.persona import mixture_em
from toyllm.world.quantities import logit, sigmoid
from toyllm.world.world import BAD

FRACTIONS = np.linspace(0.02, 1, 50)
PERMUTATIONS = 2000


def measure(run: Run) -> dict:
    """Predictions from both starts; the top-level keys are those from the pretrained model."""
    blocks = generalization.measure(run)
    result = {}
    for start, block in blocks.items():
        if len(names := readable(run, block)) >= 2:
            result[start] = predict(Cells.of(run, start, block, names))
    return {**result.get("pretrain", {}), "starts": result}


class Cells:
    """The measured matrix of one start, with what each prediction needs to know."""

    def __init__(self, world, names, prior_C, before_D, after_SD, sft=False):
        self.world, self.names, self.prior_C, self.sft = world, names, prior_C, sft
        self.before_D = before_D  # measured EM before
        self.G_SD = after_SD - before_D  # measured ΔEM
        self.after_SD = after_SD
        self.domain_S = [signals.parse(world, name).domains[0] for name in names]
        self.mask_SD = np.stack([signals.untrained(world, name) for name in names])

    @staticmethod
    def of(run: Run, start: str, block: dict, names: list[str]) -> "Cells":
        """The cells of some signals from one start."""
        before_D = np.array(list(block["em_before"].values()))
        after_SD = np.array([list(block["em_after"][name].values()) for name in names])
        prior_C, sft = run.world.assistant_C, run.args["objective"] == "sft"
        if start == "align":
            prior_C = persona.aligned_prior(run.world, before_D, sft)
        return Cells(run.world, names, prior_C, before_D, after_SD, sft)


def readable(run: Run, block: dict) -> list[str]:
    """Signals read as a number that train one domain toward bad, plainly, under the Assistant."""
    names = []
    for name, status in block["status"].items():
        signal = signals.parse(run.world, name)
        simple = len(signal.domains) == 1 and signal.behaviour == BAD and signal.plain == name
        if simple and status == "read" and "@" not in name:
            names.append(name)
    return names


def selected(cells: Cells, s: int, fraction) -> np.ndarray:
    """The mixture that explains `fraction` (or each of many) of signal s's own move [..., C].

    The move is of log-odds, in the domain it trains.
    """
    domain = cells.domain_S[s]
    before = logit(mixture_em(cells.world, cells.prior_C)[domain])
    move = fraction * (logit(cells.after_SD[s, domain]) - logit(cells.before_D[domain]))
    return persona.trained_to(cells.world, cells.prior_C, domain, before + move, cells.sft)


# Predictions of G [F, S, D], one for each of F fractions of the trained domain's move.


def inference(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """The change of EM between the prior and each signal's selected mixture."""
    signals = range(len(cells.names))
    after = [mixture_em(cells.world, selected(cells, s, fraction_F)) for s in signals]
    return np.stack(after, 1) - mixture_em(cells.world, cells.prior_C)


def constant(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """The same share of the trained domain's change in every domain."""
    own_S = np.array([cells.G_SD[s, d] for s, d in enumerate(cells.domain_S)])
    return fraction_F[:, None, None] * np.repeat(own_S[:, None], len(cells.before_D), axis=1)


def global_shift(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """One offset of the log-odds in every domain: a share of the trained domain's."""
    before_D, own = logit(cells.before_D), (range(len(cells.names)), cells.domain_S)
    move_S = logit(cells.after_SD[own]) - before_D[cells.domain_S]
    move_FS1 = (fraction_F[:, None] * move_S)[..., None]
    return sigmoid(before_D + move_FS1) - cells.before_D


def covariance(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """In proportion to Cov_π(θ_s, θ_d), the trained domain's own share being `fraction`."""
    cov_DD = em_covariance(cells.world, cells.prior_C)
    rows = [
        cells.G_SD[s, d] * cov_DD[d] / max(cov_DD[d, d], 1e-12)
        for s, d in enumerate(cells.domain_S)
    ]
    return fraction_F[:, None, None] * np.stack(rows)


def directed(ratio_SD: np.ndarray):
    """A prediction by given ratios: log-odds move by ratio times a share of the trained move."""

    def model(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
        before_D, own = logit(cells.before_D), (range(len(cells.names)), cells.domain_S)
        move_S = logit(cells.after_SD[own]) - before_D[cells.domain_S]
        move_FSD = fraction_F[:, None, None] * (move_S[:, None] * ratio_SD)
        return sigmoid(before_D + move_FSD) - cells.before_D

    return model


MODELS = {
    "persona": inference,
    "constant": constant,
    "global": global_shift,
    "covariance": covariance,
}


def r2(G, predicted, mask) -> float:
    """1 - Σ(G - Ĝ)² / ΣG² over untrained moral cells."""
    return float(1 - ((G - predicted)[mask] ** 2).sum() / (G[mask] ** 2).sum())


def shared(cells: Cells, model) -> tuple[np.ndarray, np.ndarray]:
    """Ĝ with each signal's fraction fitted on the other signals, and those fractions."""
    tables = model(cells, FRACTIONS)
    error_FS = (((tables - cells.G_SD) ** 2) * cells.mask_SD).sum(-1)
    best_S = [(error_FS.sum(1) - error_FS[:, s]).argmin() for s in range(len(cells.names))]
    predicted = np.stack([tables[k, s] for s, k in enumerate(best_S)])
    return predicted, FRACTIONS[best_S]


def within(G_SD, predicted_NSD, mask_SD) -> np.ndarray:
    """Mean over signals of the correlation of G and Ĝ across untrained moral domains, of N Ĝ."""

    def standard(x, m):
        centred = x[..., m] - x[..., m].mean(-1, keepdims=True)
        norm = np.linalg.norm(centred, axis=-1, keepdims=True)
        return centred / np.where(norm > 1e-9, norm, np.nan)  # a constant has no correlation

    rows = [
        (standard(predicted_NSD[:, s], m) * standard(G_SD[s], m)).sum(-1)
        for s, m in enumerate(mask_SD)
        if m.sum() > 2
    ]
    if not rows:
        return np.full(len(predicted_NSD), np.nan)
    known = np.isfinite(rows)
    return np.where(known, rows, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def null95(G_SD, predicted_SD, mask_SD) -> float:
    """The 95th percentile of `within` when each signal's predicted cells are shuffled."""
    rng = np.random.default_rng(0)
    shuffled_NSD = np.repeat(predicted_SD[None], PERMUTATIONS, 0)
    for s, m in enumerate(mask_SD):
        shuffled_NSD[:, s, m] = rng.permuted(shuffled_NSD[:, s, m], axis=1)
    return float(np.quantile(within(G_SD, shuffled_NSD, mask_SD), 0.95))


def predict(cells: Cells) -> dict:
    """All predictions of one start, and the spread of the world's own ideal observer."""
    result = {
        "shared": {},
        "strict": {},
        "predicted": {},
        "signals": cells.names,
        "measured": _table(cells, cells.G_SD),
    }
    for name, model in MODELS.items():
        predicted, fractions = shared(cells, model)
        result["shared"][name] = {
            "r2": r2(cells.G_SD, predicted, cells.mask_SD),
            "fraction": float(np.mean(fractions)),
        }
        strict = model(cells, np.ones(1))[0]
        result["strict"][name] = {"r2": r2(cells.G_SD, strict, cells.mask_SD)}
        result["predicted"][name] = _table(cells, predicted)
        if name == "persona":
            result["fraction"] = float(np.mean(fractions))
            result["within_r"] = float(within(cells.G_SD, predicted[None], cells.mask_SD)[0])
            result["within_r_null95"] = null95(cells.G_SD, predicted, cells.mask_SD)
    ideal = {name: ideal_spread(cells, s) for s, name in enumerate(cells.names)}
    measured = [G[mask].mean() for G, mask in zip(cells.G_SD, cells.mask_SD, strict=True)]
    result["ideal_spread"] = ideal
    result["measured_minus_ideal"] = float(np.mean(np.array(measured) - list(ideal.values())))
    return result


def _table(cells: Cells, G_SD) -> dict:
    """{signal: {domain: value}} of the cells that count."""
    names = cells.world.domain_names
    return {
        name: {names[d]: float(G_SD[s, d]) for d in np.flatnonzero(cells.mask_SD[s])}
        for s, name in enumerate(cells.names)
    }


def ideal_spread(cells: Cells, s: int) -> float:
    """The spread of an observer whose whole move is persona inference, to EM .9 where trained."""
    domain = cells.domain_S[s]
    change_D = persona.ideal_change(cells.world, cells.prior_C, domain, sft=cells.sft)
    return float(change_D[cells.mask_SD[s]].mean())
