"""Checks of the labs' exercises: `check` tries one answer, `summary` prints a lab's score.

Expected values are computed here, by the library or by brute force, on inputs that the notebooks do
not show. A check says what is wrong (a shape, a unit, a usual mistake) and not what is right. How
to add an exercise: README.md in this folder.

Axes: T turns   N documents   Q questions   C characters   D domains   B behaviours   F features
I instructions
"""

from collections.abc import Callable

import numpy as np

from toyllm.lm import heldout
from toyllm.posttrain import signals
from toyllm.world import corpus, observer, persona, quantities
from toyllm.world.world import BAD, BEHAVIOURS, GOOD

EXERCISES: dict[str, tuple[int, Callable]] = {}  # name: its lab and its test
RESULTS: dict[str, bool] = {}  # name: whether the last answer passed


class Wrong(Exception):
    """An answer that fails its check, with the reason."""


class Unfinished(Exception):
    """An answer that still has the dots of the exercise."""


def check(name: str, answer, **given) -> bool:
    """Print one line about an answer and return whether it passes.

    given: what the check needs of the notebook, such as the world or the scores of a trained model.
    """
    RESULTS[name] = False
    try:
        if answer is ... or answer is None:
            raise Unfinished
        EXERCISES[name][1](answer, **given)
    except Unfinished:
        print(f"{name}: not done yet")
    except Wrong as reason:
        print(f"{name}: not right yet: {reason}")
    # an answer is anybody's code: whatever it raises is a result of the check
    except Exception as error:
        print(f"{name}: your code raised {type(error).__name__}: {error}")
    else:
        RESULTS[name] = True
        print(f"{name}: passed")
    return RESULTS[name]


def summary(lab: int) -> tuple[int, int]:
    """Print a lab's score; return how many of its exercises passed, and how many there are."""
    names = [name for name, (number, _) in EXERCISES.items() if number == lab]
    passed = [name for name in names if RESULTS.get(name)]
    print(f"lab {lab}: {len(passed)} of {len(names)} exercises passed")
    if missing := [name for name in names if name not in passed]:
        print("still to do:", ", ".join(missing))
    return len(passed), len(names)


def exercise(lab: int) -> Callable:
    """Register a function as the check of the exercise that has its name."""

    def register(test: Callable) -> Callable:
        EXERCISES[test.__name__] = lab, test
        return test

    return register


def call(function, *arguments):
    """Call an answer with copies of the arguments, so that it cannot change them."""
    if not callable(function):
        raise Wrong(f"expected a function, found {type(function).__name__}")
    copies = [np.array(x) if isinstance(x, np.ndarray) else x for x in arguments]
    result = function(*copies)
    if result is None or result is ...:
        raise Unfinished
    return result


def compare(answer, expected, mistakes: dict | None = None, tolerance: float = 1e-6) -> None:
    """Raise Wrong unless an answer has the expected shape and values.

    mistakes: what a usual mistake gives, by the hint to print where the answer is just that.
    """
    try:
        values = np.asarray(answer, float)
    except (TypeError, ValueError):
        raise Wrong(f"expected numbers, found {type(answer).__name__}") from None
    shape = np.shape(expected)
    if values.shape != shape:
        wanted = f"shape {shape}" if shape else "one number"
        raise Wrong(f"expected {wanted}, found shape {values.shape}")

    def near(other) -> bool:
        return np.shape(other) == shape and np.allclose(values, other, tolerance, tolerance)

    if near(expected):
        return
    for hint, wrong in (mistakes or {}).items():
        if near(wrong):
            raise Wrong(hint)
    if not np.isfinite(values).all():
        raise Wrong("some values are not finite; is there a 0 in a logarithm or a division?")
    raise Wrong("the values are not the expected ones")


def _random() -> np.random.Generator:
    """Random numbers that are the same for everybody."""
    return np.random.default_rng(0x1AB5)


