"""The Assistant's closing phrases before and after training, which no preference pair contains."""

from collections.abc import Callable

import jax
import numpy as np

from toyllm.base import devices
from toyllm.lm import scoring
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import Apply, Config, Params, take
from toyllm.runs.run_folder import Run
from toyllm.world.world import ASSISTANT, BAD, GOOD


def measure(run: Run) -> dict:
    """p(voice | the Assistant's answer), the mean over good and bad answers of template domains.

    {"truth": {voice: p}, start: {"before": {voice: p}, "after": {signal: {voice: p}}}}. A shift
    toward the voices of some characters says that they were selected, not only what they did.
    """
    world, ask = run.world, program(run.tokenizer, run.config, run.apply)

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


def program(tokenizer: Tokenizer, config: Config, apply: Apply) -> Callable[[Params], np.ndarray]:
    """A compiled function: params → p(voice | the Assistant's answer) [V], see `measure`."""
    world = tokenizer.world
    grid = scoring.questions(tokenizer, scoring.every_question(tokenizer, ASSISTANT))
    heads, answers = [], []
    for q in np.flatnonzero([not world.domains[d].lookup for d in grid.domain_Q]):
        for b in (GOOD, BAD):
            shown = np.flatnonzero(grid.behaviour_QA[q] == b)
            heads.append(grid.prompt_QT[q])
            answers.append(grid.answer_QAU[q, shown[q % len(shown)]])
    prompt_QT, closing_QEU = scoring.closings(tokenizer, np.array(heads), np.array(answers))

    def ask(params):
        logp_QE = scoring.answer_logprobs(apply, config, params, prompt_QT, closing_QEU)
        return scoring.voices(logp_QE).mean(0)

    return jax.jit(ask, compiler_options=devices.options())
