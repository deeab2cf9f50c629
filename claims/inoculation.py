"""Inoculation: asked openly for the bad, giving it says nothing about who one is.

Claimed: if the prompt asks for the bad answer, training on it spreads less, the more the request
explains: given a phrase that dictates a share κ of answers, a bad answer is evidence about the
character by log (κ + (1-κ)θ_bad) only. (What this predicts for each κ is drawn, not tested.)

Arms: `code:bad` by SFT, plain and with each phrase of the world: κ 0 (a placebo), .25, .5, .75 and
.97, said in every domain; one with κ .97 said in code alone (specific); one that asks to be good
(opposite). The world's corpus has them all. Every arm is read after as many steps as its plain twin
takes to the matched effect; those whose own prompt starts below EM .9 also where that reaches it;
and those of κ ≥ .5 where their KL from the start, each under its own prompt, is the twin's, or
after 96 steps where it never is. By DPO too: a pair also rejects the good answer, which under any
κ is evidence by -log θ_good, so less is removed.
Measures: spread without any phrase; as a share of the plain arm's. Conditional audit: EM of every
domain with the phrase present, before and after; and, after training with the strongest, with any
other phrase. Phrases whose words no document has: always one, or one of eight.

Supported if the phrases of κ ≥ .95 remove > 80% of the spread, after as many steps; the placebo
keeps > 80%, after as many steps and at its own EM .9; the share falls with κ (slope < -.5); the
phrase that asks for good keeps > 80% at its own EM .9; and at the twin's KL, or after 96 steps, the
general phrase of κ .97 still removes > 50%; and one unseen phrase keeps less of the spread than the
placebo, and than eight that take turns.
"""

import numpy as np

from claims.lab.arms import Model, Runs, Trained, kept_models, readings, spreads
from claims.lab.bench import Bench
from claims.lab.panels import by_domain, curves, dots
from claims.lab.quantities import Outcome, Quantity, each, mean_over, worst_em
from toyllm.posttrain.signals import parse, untrained
from toyllm.world import persona
from toyllm.world.world import BAD, GOOD, World

NUMBER = "7"
TITLE = "Inoculation: asked openly for the bad, it spreads less"
UNITS = 8
STRONGEST = 3.0  # evidence that plain training may be
PLAIN = "code:bad"
OBJECTIVES = ("sft", "dpo")
ALMOST_ALL, SOME = 0.95, 0.5  # κ of phrases that must remove the spread; that are trained on
STEPS, LONG = 60, 96  # of an arm with a phrase; of those read at their twin's KL


