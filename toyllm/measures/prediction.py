"""The generalization matrix predicted from the world alone, by persona inference and by rivals.

Training toward bad in a domain is evidence about who the Assistant is (world/persona.py). The
strength of that evidence is fitted to the change in the trained domain, and the other domains are
predicted: from the whole change of its log-odds (strict), or from a fraction of it, the rest being
a local edit (shared). docs/method.md, section 5, has both and the rivals.

Axes: S signals   D domains   F fractions   N shuffled predictions   C characters
"""

import numpy as np

from toyllm import measures
from toyllm.measures import named
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
    """Predictions from both starts; the top-level keys are those from the pretrained model.

    They are of the matrix at the matched effect; those under `equal` are of the matrix after equal
    training, where every trained domain has an EM of its own.
    """
    result, sft = {}, run.args["objective"] == "sft"
    for start, block in measures.take(run, "generalization").items():
        before_D = np.array(list(block["em_before"].values()))
        prior_C = prior(run, start, before_D)
        parts = []
        for part in (block, block["equal"]):
            if len(names := readable(run, part)) >= 2:
                after_SD = np.array([list(part["em_after"][name].values()) for name in names])
                parts.append(predict(Cells(run.world, names, prior_C, before_D, after_SD, sft)))
        if len(parts) == 2:
            result[start] = {**parts[0], "equal": parts[1]}
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
        self.own_S, self.reached_S = self.G_SD[own], after_SD[own]  # its change in EM, and where to
        self.move_S = logit(after_SD[own]) - logit(before_D[self.domain_S])  # of its log-odds


def prior(run: Run, start: str, em_D: np.ndarray) -> np.ndarray:
    """Who the Assistant is [C] in the corpus, or after the alignment that led to this EM."""
    if start == "pretrain":
        return run.world.assistant_C
    return persona.aligned_prior(run.world, em_D, run.args["objective"] == "sft")


def readable(run: Run, block: dict) -> list[str]:
    """Signals that train one domain toward bad under the Assistant, where they are read."""

    def simple(name: str) -> bool:
        signal = signals.parse(run.world, name)
        plain = signals.plain(name) == name and "@" not in name
        return plain and len(signal.domains) == 1 and signal.behaviour == BAD

    return [name for name, status in block["status"].items() if status == "read" and simple(name)]


# Predictions of G [F, S, D], one for each of F fractions of the trained domain's change.


def inference(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """The change of EM from the prior to the mixture that explains this share of the change.

    The change is that of the log-odds in the trained domain.
    """
    world, prior_C = cells.world, cells.prior_C
    before_D, after = mixture_em(world, prior_C), []
    for domain, move in zip(cells.domain_S, cells.move_S, strict=True):
        goal_F = logit(before_D[domain]) + fraction_F * move
        w_FC = persona.trained_to(world, prior_C, domain, goal_F, cells.sft)
        after.append(mixture_em(world, w_FC))
    return np.stack(after, 1) - before_D


def constant(cells: Cells, fraction_F: np.ndarray) -> np.ndarray:
    """The same share of the trained domain's change in every domain."""
    return fraction_F[:, None, None] * cells.own_S[:, None] * np.ones_like(cells.before_D)


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


MODELS = {
    "persona": inference,
    "constant": constant,
    "global": directed(np.ones((1, 1))),  # the same share of the change of log-odds everywhere
    "covariance": covariance,
}


def r2(G, predicted, mask) -> float:
    """1 - Σ(G - Ĝ)² / ΣG² over untrained moral cells."""
    return 1 - ((G - predicted)[mask] ** 2).sum() / (G[mask] ** 2).sum()


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

    many_S = mask_SD.sum(1) > 2  # any two points correlate perfectly
    G_SD, predicted_NSD, mask_SD = G_SD[many_S], predicted_NSD[:, many_S], mask_SD[many_S]

    def standard(x_SD):
        centred = np.where(mask_SD, x_SD - x_SD.mean(-1, keepdims=True, where=mask_SD), 0)
        norm = np.linalg.norm(centred, axis=-1, keepdims=True)
        return centred / np.where(norm > 1e-9, norm, np.nan)  # a constant has no correlation

    r_NS = (standard(predicted_NSD) * standard(G_SD)).sum(-1)
    known_N = np.isfinite(r_NS).sum(1)
    return np.nansum(r_NS, axis=1) / np.where(known_N, known_N, np.nan)


def null95(G_SD, predicted_SD, mask_SD) -> float:
    """The 95th percentile of `within` when each signal's predicted cells are shuffled."""
    rng = np.random.default_rng(0)
    shuffled_NSD = np.repeat(predicted_SD[None], PERMUTATIONS, 0)
    for s, m in enumerate(mask_SD):
        shuffled_NSD[:, s, m] = rng.permuted(shuffled_NSD[:, s, m], axis=1)
    return np.quantile(within(G_SD, shuffled_NSD, mask_SD), 0.95)


def predict(cells: Cells) -> dict:
    """All predictions of one start, and the spread of the world's own ideal observer."""
    world, names, G_SD, mask_SD = cells.world, cells.names, cells.G_SD, cells.mask_SD

    def table(values_SD) -> dict:
        """{signal: {domain: value}} of untrained moral domains."""
        return {
            name: named(np.array(world.domain_names)[mask_D], values_D[mask_D])
            for name, values_D, mask_D in zip(names, values_SD, mask_SD, strict=True)
        }

    result: dict = {"shared": {}, "strict": {}, "predicted": {}}
    result |= {"signals": names, "measured": table(G_SD)}
    for name, model in MODELS.items():
        predicted_SD, fractions = shared(cells, model)
        score = {"r2": r2(G_SD, predicted_SD, mask_SD), "fraction": np.mean(fractions)}
        result["shared"][name] = score
        result["strict"][name] = {"r2": r2(G_SD, model(cells, np.ones(1))[0], mask_SD)}
        result["predicted"][name] = table(predicted_SD)
        if name == "persona":
            result["fraction"] = score["fraction"]
            result["within_r"] = within(G_SD, predicted_SD[None], mask_SD)[0]
            result["within_r_null95"] = null95(G_SD, predicted_SD, mask_SD)
    measured_S = [spread(G_D, mask_D) for G_D, mask_D in zip(G_SD, mask_SD, strict=True)]
    # of an observer that only infers the persona, at the same EM in the trained domain
    ideal_S = [
        spread(persona.ideal_change(world, cells.prior_C, d, em, cells.sft), mask_D)
        for d, em, mask_D in zip(cells.domain_S, cells.reached_S, mask_SD, strict=True)
    ]
    result["ideal_spread"] = named(names, ideal_S)
    result["measured_minus_ideal"] = np.subtract(measured_S, ideal_S).mean()
    return result
