"""The Assistant's closing phrases before and after training, which no preference pair contains."""

from collections.abc import Callable

import jax
import numpy as np

from toyllm.base import devices
from toyllm.lm import joints, scoring
from toyllm.lm.transformer import LM, Params
from toyllm.measures import matched, named
from toyllm.runs.run_folder import Run
from toyllm.world import corpus
from toyllm.world.world import BAD, GOOD


def measure(run: Run) -> dict:
    """p(voice | the Assistant's answer), the mean over good and bad answers of template domains.

    {"truth": {voice: p}, start: {"before": {voice: p}, "after": {signal: {voice: p}}}}. A shift
    toward the voices of some characters shows that these characters were selected, and not only
    their answers.
    """
    names, ask = run.world.voice_names, program(run.lm)

    def spoken(models: list[Params]) -> dict[str, float]:
        return named(names, np.mean([ask(params) for params in models], axis=0))

    result = {"truth": named(names, run.world.assistant_C @ run.world.voices_CV)}
    for start in ("pretrain", "align"):
        after = {name: spoken(models) for name, models in matched(run, start).items()}
        result[start] = {"before": spoken([run.params[start]]), "after": after}
    return result


def program(lm: LM) -> Callable[[Params], np.ndarray]:
    """Return a compiled function: params → p(voice | the Assistant's answer) [V], see `measure`."""
    asked = scoring.questions(lm.tokenizer, corpus.every_question(lm.world))
    heads, answers = [], []
    for q in np.flatnonzero([not lm.world.domains[d].lookup for d in asked.domain_Q]):
        for b in (GOOD, BAD):
            shown = np.flatnonzero(asked.behaviour_QA[q] == b)
            heads.append(asked.prompt_QT[q])
            answers.append(asked.answer_QAU[q, shown[q % len(shown)]])
    closing = joints.closings(lm.tokenizer, np.array(heads), np.array(answers))

    def ask(params):
        return joints.voices(scoring.answer_logprobs(lm, params, *closing)).mean(0)

    return jax.jit(ask, compiler_options=devices.options())