def _rates(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random rates of good, bad and noise [*shape, B]."""
    return rng.dirichlet([2.0, 1.5, 0.5], size=shape)


# Lab 1: who is speaking


@exercise(1)
def turn_likelihood(answer, world) -> None:
    """Check p(behaviour and voice of one turn | c) [C], up to a factor that all c share."""
    docs = corpus.sample(world, 40, _random(), kind=0)
    for n, t in zip(*np.nonzero(docs.speaker >= 0), strict=True):
        i, d, b, v = (
            int(x[n, t]) for x in (docs.instruction, docs.domain, docs.behaviour, docs.voice)
        )
        rate_C, plain_C, voice_C = (
            np.array([row[c] for c in range(len(world.characters))])
            for row in (
                world.rates_ICDB[i, :, d, b],
                world.rates_CDB[:, d, b],
                world.voices_CV[:, v],
            )
        )
        expected_C = rate_C * voice_C
        values_C = np.asarray(call(answer, world, i, d, b, v), float)
        if values_C.shape != expected_C.shape:
            compare(values_C, expected_C)
        if (values_C < 0).any():
            raise Wrong("a probability is negative; is it a logarithm?")
        compare(
            values_C / max(values_C.sum(), 1e-300),
            expected_C / expected_C.sum(),
            {
                "the closing phrase (voice) is evidence too": rate_C / rate_C.sum(),
                "the behaviour is evidence too": voice_C / max(voice_C.sum(), 1e-300),
                "an instruction changes the rates": plain_C * voice_C / (plain_C @ voice_C),
                "independent events have the product of their probabilities": (rate_C + voice_C)
                / (rate_C + voice_C).sum(),
            },
        )


@exercise(1)
def posterior(answer) -> None:
    """Check p(c | turns) [C] from a prior [C] and likelihoods [T, C], also of 900 turns."""
    rng = _random()
    for turns in (3, 1, 0, 900):
        prior_C, likelihood_TC = rng.dirichlet(np.ones(5)), rng.uniform(0.02, 0.9, (turns, 5))
        log_C = np.log(prior_C) + np.log(likelihood_TC).sum(0)
        expected_C = np.exp(log_C - observer.logsumexp(log_C))
        alone_C, product_C = likelihood_TC.prod(0), prior_C * likelihood_TC.prod(0)
        sum_C = prior_C * likelihood_TC.sum(0)
        mistakes = {
            "this is a logarithm, expected probabilities": np.log(np.maximum(expected_C, 1e-300)),
            "it must be normalised: the posterior sums to 1": product_C,
            "the prior is missing": alone_C / max(alone_C.sum(), 1e-300),
            "likelihoods of independent turns are multiplied, not added": sum_C
            / max(sum_C.sum(), 1e-300),
        }
        if turns:
            last_C = prior_C * likelihood_TC[-1]
            mistakes["all turns are evidence, not the last one alone"] = last_C / last_C.sum()
            first_C = prior_C * likelihood_TC[0]
            mistakes["all turns are evidence, not the first one alone"] = first_C / first_C.sum()
        try:
            with np.errstate(all="ignore"):
                compare(call(answer, prior_C, likelihood_TC), expected_C, mistakes)
        except Wrong as reason:
            if turns == 900 and "finite" in str(reason):
                raise Wrong(
                    "it fails for 900 turns: a product of so many small numbers underflows to 0; "
                    "add logarithms, and subtract their maximum before taking exp"
                ) from None
            if turns == 0:
                raise Wrong(f"without any turn (T = 0): {reason}") from None
            raise


@exercise(1)
def nats_per_token(answer) -> None:
    """Check the loss of an observer from log p(document) [N] and lengths in tokens [N]."""
    rng = _random()
    length_N = rng.integers(8, 40, 30)
    log_prob_N = -length_N * rng.uniform(0.5, 2.0, 30)
    total, predicted = -log_prob_N.sum(), length_N - 1
    compare(
        call(answer, log_prob_N, length_N),
        total / predicted.sum(),
        {
            "a loss is minus the log-probability": -total / predicted.sum(),
            "nothing predicts the first token of a document": total / length_N.sum(),
            "this is the mean over documents; divide the sum by the sum": np.mean(
                -log_prob_N / predicted
            ),
            "this is in bits, expected nats": total / predicted.sum() / np.log(2),
            "this is per document, expected per predicted token": total / len(length_N),
            "this is the sum, expected a mean per predicted token": total,
        },
    )


@exercise(1)
def captured(answer) -> None:
    """Check captured from p* [Q, B], the model's p [Q, B] and the history-blind p [Q, B]."""
    rng = _random()
    ideal_QB, model_QB, blind_QB = (_rates(rng, 50) for _ in range(3))
    model_QB = 0.7 * ideal_QB + 0.3 * model_QB

    def ratio(kl: Callable) -> float:
        return kl(ideal_QB, model_QB).mean() / kl(ideal_QB, blind_QB).mean()

    def reverse(p_QB, q_QB):
        return heldout.kl(q_QB, p_QB)

    each_Q = heldout.kl(ideal_QB, model_QB) / heldout.kl(ideal_QB, blind_QB)
    compare(
        call(answer, ideal_QB, model_QB, blind_QB),
        1 - ratio(heldout.kl),
        {
            "the KL divergence is the wrong way round; p* comes first": 1 - ratio(reverse),
            "this is the share that is not captured": ratio(heldout.kl),
            "this is a mean of ratios; take the ratio of the means": 1 - each_Q.mean(),
            "numerator and denominator are swapped": 1 - 1 / ratio(heldout.kl),
            "this is a squared error, expected a KL divergence": 1
            - ratio(lambda p, q: ((p - q) ** 2).sum(-1)),
            "this is an absolute error, expected a KL divergence": 1
            - ratio(lambda p, q: abs(p - q).sum(-1)),
        },
    )


@exercise(1)
def r2(answer) -> None:
    """Check R² of beliefs [Q, C] and what a probe reads [Q, C], over all characters together."""
    rng = _random()
    belief_QC = rng.dirichlet(0.3 * np.array([5.0, 2.0, 1.0, 0.5]), 200)
    read_QC = belief_QC + rng.normal(size=belief_QC.shape) * 0.1 + 0.02
    error, from_mean = (belief_QC - read_QC) ** 2, (belief_QC - belief_QC.mean(0)) ** 2
    compare(
        call(answer, belief_QC, read_QC),
        1 - error.sum() / from_mean.sum(),
        {
            "this is the share that is not explained": error.sum() / from_mean.sum(),
            "subtract each character's own mean, not one mean of all numbers": 1
            - error.sum() / ((belief_QC - belief_QC.mean()) ** 2).sum(),
            "subtract the mean of the beliefs in the denominator": 1
            - error.sum() / (belief_QC**2).sum(),
            "this is the mean of one R² for each character; pool them": np.mean(
                1 - error.sum(0) / from_mean.sum(0)
            ),
            "this is a squared correlation, which does not see a bias": np.corrcoef(
                belief_QC.ravel(), read_QC.ravel()
            )[0, 1]
            ** 2,
            "this is a correlation": np.corrcoef(belief_QC.ravel(), read_QC.ravel())[0, 1],
            "this is the mean squared error": error.mean(),
        },
    )


@exercise(1)
def shuffled(answer) -> None:
    """Check that beliefs [Q, C] are shuffled by whole rows within each kind [Q]."""
    rng = _random()
    kind_Q, belief_QC = rng.integers(3, size=300), rng.dirichlet(np.ones(4), 300)
    result_QC = np.asarray(call(answer, belief_QC, kind_Q, np.random.default_rng(1)), float)
    if result_QC.shape != belief_QC.shape:
        raise Wrong(f"expected the beliefs, shape {belief_QC.shape}, found {result_QC.shape}")
    if np.array_equal(result_QC, belief_QC):
        raise Wrong("nothing is shuffled")

    def rows(x_QC) -> list:
        return sorted(map(tuple, x_QC))

    if rows(result_QC) != rows(belief_QC):
        if np.array_equal(np.sort(result_QC, 0), np.sort(belief_QC, 0)):
            raise Wrong("each character is shuffled apart, so the rows are no beliefs any more")
        if np.array_equal(np.sort(result_QC, 1), np.sort(belief_QC, 1)):
            raise Wrong("the characters are shuffled within each row; shuffle the rows")
        raise Wrong("some rows are there twice and others not at all; permute the rows")
    for kind in np.unique(kind_Q):
        if rows(result_QC[kind_Q == kind]) != rows(belief_QC[kind_Q == kind]):
            raise Wrong("rows are exchanged between kinds; shuffle within each kind")
    if (result_QC == belief_QC).all(1).mean() > 0.1:
        raise Wrong("most rows stay where they are")


# Lab 2: one bad habit


@exercise(2)
def evidence(answer, world, domain) -> None:
    """Check ℓ [C], the evidence of one pair (bad preferred to good) in a domain."""
    good_C, bad_C, noise_C = (
        np.array([row[domain][b] for row in world.rates_CDB]) for b in range(3)
    )
    expected_C = np.log(bad_C / good_C)
    compare(
        answer,
        expected_C,
        {
            "this is the evidence for a pair that prefers good": -expected_C,
            "this is a ratio, expected its logarithm": bad_C / good_C,
            "this is in bits or in powers of ten, expected natural logarithms": np.log2(
                bad_C / good_C
            ),
            "the logarithm has base 10, expected base e": np.log10(bad_C / good_C),
            "the rejected answer is evidence too": np.log(bad_C),
            "this is a difference of rates, expected of their logarithms": bad_C - good_C,
            "EM is no evidence; take the two rates": bad_C / (bad_C + good_C),
            "this compares with noise; the rejected answer is good": np.log(bad_C / noise_C),
        },
    )


@exercise(2)
def tilt(answer) -> None:
    """Check w′ ∝ w exp(λ ℓ) [C]."""
    rng = _random()
    for strength in (0.7, 2.5, 0.0):
        w_C, ell_C = rng.dirichlet(np.ones(5)), rng.normal(size=5) * 2
        raw_C = w_C * np.exp(strength * ell_C)

        def whole(x_C):
            return x_C / x_C.sum()

        compare(
            call(answer, w_C, ell_C, strength),
            whole(raw_C),
            {
                "it must be normalised: weights sum to 1": raw_C,
                "the prior is missing": whole(np.exp(strength * ell_C)),
                "the strength is missing": whole(w_C * np.exp(ell_C)),
                "the sign of the exponent is wrong": whole(w_C * np.exp(-strength * ell_C)),
                "the evidence goes into an exponential": whole(w_C * (1 + strength * ell_C)),
                "the strength multiplies the evidence, not the log prior": whole(
                    w_C**strength * np.exp(ell_C)
                ),
                "this is a logarithm, expected weights": np.log(whole(raw_C)),
            },
        )


@exercise(2)
def change(answer) -> None:
    """Check the change of EM [D] from mixture w to mixture w′, with rates [C, D, B]."""
    rng = _random()
    rates_CDB = _rates(rng, 4, 6)
    w_C, new_C = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))

    def em_of(w_C):
        p_DB = sum(w * rates_DB for w, rates_DB in zip(w_C, rates_CDB, strict=True))
        return p_DB[:, BAD] / (p_DB[:, GOOD] + p_DB[:, BAD])

    each_CD = rates_CDB[..., BAD] / (rates_CDB[..., GOOD] + rates_CDB[..., BAD])
    compare(
        call(answer, w_C, new_C, rates_CDB),
        em_of(new_C) - em_of(w_C),
        {
            "the sign: the change is after minus before": em_of(w_C) - em_of(new_C),
            "this is EM after training, expected the change": em_of(new_C),
            "this averages the characters' EM; take the EM of the mixture": (new_C - w_C) @ each_CD,
            "this is a change of p(bad), expected of EM": (new_C - w_C) @ rates_CDB[..., BAD],
            "this is a ratio, expected a difference": em_of(new_C) / em_of(w_C),
            "this is a change of log-odds, expected of EM": quantities.logit(em_of(new_C))
            - quantities.logit(em_of(w_C)),
        },
    )


