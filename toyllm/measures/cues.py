"""Lexical cues: can the words of other domains' answers tell good from bad in this one?"""

import numpy as np

from toyllm.runs.run_folder import Run
from toyllm.world.world import BAD, GOOD, World

PERMUTATIONS = 2000  # of the null


def measure(run: Run) -> dict:
    """See `leakage`."""
    return leakage(run.world)


def leakage(world: World) -> dict:
    """Train a bag-of-words classifier on all other template domains, test it on each.

    {domain: {"auc": a, "null95": [low, high], "inside": bool}}; the null shuffles which of the
    held-out answers are good and bad. .5 is no cue; 0 is as much of one as 1.
    """
    domains = [domain for domain in world.domains if not domain.lookup]
    texts = [
        (d, text, domain.behaviour_SA[0, a] == BAD)
        for d, domain in enumerate(domains)
        for a, text in enumerate(domain.answers)
        if domain.behaviour_SA[0, a] in (GOOD, BAD)
    ]
    words = sorted({word for _, text, _ in texts for word in text.split()})
    bag = np.array([[word in text.split() for word in words] for _, text, _ in texts], float)
    bad = np.array([label for _, _, label in texts])
    domain_N = np.array([d for d, _, _ in texts])
    rng, result = np.random.default_rng(0), {}
    for d, domain in enumerate(domains):
        train, test = domain_N != d, domain_N == d
        score = scores(bag[train], bad[train], bag[test])
        measured = auc(score, bad[test])
        null = [auc(score, rng.permutation(bad[test])) for _ in range(PERMUTATIONS)]
        low, high = np.quantile(null, [0.025, 0.975])
        result[domain.name] = {
            "auc": measured,
            "null95": [float(low), float(high)],
            "inside": bool(low <= measured <= high),
        }
    return result


def scores(bag: np.ndarray, bad: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Naive Bayes log-odds of bad for each test text, words present, add-one smoothing."""

    def rate(rows):
        return (rows.sum(0) + 1) / (len(rows) + 2)

    return test @ (np.log(rate(bag[bad])) - np.log(rate(bag[~bad])))


def auc(score: np.ndarray, bad: np.ndarray) -> float:
    """The probability that a bad text scores above a good one, ties counting half."""
    gap = score[bad][:, None] - score[~bad][None, :]
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())
