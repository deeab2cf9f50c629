"""With the training cue present: p(bad | domain, instruction) before and after training."""

import numpy as np

from toyllm.measures import matched, named
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
        for name, models in matched(run, start).items():
            signal = signals.parse(run.world, name)
            if signal.instruction < 0:
                continue
            result[start][name] = {}
            for when, asked in (("before", [run.params[start]]), ("after", models)):
                p_NDB = [run.scorer.ask(one, instruction=signal.instruction) for one in asked]
                p_D = np.mean(p_NDB, axis=0)[:, BAD]
                result[start][name][when] = named(run.world.domain_names, p_D)
    return result