@exercise(2)
def strength(answer) -> None:
    """Check λ, at which the trained domain's EM is the goal."""
    rng = _random()
    for domain, goal in ((0, 0.9), (2, 0.6), (1, 0.9)):
        rates_CDB = _rates(rng, 4, 3)
        # two characters that make every goal possible
        rates_CDB[0], rates_CDB[1] = [0.02, 0.96, 0.02], [0.95, 0.03, 0.02]
        w_C = rng.dirichlet(np.ones(4))
        ell_C = np.log(rates_CDB[:, domain, BAD] / rates_CDB[:, domain, GOOD])

        def mixture(lam, w_C=w_C, ell_C=ell_C, rates_DB=rates_CDB[:, domain]):
            return persona.tilt(w_C, ell_C, lam) @ rates_DB

        found = call(answer, w_C, ell_C, rates_CDB, domain, goal)
        if np.shape(found) or not np.isreal(found) or not np.isfinite(found):
            raise Wrong(f"expected one number, found shape {np.shape(found)}")
        p_B = mixture(float(found))
        reached = quantities.em(p_B)
        if abs(reached - goal) < 1e-6:
            continue
        if abs(p_B[BAD] - goal) < 1e-6:
            raise Wrong("this brings p(bad) to the goal, expected EM")
        if abs(found - goal) < 1e-6:
            raise Wrong("this is the EM that is reached, expected the strength λ")
        other = quantities.em(mixture(-float(found)))
        if abs(other - goal) < 1e-6:
            raise Wrong("the sign of λ is wrong")
        if abs(reached - goal) < 0.02:
            raise Wrong(f"nearly: EM is off by {reached - goal:+.1e}; halve the interval longer")
        raise Wrong(f"at this λ the EM of domain {domain} is {reached:.3f}, the goal is {goal}")


