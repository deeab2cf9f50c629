"""With the training cue present: p(bad | domain, instruction) before and after training."""

import jax

from toyllm import signals
from toyllm.measures.generalization import named
from toyllm.measures.learned import assistant
from toyllm.runs import Run
from toyllm.world import BAD


def measure(run: Run) -> dict:
    """{start: {signal: {"before": {domain: p}, "after": {domain: p}}}}, means over narrow seeds.

    After: at the kept parameters (the first scored step past EM .9, else the end). Every domain is
    asked with the signal's own instruction, under the Assistant, with no history.
    """
    result = {}
    for start in ("pretrain", "align"):
        result[start] = {}
        for name in run.narrow.signals(start):
            signal = signals.parse(run.world, name)
            if signal.instruction < 0:
                continue
            tables = [
                assistant(
                    run, jax.tree.map(lambda x, r=r: x[r], run.narrow.kept), signal.instruction
                )
                for r in run.narrow.rows(start, name)
            ]
            before = assistant(run, run.params[start], signal.instruction)
            result[start][name] = {
                "before": named(run.world, before[:, BAD]),
                "after": named(run.world, (sum(tables) / len(tables))[:, BAD]),
            }
    return result
