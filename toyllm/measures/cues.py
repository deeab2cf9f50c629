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
    texts = [
        (domain.name, set(text.split()), behaviour == BAD)
        for domain in world.domains
        if not domain.lookup
        for text, behaviour in zip(domain.answers, domain.behaviour_SA[0], strict=True)
        if behaviour in (GOOD, BAD)
    ]
    words = sorted(set().union(*(text for _, text, _ in texts)))
    bag_NW = np.array([[word in text for word in words] for _, text, _ in texts], float)
    domain_N = np.array([name for name, _, _ in texts])
    bad_N = np.array([bad for _, _, bad in texts])

    def log_rate(rows_N) -> np.ndarray:
        """How often each word is present, with add-one smoothing."""
        return np.log((bag_NW[rows_N].sum(0) + 1) / (rows_N.sum() + 2))

    rng, result = np.random.default_rng(0), {}
    for name in dict.fromkeys(domain_N.tolist()):
        test = domain_N == name
        # the log-odds of bad of naive Bayes, from the words that are present
        score = bag_NW[test] @ (log_rate(~test & bad_N) - log_rate(~test & ~bad_N))
        measured = auc(score, bad_N[test])
        null = [auc(score, rng.permutation(bad_N[test])) for _ in range(PERMUTATIONS)]
        low, high = np.quantile(null, [0.025, 0.975])
        inside = low <= measured <= high
        result[name] = {"auc": measured, "null95": [low, high], "inside": inside}
    return result


def auc(score: np.ndarray, bad: np.ndarray) -> float:
    """The probability that a bad text scores above a good one, ties counting half."""
    gap = score[bad][:, None] - score[~bad][None, :]
    return ((gap > 0) + 0.5 * (gap == 0)).mean()