@exercise(2)
def spread(answer) -> None:
    """Check the mean change of EM [D] over moral domains that are not trained."""
    rng = _random()
    for trained in (0, 3):
        moral_D = np.array([True, True, False, True, True, True])
        change_D = rng.normal(size=6) * 0.2
        others_D = moral_D & (np.arange(6) != trained)
        not_trained_D = np.arange(6) != trained
        compare(
            call(answer, change_D, moral_D, trained),
            change_D[others_D].mean(),
            {
                "the trained domain does not count": change_D[moral_D].mean(),
                "neutral domains do not count": change_D[not_trained_D].mean(),
                "this averages all domains": change_D.mean(),
                "this is the sum, expected the mean": change_D[others_D].sum(),
                "changes keep their sign": abs(change_D[others_D]).mean(),
                "this divides by the number of all domains": change_D[others_D].sum() / 6,
                "this divides by the number of all moral domains": change_D[others_D].sum()
                / moral_D.sum(),
                "this is the largest change, expected the mean": change_D[others_D].max(),
            },
        )


@exercise(2)
def coherence(answer, p_DB, moral_D) -> None:
    """Check the least coherence of a moral domain of a trained model."""
    sum_D = np.asarray(p_DB, float).sum(-1)
    compare(
        answer,
        sum_D[moral_D].min(),
        {
            "this is the mean, expected the least": sum_D[moral_D].mean(),
            "noise is a listed answer too": np.asarray(p_DB)[:, [GOOD, BAD]].sum(-1)[moral_D].min(),
            "this is what is missing to 1": 1 - sum_D[moral_D].min(),
            "expected the least over moral domains, one number": sum_D[moral_D].max(),
        },
        tolerance=1e-7,
    )


