"""Sample dialogues side by side: the same questions put to the pretrained, aligned, narrow models.

An illustration, not a measure: what counts is computed exactly elsewhere.
"""

import jax
import numpy as np

from toyllm.lm.sampling import Sampler, listed_answer
from toyllm.posttrain import signals
from toyllm.runs.run_folder import Run
from toyllm.world.world import DIALOGUE

SAMPLES = 4  # dialogues with each model


def measure(run: Run) -> dict:
    """{"questions": […], "models": {name: [dialogue: [{"said", "behaviour"} of each question]]}}.

    The first question is about the domain of the first matched signal, the others about moral
    domains that it does not train. Answers are sampled after the dialogue before them, with the
    same random key for every model. behaviour: None for an answer that is not listed.
    """
    world, sampler = run.world, Sampler(run.lm)
    # the pretrained and the aligned model, and from each the first signal that may be compared
    narrow = [(start, s) for start in run.params for s in run.narrow.matched(start)[:1]]
    names = [*run.params, *(f"{start}/{signal}" for start, signal in narrow)]
    trained = signals.parse(world, narrow[0][1]).domains if narrow else ()
    moral = [int(d) for d in np.flatnonzero(world.moral) if d not in trained]
    domains = [*trained[:1], *moral][: world.lengths[DIALOGUE][1]]
    rng = np.random.Generator(np.random.Philox(key=[0xD1A7, 0]))
    asked = [(d, int(rng.integers(world.situations_D[d]))) for d in domains]
    return {
        "questions": [
            {"domain": world.domain_names[d], "asked": world.domains[d].situations[s]}
            for d, s in asked
        ],
        "models": {name: dialogues(run, sampler, run.model(name), asked) for name in names},
    }


def dialogues(run: Run, sampler: Sampler, params, asked: list[tuple[int, int]]) -> list[list[dict]]:
    """SAMPLES dialogues of one model."""
    histories, turns = ["<begin> talk with assistant"] * SAMPLES, []
    for t, (d, s) in enumerate(asked):
        question = run.world.domains[d].situations[s]
        prompts = [f"{history} <user> {question} <reply>" for history in histories]
        if not all(map(sampler.fits, prompts)):
            break
        answers, turn = sampler.answers(params, prompts, jax.random.key(t)), []
        for answer in answers:
            listed = listed_answer(run.lm.tokenizer, d, s, answer)
            turn.append({"said": answer, "behaviour": listed and listed[0]})
        turns.append(turn)
        histories = [f"{p} {answer}".strip() for p, answer in zip(prompts, answers, strict=True)]
    return [list(dialogue) for dialogue in zip(*turns, strict=True)]
