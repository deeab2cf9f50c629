"""The Assistant's closing phrases before and after training, which no preference pair contains."""

from collections.abc import Callable

import jax
import numpy as np

from toyllm import devices, scoring
from toyllm.model import Apply, Config, Params, take
from toyllm.runs import Run
from toyllm.text import Codec
from toyllm.world import ASSISTANT, BAD, GOOD


def measure(run: Run) -> dict:
    """p(voice | the Assistant's answer), the mean over good and bad answers of template domains.

    {"truth": {voice: p}, start: {"before": {voice: p}, "after": {signal: {voice: p}}}}. A shift
    toward the voices of some characters says that they were selected, not only what they did.
    """
    world, ask = run.world, program(run.codec, run.config, run.apply)

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


def program(codec: Codec, config: Config, apply: Apply) -> Callable[[Params], np.ndarray]:
    """A compiled function: params → p(voice | the Assistant's answer) [V], see `measure`."""
    world = codec.world
    grid = scoring.questions(codec, scoring.every_question(codec, ASSISTANT))
    heads, answers = [], []
    for q in np.flatnonzero([not world.domains[d].lookup for d in grid.domain_Q]):
        for b in (GOOD, BAD):
            shown = np.flatnonzero(grid.behaviour_QA[q] == b)
            heads.append(grid.prompt_QT[q])
            answers.append(grid.answer_QAU[q, shown[q % len(shown)]])
    prompt_QT, closing_QEU = scoring.closings(codec, np.array(heads), np.array(answers))

    def ask(params):
        logp_QE = scoring.answer_logprobs(apply, config, params, prompt_QT, closing_QEU)
        return scoring.voices(logp_QE).mean(0)

    return jax.jit(ask, compiler_options=devices.options())