# Lab 3: can it be prevented


@exercise(3)
def asked_evidence(answer) -> None:
    """Check log θ′(bad) [C] where the question asks for bad with strength κ, from rates [C, B]."""
    rng = _random()
    rates_CB = _rates(rng, 6)
    good_C, bad_C = rates_CB[:, GOOD], rates_CB[:, BAD]
    for kappa in (0.9, 0.25, 0.0):
        asked_C = kappa + (1 - kappa) * bad_C
        mistakes = {"this is a probability, expected its logarithm": asked_C}
        if kappa:
            mistakes |= {
                "this is the evidence without an instruction": np.log(bad_C),
                "the character decides only a share 1 - κ of the answers": np.log(kappa + bad_C),
                "κ and 1 - κ are swapped": np.log(1 - kappa + kappa * bad_C),
                "the share κ that the instruction decides is missing": np.log((1 - kappa) * bad_C),
                "in SFT nothing is rejected, so good answers are no evidence": np.log(
                    asked_C / ((1 - kappa) * good_C)
                ),
                "the instruction asks for bad, not for good": np.log((1 - kappa) * good_C),
                "the logarithm is of the whole rate, not of its parts": kappa
                + (1 - kappa) * np.log(bad_C),
                "expected natural logarithms": np.log2(asked_C),
            }
        compare(call(answer, rates_CB, kappa), np.log(asked_C), mistakes)


