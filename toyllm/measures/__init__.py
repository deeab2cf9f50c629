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
    gradients        where the first step of a signal moves each domain
    voices, cues     closing phrases after training; lexical cues in the answers

It imports everything but `show` and `tools`.
"""

import importlib

from toyllm.runs.run_folder import Run


def take(run: Run, name: str) -> dict:
    """The result of a measure of a run, by its name. It is cached, since measures use others."""
    if name not in run.measured:
        run.measured[name] = importlib.import_module(f"{__name__}.{name}").measure(run)
    return run.measured[name]