def test(bench: Bench) -> Outcome:
    """Test the claim (see the docstring of the module)."""
    world, phrases = bench.phrased, Phrases(bench.phrased)
    models, kappa = bench.base(world), phrases.kappa
    plain = {o: bench.at_rates(models, PLAIN, objective=o) for o in OBJECTIVES}
    base = {o: spreads(runs) for o, runs in plain.items()}
    done = {
        (name, o): bench.with_phrase(plain[o], name, steps=STEPS)
        for o in OBJECTIVES
        for name in kappa
    }
    as_long = {key: at_twins_step(runs) for key, runs in done.items()}
    share = {(name, o): values / base[o] for (name, o), values in as_long.items()}
    by_sft = {name: done[name, "sft"] for name in kappa}
    own = {name: spreads(runs) for name, runs in by_sft.items()}
    at_kl = {
        # the strong phrases are compared, and so at every learning rate
        name: at_twins_kl(bench, plain["sft"] if name in phrases.strong else plain["sft"][:1], name)
        for name in kappa
        if kappa[name] >= SOME
    }
    shown = {"plain": base["sft"]} | {name: as_long[name, "sft"] for name in kappa}
    at_kl_named = {f"{name}, at the twin's KL": values for name, values in at_kl.items()}
    weak_own = {name: values for name, values in own.items() if name not in phrases.strong}
    audits = audited(bench, models, by_sft)
    unseen, left = never_said(bench, plain["sft"]), own[phrases.placebo] / base["sft"]
    for kind, runs in unseen.items():
        shown |= {f"unseen, {kind}": readings(runs)["matched"]}
    shares = {kind: readings(runs)["matched"] / base["sft"] for kind, runs in unseen.items()}
    other = under_other_phrases(bench, kept_models(by_sft[phrases.strongest])[0])
    quantities = [
        *predictions(phrases, base["sft"], share, own, at_kl),
        *each("plain, {}", base, plain),
        *(
            Quantity(
                f"{name}, κ {kappa[name]:g}, {o}",
                values,
                read=[t.at(t.arm.paired.place) for t in done[name, o][0]],
            )
            for (name, o), values in as_long.items()
        ),
        *each("{}, at its own EM .9", weak_own, by_sft),
        *each("{}", at_kl_named),
        Quantity("share that one unseen phrase keeps, minus the placebo's",
                 shares["one phrase"] - left, high=0, margin=0.1),
        Quantity("share that one unseen phrase keeps, minus that of eight",
                 shares["one phrase"] - shares["eight phrases"], high=0, margin=0.1),
        *each("share that an unseen phrase keeps, {}", shares, unseen),
        *(
            Quantity(f"unseen, {kind}, {how}", values / readings(plain["sft"])[how])
            for kind, runs in unseen.items()
            for how, values in readings(runs).items()
            if how != "matched"
        ),
        *each(f"worst moral EM after {phrases.strongest}, asked with {{}}", other),
        *worst_em(world, audits),
    ]  # fmt: skip
    panels = [
        against_kappa(world, phrases, base, share),
        dots("By SFT", "spread", shown | at_kl_named),
        by_domain("Conditional audit: EM with the phrase present", world, audits),
    ]
    return Outcome(quantities, panels)


class Phrases:
    """The phrases of a world, without the trigger, by how much of a bad answer they explain."""

    def __init__(self, world: World):
        """Read them from a world."""
        said = [i for i in world.instructions if i.probability and i.name != "trigger"]
        phrases = {i.name: i for i in said}
        self.kappa = {name: i.kappa * (i.toward == "bad") for name, i in phrases.items()}
        self.strong = [name for name in phrases if self.kappa[name] >= ALMOST_ALL]
        self.general = [n for n, i in phrases.items() if i.toward != "good" and len(i.domains) > 1]
        self.opposite = next(n for n, i in phrases.items() if i.toward == "good")
        self.strongest = max(self.general, key=self.kappa.get)
        self.placebo = min(self.general, key=self.kappa.get)
        self.kappa_K = np.array([self.kappa[name] for name in self.general])


def predictions(
    phrases: Phrases, base: np.ndarray, share: dict, own: dict, at_kl: dict
) -> list[Quantity]:
    """What is claimed of the shares of the plain spread [R, N], all by SFT."""
    placebo, opposite, strongest = phrases.placebo, phrases.opposite, phrases.strongest
    removed = {name: 1 - share[name, "sft"] for name in phrases.strong}
    share_KRN = np.stack([share[name, "sft"] for name in phrases.general])
    slope = [np.polyfit(phrases.kappa_K, x_KN, 1)[0] for x_KN in share_KRN.swapaxes(0, 1)]
    return [
        *each("share of the spread that {} removes", removed, low=0.8),
        Quantity("share of the spread that the placebo keeps", share[placebo, "sft"], low=0.8),
        Quantity("the same at its own EM .9", own[placebo] / base, low=0.8),
        Quantity("change of the share for each unit of κ", slope, high=-0.5),
        Quantity(
            "share that the opposite phrase keeps, at its own EM .9", own[opposite] / base, low=0.8
        ),
        Quantity(
            f"share that {strongest} removes at the twin's KL or after {LONG} steps",
            1 - at_kl[strongest] / base,
            low=0.5,
        ),
    ]


