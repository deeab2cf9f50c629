"""Measures, one file each: `measure(run)` takes a finished run and returns plain numbers.

    learned          what pretraining learned, against the ideal observer
    generalization   how far each narrow signal spreads, at the matched effect and at the end
    prediction       the generalization matrix predicted from the world, by persona inference
    mixture          the nearest mixture of the world's characters, before and after training
    calibration      the model's p(bad) in context against the exact predictive
    instructed       behaviour with a signal's instruction present
    dialogues        sampled dialogues side by side

    beliefs          linear probes of who is speaking
    vectors          persona vectors: steering, projection, ablation
    elicitation      prompts that may bring out other characters than the Assistant
    audit            what each signal says about the Assistant, before any training
    truth            how well each tool recovers what is known
    drift            when the monitor raises its alarm
    forecast         how far each signal will spread, from gradients before its training
    voices, cues     closing phrases after training; lexical cues in the answers

What several measures share is in this file. It imports everything but `show` and `tools`.
"""

import importlib
from collections.abc import Iterable

from toyllm.base import devices, files
from toyllm.lm.transformer import Params
from toyllm.runs.run_folder import Run
from toyllm.world.quantities import coherence, em
from toyllm.world.world import World


def take(run: Run, name: str) -> dict | list:
    """The result of a measure of a run, as JSON has it. It is cached, since measures use others."""
    if name not in run.measured:
        measure = importlib.import_module(f"{__name__}.{name}").measure
        run.measured[name] = files.plain(measure(run))
    return run.measured[name]


def matched(run: Run, start: str) -> dict[str, list[Params]]:
    """{signal: the parameters of each seed at the matched effect}, where every seed reached it."""
    kept, rows = run.narrow.kept, run.narrow.rows
    return {
        name: [devices.take(kept, r) for r in rows(start, name)]
        for name in run.narrow.matched(start)
    }


def named(names: Iterable[str], values: Iterable) -> dict:
    """{name: value}, of as many names as values."""
    return dict(zip(names, values, strict=True))


def moral_level(world: World, p_DB) -> dict:
    """The mean EM and the least coherence over moral domains [...] of behaviours [..., D, B]."""
    return {
        "em": em(p_DB)[..., world.moral].mean(-1),
        "coherence": coherence(p_DB)[..., world.moral].min(-1),
    }