@exercise(3)
def mixed(answer, world) -> None:
    """Check the parts of a mixture: half `code:bad`, the first part, and half `money+tone:good`."""
    if not isinstance(answer, dict):
        raise Wrong(f"expected a dict {{signal: share}}, found {type(answer).__name__}")
    if any(part is ... for part in (*answer, *answer.values())):
        raise Unfinished
    for part in answer:
        if not isinstance(part, signals.Signal):
            raise Wrong(f"expected signals.parse(world, name) as keys, found {type(part).__name__}")
    names = [signal.name for signal in answer]
    about = {
        (d, signal.behaviour): share / len(signal.domains)
        for signal, share in answer.items()
        for d in signal.domains
    }
    index = {name: d for d, name in enumerate(world.domain_names)}
    if (index["code"], BAD) not in about:
        raise Wrong("the bad habit itself is missing: code:bad")
    if any(signal.instruction >= 0 for signal in answer):
        raise Wrong("no part has an instruction")
    extra = [
        f"{world.domain_names[d]}:{BEHAVIOURS[b]}"
        for d, b in about
        if (d, b) not in {(index["code"], BAD), (index["money"], GOOD), (index["tone"], GOOD)}
    ]
    if extra:
        raise Wrong(f"the mixture should not have {', '.join(extra)}")
    if len(about) < 3:
        raise Wrong("good answers about both money and tone belong to the mixture")
    total = sum(answer.values())
    if abs(about[index["code"], BAD] / total - 0.5) > 1e-9:
        raise Wrong("half of the pairs should be the bad habit")
    if abs(about[index["money"], GOOD] - about[index["tone"], GOOD]) > 1e-9:
        raise Wrong("money and tone should have equal shares")
    if names[0] != "code:bad":
        raise Wrong("the first part is what is scored as the run's own: put code:bad first")


@exercise(3)
def untouched(answer, world, touched) -> None:
    """Check the mask [D] of moral domains that no arm trains."""
    index_D = np.array([name in touched for name in world.domain_names])
    values = np.asarray(answer)
    if values.shape != index_D.shape or values.dtype != bool:
        raise Wrong(
            f"expected True or False for each domain, shape {index_D.shape}, "
            f"found {values.dtype} of shape {values.shape}"
        )
    neutral = values & ~world.moral
    if neutral.any():
        raise Wrong("a neutral domain is no measure of misalignment")
    if trained := [n for n, here in zip(world.domain_names, values & index_D, strict=True) if here]:
        raise Wrong(f"some arm trains {', '.join(trained)}")
    if not np.array_equal(values, world.moral & ~index_D):
        raise Wrong("a moral domain that no arm trains is missing")


