"""The persona is in the residual stream, and narrow training moves it there.

Claimed: the stream holds who speaks, linearly; signals that say much the same of the Assistant move
the stream alike; and how far a signal moves it along the vector of malice goes with how far it
spreads.

Arms: pretrained models; and each after `D:bad` for every moral domain D and `taste:bad`, at the
matched effect.
Measures: R² of the exact posterior of characters after some turns, read from the last layer by a
ridge regression on half of the documents, and the same fitted to the beliefs of other documents
(the control). In the layer before the last block, since in the last one an answer's log-odds can be
read off: the mean shift of the stream at questions about moral domains that neither of two signals
trains, the cosine of the shifts of two bad signals, mean over pairs, beside that of each with
`taste:bad`, which says nothing of malice; and Pearson's r over the signals between the shift along
the vector of malice (measures/vectors.py) and ΔEM, each over the moral domains that it leaves
untrained, beside the mean |r| with 200 random vectors (the control).

Supported if R² exceeds its control by > .5; the cosine of two bad signals exceeds that with taste
by > .1; and r exceeds its control by > .1.
"""

from itertools import combinations

import numpy as np

from claims.lab.arms import Model, readings
from claims.lab.bench import Bench
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each
from claims.spreads import moral_signals
from toyllm.lm.heldout import later_turns
from toyllm.measures import beliefs, vectors
from toyllm.posttrain.signals import untrained
from toyllm.world import corpus

NUMBER = "20"
UNITS = 32  # the pilot asks for 32
NEUTRAL, LAYER = "taste:bad", -2  # before the last block
PROMPTS = 2400


def test(bench: Bench) -> Outcome:
    models, moral = bench.base(), moral_signals(bench.world)
    read = [linear(bench, one) for one in models]
    done = {name: bench.at_rates(models, name) for name in (*moral, NEUTRAL)}
    per_rate = [moved(bench, models, {k: runs[r] for k, runs in done.items()}) for r in
                range(len(bench.rates))]  # fmt: skip
    alike, neutral, along, chance = (np.array([x[k] for x in per_rate]) for k in range(4))
    r2, control = np.transpose(read)
    quantities = [
        Quantity("R² of beliefs minus that of the control", r2 - control, 0.5, margin=0.1),
        Quantity("cosine of the shifts of bad signals, minus with taste", alike - neutral, 0.1,
                 margin=0.17),
        Quantity("r of the shift along malice with ΔEM, minus with random vectors", along - chance,
                 0.1, margin=0.51),
        *each("r of the shift with ΔEM, {}", {"malice": along, "random vectors, |r|": chance}),
        *each("{}", {"R² of beliefs": r2, "R² of the control": control}),
        *each("cosine of shifts, {}", {"two bad signals": alike, "bad and taste": neutral}),
    ]  # fmt: skip
    shown = {"R² of beliefs": r2, "control": control, "cosine, bad signals": alike}
    shown |= {"cosine, with taste": neutral, "r with malice": along, "|r|, random": chance}
    return Outcome(quantities, [dots("In the stream", "R², cosine, r", shown)])


def linear(bench: Bench, one: Model) -> tuple[float, float]:
    """R² of beliefs read from the last layer, and of the control (see `measures.beliefs`)."""
    rng = np.random.default_rng(beliefs.SEED)
    docs = later_turns(one.world, rng, PROMPTS)
    docs = docs[rng.permutation(len(docs))]
    belief_QC, half = beliefs.read_so_far(one.world, docs), len(docs) // 2
    prompt_QT = beliefs.before_question(one.tokenizer, docs)
    x_QF = bench.programs.reader(one.tokenizer)(one.params, prompt_QT)[0][-1]
    order = beliefs.shuffle_within(10 * docs.header[:, 0] + docs.turns, rng)

    def r2(target_QC: np.ndarray) -> float:
        read_QC = beliefs.ridge(x_QF[:half], target_QC[:half], x_QF[half:])
        true_QC = belief_QC[half:]
        return 1 - ((true_QC - read_QC) ** 2).sum() / ((true_QC - true_QC.mean(0)) ** 2).sum()

    return r2(belief_QC), r2(belief_QC[order])


def moved(bench: Bench, models: list[Model], done: dict) -> tuple[np.ndarray, ...]:
    """Cosines of bad signals' shifts, with taste's; r along malice, |r| along random ones [N]."""
    world, tokenizer, result = models[0].world, models[0].tokenizer, []
    docs, read = corpus.every_question(world), bench.programs.reader(tokenizer)
    prompt_QT = tokenizer.prompts(docs, tokenizer.longest_prompt(1))
    others = {name: untrained(world, name)[docs.domain[:, 0]] for name in done}  # questions
    *bad, _ = done
    effect_SN = np.array([readings([runs])["matched"][0] for runs in done.values()])
    for n, one in enumerate(models):
        before_QD = read(one.params, prompt_QT)[0][LAYER]
        shift = {}
        for name, runs in done.items():
            model = runs[n].model
            shift[name] = model.read(read(model.params, prompt_QT)[0][LAYER] - before_QD)

        def cosine(a: str, b: str, shift=shift) -> float:
            x, y = (vectors.unit(shift[k][others[a] & others[b]].mean(0)) for k in (a, b))
            return x @ y

        def r(way_D: np.ndarray, shift=shift, effect_S=effect_SN[:, n]) -> float:
            along_S = [(shift[k][others[k]] @ way_D).mean() for k in done]
            both = np.array([along_S, effect_S])[:, np.isfinite(along_S) & np.isfinite(effect_S)]
            return np.corrcoef(both)[0, 1] if both.shape[1] > 2 else np.nan

        v_D = bench.programs.malice(one)[LAYER]
        random_RD = vectors.random_like(v_D, np.random.default_rng(one.seed), vectors.CHANCE)
        alike = np.mean([cosine(*pair) for pair in combinations(bad, 2)])
        neutral = np.mean([cosine(name, NEUTRAL) for name in bad])
        chance = np.mean([abs(r(way_D)) for way_D in random_RD])
        result.append((alike, neutral, r(v_D), chance))
    return tuple(np.transpose(result))
