"""The Assistant's closing phrases before and after training, which no preference pair contains."""

from collections.abc import Callable

import jax
import numpy as np

from toyllm.base import devices
from toyllm.base.devices import take
from toyllm.lm import joints, scoring
from toyllm.lm.transformer import LM, Params
from toyllm.runs.run_folder import Run
from toyllm.world import corpus
from toyllm.world.world import BAD, GOOD


def measure(run: Run) -> dict:
    """p(voice | the Assistant's answer), the mean over good and bad answers of template domains.

    {"truth": {voice: p}, start: {"before": {voice: p}, "after": {signal: {voice: p}}}}. A shift
    toward the voices of some characters shows that these characters were selected, and not only
    their answers.
    """
    world, ask = run.world, program(run.lm)

    def named(p) -> dict[str, float]:
        return dict(zip(world.voice_names, map(float, np.asarray(p)), strict=True))

    result = {"truth": named(world.assistant_C @ world.voices_CV)}
    for start in ("pretrain", "align"):
        after = {}
        for name in run.narrow.matched(start):
            rows = run.narrow.rows(start, name)
            kept = [ask(take(run.narrow.kept, r)) for r in rows]
            after[name] = named(np.mean(kept, 0))
        result[start] = {"before": named(ask(run.params[start])), "after": after}
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
