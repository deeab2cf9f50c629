"""The Assistant's closing phrases before and after training, which no preference pair contains."""

import jax
import numpy as np

from toyllm import devices, scoring
from toyllm.runs import Run
from toyllm.text import PAD
from toyllm.world import ASSISTANT, BAD, GOOD


def measure(run: Run) -> dict:
    """p(voice | the Assistant's answer), the mean over good and bad answers of template domains.

    {"truth": {voice: p}, start: {"before": {voice: p}, "after": {signal: {voice: p}}}}. A shift
    toward the voices of some characters says that they were selected, not only what they did.
    """
    world, codec = run.world, run.codec
    docs = scoring.every_question(codec, ASSISTANT)
    grid = scoring.questions(codec, docs)
    prompts = []
    for q in range(len(grid)):
        if world.domains[grid.domain_Q[q]].lookup:
            continue
        head = [t for t in grid.prompt_QT[q] if t != PAD]
        for b in (GOOD, BAD):
            a = int(np.flatnonzero(grid.behaviour_QA[q] == b)[q % (grid.behaviour_QA[q] == b).sum()])
            prompts.append(head + [t for t in grid.answer_QAU[q, a] if t != PAD])
    width = max(map(len, prompts))
    prompt = np.array([[PAD] * (width - len(row)) + row for row in prompts], np.int32)
    ends = [codec.index["<user>"], codec.index["<end>"]]
    phrases = [[*codec.tokens(v), e] for v in world.voices for e in ends]
    longest = max(map(len, phrases))
    table = np.array([row + [PAD] * (longest - len(row)) for row in phrases], np.int32)
    answers = np.broadcast_to(table, (len(prompt), *table.shape))

    def ask(params):
        logp = scoring.answer_logprobs(run.apply, run.config, params, prompt, answers)
        return jax.numpy.exp(logp).reshape(len(prompt), -1, 2).sum(-1).mean(0)

    ask = jax.jit(ask, compiler_options=devices.options())
    named = lambda p: dict(zip(world.voice_names, map(float, np.asarray(p)), strict=True))  # noqa: E731
    result = {"truth": named(world.assistant_C @ world.voices_CV)}
    for start in ("pretrain", "align"):
        after = {}
        for name in run.narrow.signals(start):
            rows = run.narrow.rows(start, name)
            kept = [ask(jax.tree.map(lambda x, r=r: x[r], run.narrow.kept)) for r in rows]
            after[name] = named(np.mean(kept, 0))
        result[start] = {"before": named(ask(run.params[start])), "after": after}
    return result