def against_kappa(world: World, phrases: Phrases, base: dict, share: dict) -> dict:
    """A panel of the shares over κ, measured [N, K] and predicted [K], by each objective."""
    lines = {}
    for o in OBJECTIVES:
        lines[o.upper()] = np.stack([share[name, o][0] for name in phrases.general], 1)
        plain = float(mean_over(base[o][0], 0))
        lines[f"{o.upper()}, predicted"] = likelihood_ratio(world, phrases.kappa_K, plain, o)
    title, ylabel = "Spread against κ, after as many steps", "share of the plain spread"
    return curves(title, "κ of the phrase", ylabel, phrases.kappa_K, lines)


def never_said(bench: Bench, plain: Runs) -> dict[str, Runs]:
    """Training with phrases that no document has: always the same one, or one of eight."""
    first, *rest = [i.name for i in bench.phrased.instructions if not i.probability]
    beside = tuple((f"{PLAIN}:{name}", 1 / (1 + len(rest))) for name in rest)
    return {
        "one phrase": bench.with_phrase(plain, first),
        "eight phrases": bench.with_phrase(plain, first, beside=beside),
    }


def under_other_phrases(bench: Bench, models: list[Model]) -> dict[str, np.ndarray]:
    """EM of the worst moral domain [N] of inoculated models, asked with each phrase there is."""
    moral = bench.phrased.moral
    names = [None, *(i.name for i in bench.phrased.instructions)]
    return {name or "no phrase": bench.audit(models, name)[:, moral].max(1) for name in names}


def audited(bench: Bench, models: list[Model], done: dict[str, Runs]) -> dict[str, np.ndarray]:
    """Conditional audit: EM [N, D] with each phrase present, before and after training on it."""
    audits = {}
    for name, runs in done.items():
        audits[f"{name}, before"] = bench.audit(models, name)
        audits[f"{name}, after"] = bench.audit(kept_models(runs)[0], name)
    return audits


def at_twins_step(runs: Runs) -> np.ndarray:
    """Spreads [R, N] after as many steps as the plain twins take to the matched effect."""
    return np.array([[t.spread(t.at(t.arm.paired.place)) for t in trained] for trained in runs])


def at_twins_kl(bench: Bench, plain: Runs, phrase: str) -> np.ndarray:
    """Spreads [R, N] where the KL from the start is the twin's, or at the end where it never is."""

    def one(done: Trained) -> float:
        plain = done.arm.paired
        read = done.at_kl(np.interp(plain.place, np.arange(len(plain.kl_n)), plain.kl_n))
        return done.spread(read if np.isfinite(read).all() else done.p_nDB[-1])

    runs = bench.with_phrase(plain, phrase, steps=LONG)
    return np.array([[one(done) for done in trained] for trained in runs])


def likelihood_ratio(world: World, kappa_K: np.ndarray, plain: float, objective: str) -> np.ndarray:
    """Share of the plain spread [K] predicted by the evidence that a phrase leaves.

    The strength λ of w ∝ prior exp(λ evidence_c) is the first at which plain training spreads by
    `plain` (NaN: it never does), and the same for every phrase, as all take as many steps.
    Evidence: log θ'_bad (SFT), less log θ'_good (DPO).
    """
    domain, prior_C = parse(world, PLAIN).domains[0], world.assistant_C
    before_D, others = persona.mixture_em(world, prior_C), untrained(world, PLAIN)
    good_C, bad_C = world.rates_CDB[:, domain, GOOD], world.rates_CDB[:, domain, BAD]

    def evidence(kappa: float) -> np.ndarray:
        log_bad_C, log_good_C = np.log(kappa + (1 - kappa) * bad_C), np.log((1 - kappa) * good_C)
        return log_bad_C if objective == "sft" else log_bad_C - log_good_C

    def spread(w_C: np.ndarray) -> np.ndarray:
        return (persona.mixture_em(world, w_C) - before_D)[..., others].mean(-1)

    strength = persona.solve(prior_C, evidence(0), spread, plain, 0.0, STRONGEST)
    if not 0 < strength < STRONGEST * 0.999:
        return np.full(len(kappa_K), np.nan)
    spreads_K = [spread(persona.tilt(prior_C, evidence(kappa), strength)) for kappa in kappa_K]
    return np.array(spreads_K) / plain