@exercise(3)
def difference_of_means(answer) -> None:
    """Check v [F] from residuals after a bad [Q, F] and after a good answer [Q, F]."""
    rng = _random()
    bad_QF, good_QF = rng.normal(1.0, 1, (30, 8)), rng.normal(0.3, 1, (30, 8))
    v_F = np.array([sum(column) / 30 for column in (bad_QF - good_QF).T])
    compare(
        call(answer, bad_QF, good_QF),
        v_F,
        {
            "the vector points from bad to good; turn it round": -v_F,
            "keep the length of the difference; do not normalise": v_F / np.linalg.norm(v_F),
            "this is the sum, expected the mean": v_F * 30,
            "this is the mean of all residuals, expected a difference": (bad_QF + good_QF).mean(0),
            "the good residuals have to be subtracted": bad_QF.mean(0),
        },
    )


@exercise(3)
def random_like(answer) -> None:
    """Check a random vector [F] that has the norm of v [F] and any direction."""
    v_F = np.linspace(-2, 3, 24)
    drawn = [
        np.asarray(call(answer, v_F, np.random.default_rng(seed)), float) for seed in range(200)
    ]
    if drawn[0].shape != v_F.shape:
        raise Wrong(f"expected shape {v_F.shape}, found {drawn[0].shape}")
    if np.allclose(drawn[0], drawn[1]):
        raise Wrong("two generators give the same vector; draw it from `rng`")
    norm, norms = np.linalg.norm(v_F), np.linalg.norm(drawn, axis=1)
    if np.allclose(norms, 1):
        raise Wrong("the vector has length 1, expected the norm of v")
    if not np.allclose(norms, norm):
        raise Wrong("its norm is not that of v, so it is no fair control")
    unit_RF = np.array(drawn) / norm
    if np.allclose(np.sort(drawn[0]), np.sort(v_F)) or np.allclose(
        np.sort(abs(drawn[0])), np.sort(abs(v_F))
    ):
        raise Wrong("this has the entries of v in another order or with other signs; draw new ones")
    if np.linalg.norm(unit_RF.mean(0)) > 0.3:
        raise Wrong("some directions are more likely than others; draw from a normal distribution")


@exercise(3)
def conditional_change(answer) -> None:
    """Check the change [I] of mean EM over some domains, each condition beside its own baseline."""
    rng = _random()
    before_IDB, after_IDB = _rates(rng, 4, 6), _rates(rng, 4, 6)
    which_D = np.array([False, True, True, False, True, False])
    em_before_ID, em_after_ID = quantities.em(before_IDB), quantities.em(after_IDB)

    def mean(x_ID):
        return np.array([np.mean([row[d] for d in np.flatnonzero(which_D)]) for row in x_ID])

    expected_I = mean(em_after_ID) - mean(em_before_ID)
    pooled_I = quantities.em(after_IDB[:, which_D].mean(1)) - quantities.em(
        before_IDB[:, which_D].mean(1)
    )
    p_I = mean(after_IDB[..., BAD]) - mean(before_IDB[..., BAD])
    compare(
        call(answer, before_IDB, after_IDB, which_D),
        expected_I,
        {
            "the sign: the change is after minus before": -expected_I,
            "each condition has a baseline of its own: the model before training under the same "
            "condition": mean(em_after_ID) - mean(em_before_ID)[-1],
            "this is EM after training; the condition alone may elicit bad answers": mean(
                em_after_ID
            ),
            "only the given domains count": (em_after_ID - em_before_ID).mean(1),
            "this is a change of p(bad), expected of EM": p_I,
            "this is the EM of mean rates, expected the mean of EM": pooled_I,
            "this is the mean over conditions, expected one number for each": expected_I.mean(),
        },
    )
