"""The generalization matrix predicted from the world alone, by persona inference and by rivals.

Training toward bad in a domain is evidence about who the Assistant is (world/persona.py). The
strength of that evidence is fitted to the change in the trained domain, and the other domains are
predicted.

- strict: the whole change of the trained domain's log-odds is persona inference.
- shared: a fraction f of that change is persona inference, and the rest is a local edit. For each
  signal, one f is fitted to all *other* signals.

Rivals, given the same fraction: constant (the trained domain's change of EM in every domain),
global (its change of log-odds in every domain), covariance (changes of EM in proportion to the
covariance of the two domains' EM over characters).

Axes: S signals   D domains   F fractions   N shuffled predictions   C characters
"""

import numpy as np

from toyllm import measures
from toyllm.measures.audit import em_covariance
from toyllm.posttrain import signals
from toyllm.runs.run_folder import Run
from toyllm.world import persona
from toyllm.world.persona import mixture_em
from toyllm.world.quantities import logit, sigmoid, spread
from toyllm.world.world import BAD

FRACTIONS = np.linspace(0.02, 1, 50)
PERMUTATIONS = 2000


def measure(run: Run) -> dict:
    """Predictions from both starts; the top-level keys are those from the pretrained model."""
    blocks = measures.take(run, "generalization")
    result = {}
    for start, block in blocks.items():
        if len(names := readable(run, block)) >= 2:
            result[start] = predict(Cells.of(run, start, block, names))
    return {**result.get("pretrain", {}), "starts": result}


class Cells:
    """The measured matrix of one start, and what the predictions are made from."""

    def __init__(self, world, names, prior_C, before_D, after_SD, sft=False):
        """prior_C: who the Assistant is before; before_D, after_SD: measured EM."""
        self.world, self.names, self.prior_C, self.sft = world, names, prior_C, sft
        self.before_D = before_D
        self.G_SD = after_SD - before_D  # what is predicted
        self.domain_S = [signals.parse(world, name).domains[0] for name in names]
        self.mask_SD = np.stack([signals.untrained(world, name) for name in names])
        own = np.arange(len(names)), self.domain_S
        self.own_S = self.G_SD[own]  # change of EM in the trained domain
        self.move_S = logit(after_SD[own]) - logit(before_D[self.domain_S])  # of its log-odds

    @staticmethod
    def of(run: Run, start: str, block: dict, names: list[str]) -> "Cells":
        """The cells of some signals from one start."""
        before_D = np.array(list(block["em_before"].values()))
        after_SD = np.array([list(block["em_after"][name].values()) for name in names])
        prior_C, sft = prior(run, start, before_D), run.args["objective"] == "sft"
        return Cells(run.world, names, prior_C, before_D, after_SD, sft)


def prior(run: Run, start: str, em_D: np.ndarray) -> np.ndarray:
    """Who the Assistant is [C] in the corpus, or after the alignment that led to this EM."""
    if start == "pretrain":
        return run.world.assistant_C
    return persona.aligned_prior(run.world, em_D, run.args["objective"] == "sft")


def readable(run: Run, block: dict) -> list[str]:
    """Signals that train one domain toward bad under the Assistant, and have a matched effect."""
    names = []
    for name, status in block["status"].items():
        signal = signals.parse(run.world, name)
        simple = len(signal.domains) == 1 and signal.behaviour == BAD and signal.plain == name
        if simple and status == "read" and "@" not in name:
            names.append(name)
    return names


def selected(cells: Cells, s: int, fraction) -> np.ndarray:
    """The mixture that explains a fraction (or each of many) of signal s's change [..., C].

    The change is that of the log-odds in the trained domain.
    """
    domain = cells.domain_S[s]
    before = logit(mixture_em(cells.world, cells.prior_C)[domain])
    goal = before + fraction * cells.move_S[s]
    return persona.trained_to(cells.world, cells.prior_C, domain, goal, cells.sft)


# Predictions of G [F, S, D], one for each of F fractions of the trained domain's change.


def inference(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """The change of EM from the prior to each signal's selected mixture."""
    signals = range(len(cells.names))
    after = [mixture_em(cells.world, selected(cells, s, fraction_F)) for s in signals]
    return np.stack(after, 1) - mixture_em(cells.world, cells.prior_C)


def constant(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """The same share of the trained domain's change in every domain."""
    ones_D = np.ones(len(cells.before_D))
    return fraction_F[:, None, None] * cells.own_S[:, None] * ones_D


def covariance(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """In proportion to the covariance of EM with that of the trained domain."""
    cov_DD = em_covariance(cells.world, cells.prior_C)
    slope_SD = (cov_DD / np.maximum(np.diag(cov_DD), 1e-12)[:, None])[cells.domain_S]
    return fraction_F[:, None, None] * cells.own_S[:, None] * slope_SD


def directed(ratio_SD: np.ndarray):
    """A prediction by given ratios: log-odds change by ratio times a share of the trained one."""

    def model(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
        move_FSD = fraction_F[:, None, None] * (cells.move_S[:, None] * ratio_SD)
        return sigmoid(logit(cells.before_D) + move_FSD) - cells.before_D

    return model


def global_shift(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """The same share of the trained domain's change of log-odds in every domain."""
    return directed(np.ones((1, 1)))(cells, fraction_F)


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
    """The mean over signals of the correlation of G and Ĝ over untrained moral domains [N].

    It ignores how far each signal spreads, and asks only toward which domains.
    """

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
    result: dict = {"shared": {}, "strict": {}, "predicted": {}}
    result |= {"signals": cells.names, "measured": _table(cells, cells.G_SD)}
    for name, model in MODELS.items():
        predicted, fractions = shared(cells, model)
        score = r2(cells.G_SD, predicted, cells.mask_SD)
        result["shared"][name] = {"r2": score, "fraction": float(np.mean(fractions))}
        strict = model(cells, np.ones(1))[0]
        result["strict"][name] = {"r2": r2(cells.G_SD, strict, cells.mask_SD)}
        result["predicted"][name] = _table(cells, predicted)
        if name == "persona":
            result["fraction"] = float(np.mean(fractions))
            result["within_r"] = float(within(cells.G_SD, predicted[None], cells.mask_SD)[0])
            result["within_r_null95"] = null95(cells.G_SD, predicted, cells.mask_SD)
    ideal = {name: ideal_spread(cells, s) for s, name in enumerate(cells.names)}
    measured = [spread(G_D, mask_D) for G_D, mask_D in zip(cells.G_SD, cells.mask_SD, strict=True)]
    result["ideal_spread"] = ideal
    result["measured_minus_ideal"] = float(np.mean(np.array(measured) - list(ideal.values())))
    return result


def _table(cells: Cells, G_SD) -> dict:
    """{signal: {domain: value}} of untrained moral domains."""
    names = cells.world.domain_names
    return {
        name: {names[d]: float(G_SD[s, d]) for d in np.flatnonzero(cells.mask_SD[s])}
        for s, name in enumerate(cells.names)
    }


def ideal_spread(cells: Cells, s: int) -> float:
    """The spread of an observer that only infers the persona, at EM .9 in the trained domain."""
    domain = cells.domain_S[s]
    change_D = persona.ideal_change(cells.world, cells.prior_C, domain, sft=cells.sft)
    return float(spread(change_D, cells.mask_SD[s]))
