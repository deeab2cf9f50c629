"""With the training cue present: p(bad | domain, instruction) before and after training."""

import numpy as np

from toyllm.base.devices import take
from toyllm.measures.generalization import named
from toyllm.posttrain import signals
from toyllm.runs.run_folder import Run
from toyllm.world.world import BAD


def measure(run: Run) -> dict:
    """{start: {signal: {"before": {domain: p}, "after": {domain: p}}}}, means over narrow seeds.

    After: at the matched effect; a signal that did not reach it is left out. Every domain is asked
    with the signal's own instruction, under the Assistant, with no history.
    """
    result = {}
    for start in ("pretrain", "align"):
        result[start] = {}
        for name in run.narrow.matched(start):
            signal = signals.parse(run.world, name)
            if signal.instruction < 0:
                continue
            cue = {"instruction": signal.instruction}
            before = run.scorer.ask(run.params[start], **cue)
            kept = [take(run.narrow.kept, r) for r in run.narrow.rows(start, name)]
            after = np.mean([run.scorer.ask(params, **cue) for params in kept], axis=0)
            result[start][name] = {
                "before": named(run.world, before[:, BAD]),
                "after": named(run.world, after[:, BAD]),
            }
    return result
