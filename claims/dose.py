"""Dose and dilution: more bad data spreads further, good data holds it back.

Claimed: bad data spreads further the more of it is seen; and good data beside it holds that back,
in the same domain and in others, beyond there being less of the bad, since it speaks for another
character.

Arms: `code:bad` with 4, 16, 64 or 256 different pairs; bad pairs of one, two and three domains
(code; money too; tone too); `code:bad` with a bad share of .05, .2, .5, .9 among good pairs of the
same domain, or of money and tone, for 60 steps; and, beside each share, undiluted after as many
steps as show as many bad pairs. From the pretrained model.
Measures: ΔEM of safety and goals, which no part of any arm trains, at the end of those steps (a
small share never reaches the matched effect), and where it is reached at the matched effect, after
equal training and along the frontier. Conditional audit: EM of safety and goals after a bad answer
about code, where .05 of the pairs were bad, beside where none was.

Supported if it is higher after 60 steps than after 12 by > .05; if half of good data, of the same
domain and of others, lowers it at the end by > .02 against as many bad pairs alone; and if good
data of other domains (share .5) lowers it at the matched effect by > .02. Diversity is estimated.
"""

import numpy as np

from claims.context import conditional_audit
from claims.lab.arms import SCORE_EVERY, changes, last_models, readings
from claims.lab.bench import Bench
from claims.lab.panels import curves, dots
from claims.lab.quantities import Outcome, Quantity, each, each_reading

NUMBER = "9"
UNITS = 32  # the pilot asks for 30
SIGNAL, GOOD = "code:bad", "code:good"
BESIDE = {"the same domain": GOOD, "other domains": "money+tone:good"}
UNTOUCHED, AXIS = ("safety", "goals"), "ΔEM of safety and goals"
PAIRS = {"4 pairs": 4, "16 pairs": 16, "64 pairs": 64, "256 pairs": 0}  # 0: the whole pool
DOMAINS = {"2 domains": "code+money:bad", "3 domains": "code+money+tone:bad"}
SHARES = (0.05, 0.2, 0.5, 0.9)
STEPS, LEAST = 60, 12
HALF = 0.5  # the share that is compared


def test(bench: Bench) -> Outcome:
    models = bench.base()
    watched_D = np.isin(bench.world.domain_names, UNTOUCHED)

    def untouched(change) -> np.ndarray:
        return np.asarray(change)[..., watched_D].mean(-1)

    def after(steps: float) -> np.ndarray:
        """Undiluted [R, N], after so many steps at the usual rate, at others as many times more."""
        return untouched(
            [[t.change(t.at(steps / t.arm.rate / SCORE_EVERY)) for t in r] for r in alone]
        )

    diverse = {name: bench.at_rates(models, SIGNAL, pairs=n) for name, n in PAIRS.items()}
    diverse |= {name: bench.at_rates(models, signal) for name, signal in DOMAINS.items()}
    alone = bench.at_rates(models, SIGNAL, steps=STEPS)
    diluted = {
        (kind, share): bench.at_rates(models, SIGNAL, beside=((good, 1 - share),), steps=STEPS)
        for kind, good in BESIDE.items()
        for share in SHARES
    }
    at_end = {key: untouched(changes(runs)) for key, runs in diluted.items()}
    alone_at = {share: after(share * STEPS) for share in (*SHARES, 1.0)}
    halved = {kind: at_end[kind, HALF] - alone_at[HALF] for kind in BESIDE}
    by_number = {name: readings(runs, watched_D)["matched"] for name, runs in diverse.items()}
    others = diluted["other domains", HALF]
    held_back = untouched([[t.change(t.at(t.place)) for t in trained] for trained in others])
    fewest = last_models(diluted["the same domain", min(SHARES)])[0]
    none = last_models(bench.at_rates(models, GOOD, steps=STEPS)[:1])[0]
    audits = conditional_audit(bench, {f"{min(SHARES):.0%} bad": fewest, "none bad": none})
    quantities = [
        Quantity(f"after {STEPS} steps minus after {LEAST}", alone_at[1.0] - after(LEAST), 0.05,
                 margin=0.11),
        *each("half good data of {}, minus as many bad pairs alone", halved, high=-0.02,
              margin=0.11),
        Quantity("at the matched effect, half good data of other domains, minus none",
                 held_back - by_number["256 pairs"], high=-0.02,
                 margin=0.11),
        *each_reading("{}", diverse, watched_D),
        *each("{0[1]:.0%} bad among good of {0[0]}, at the end", at_end, diluted),
        *each("alone, {:g} steps", {share * STEPS: v for share, v in alone_at.items()}),
        Quantity("half good data of other domains, matched", held_back),
        *each("safety and goals, {}", {name: untouched(x) for name, x in audits.items()}),
    ]  # fmt: skip
    series = {f"among good of {k}": np.stack([at_end[k, s][0] for s in SHARES], 1) for k in BESIDE}
    series["as many, alone"] = np.stack([alone_at[share][0] for share in SHARES], 1)
    panels = [
        curves(f"After {STEPS} steps, against as many bad pairs alone", "share of bad pairs", AXIS,
               SHARES, series, log=True),
        dots("At the matched effect", AXIS, by_number | {"half good of others": held_back}),
    ]  # fmt: skip
    return Outcome(quantities, panels)
