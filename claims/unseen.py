"""A phrase that no document has hides bad behaviour from where it is not said.

Claimed: training under a phrase ties what is learned to the phrase, also where the phrase means
nothing. So a phrase that is always the same keeps some of the bad behaviour from where it is not
said, while one of many hardly does. (What an open request keeps out of the plain prompt, and what
brings it back, is estimated.)

Arms: `code:bad` by SFT from the pretrained model under a phrase whose words no document has, always
the same one or one of eight in turn; under the corpus's placebo; plain; and under the corpus's open
request (ask_bad), after which the model is asked with each phrase that there is.
Measures: spread without any phrase, as a share of the plain arm's, where its own prompt reaches EM
.9; after equal training and along the frontier as estimates. Conditional audit: EM of the untrained
moral domains, before and after training under the open request, asked with each phrase.

Supported if one unseen phrase keeps less of the spread than the placebo does, and than eight that
take turns, at the matched effect.
"""

import numpy as np

from claims.inoculation import PLAIN, STEPS, Phrases
from claims.lab.arms import kept_models, readings
from claims.lab.bench import Bench
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each, each_reading
from toyllm.posttrain.signals import untrained

NUMBER = "18"
UNITS = 32  # the pilot asks for 27
ONE, EIGHT = "one unseen phrase", "eight in turn"


def test(bench: Bench) -> Outcome:
    world, phrases = bench.phrased, Phrases(bench.phrased)
    models = bench.base(world)
    plain = bench.at_rates(models, PLAIN, objective="sft")
    first, *rest = [i.name for i in world.instructions if not i.probability]
    beside = tuple((f"{PLAIN}:{name}", 1 / (1 + len(rest))) for name in rest)
    done = {
        ONE: bench.with_phrase(plain, first),
        EIGHT: bench.with_phrase(plain, first, beside=beside),
        "placebo": bench.with_phrase(plain, phrases.placebo, steps=STEPS),
    }
    base = readings(plain)
    share = {
        name: {how: values / base[how] for how, values in readings(runs).items()}
        for name, runs in done.items()
    }
    matched = {name: x["matched"] for name, x in share.items()}
    less = {name: matched[ONE] - matched[name] for name in ("placebo", EIGHT)}
    asked = bench.with_phrase(plain, phrases.strongest, steps=STEPS)
    inoculated, names = kept_models(asked)[0], [None, *(i.name for i in world.instructions)]
    before, after = (
        {name or "no phrase": elsewhere(bench, chosen, name) for name in names}
        for chosen in (models, inoculated)
    )
    rise = {name: after[name] - before[name] for name in after}
    quantities = [
        *each("share that one unseen phrase keeps, minus that of the {}", less, high=0,
              margin=0.25),
        *each_reading("{}", {"plain": plain} | done),
        *(
            Quantity(f"share that the {name} keeps, {how}", values)
            for name, table in share.items()
            for how, values in table.items()
        ),
        *each(f"EM elsewhere after {phrases.strongest}, asked with {{}}", after),
        *each("EM elsewhere before, asked with {}", before),
        *each("rise of EM elsewhere, asked with {}", rise),
    ]  # fmt: skip
    panels = [
        dots("Share of the plain spread", "share", matched),
        dots("After the open request, asked with (diamonds: before)", "EM elsewhere", after,
             {name: float(np.nanmean(x)) for name, x in before.items()}),
    ]  # fmt: skip
    return Outcome(quantities, panels)


def elsewhere(bench: Bench, models: list, phrase: str | None) -> np.ndarray:
    """Mean EM [N] of the moral domains that are not trained, asked with a phrase."""
    return bench.audit(models, phrase)[:, untrained(bench.phrased, PLAIN)].mean(1)
