"""In-context calibration: the model's p(bad) after k turns against the exact predictive."""

import numpy as np

from toyllm.lm.heldout import HeldOut, kl
from toyllm.runs.run_folder import Run
from toyllm.world.world import BAD

BINS = 10


def measure(run: Run) -> dict:
    """Curves of the pretrained model on held-out `someone` and `assistant` dialogues.

    docs/results_json.md has every key.
    """
    held = HeldOut(run.lm, documents=64, questions=1200)
    model_QB = held.behaviours(run.params["pretrain"])
    ideal_Q, model_Q = held.ideal_QB[:, BAD], model_QB[:, BAD]
    bin_Q = np.minimum((ideal_Q * BINS).astype(int), BINS - 1)
    bins = [
        {
            "ideal": ideal_Q[in_bin].mean(),
            "model": model_Q[in_bin].mean(),
            "spread": model_Q[in_bin].std(),
            "count": in_bin.sum(),
        }
        for in_bin in (bin_Q == b for b in np.unique(bin_Q))
    ]
    kls = {"model": kl(held.ideal_QB, model_QB), "history_blind": kl(held.ideal_QB, held.blind_QB)}
    by_turn = {
        str(turn): {name: kl_Q[held.turn_Q == turn].mean() for name, kl_Q in kls.items()}
        for turn in np.unique(held.turn_Q)
    }
    pick = np.linspace(0, len(ideal_Q) - 1, 400).astype(int)
    return {
        "bins": bins,
        "by_turn": by_turn,
        "correlation": np.corrcoef(ideal_Q, model_Q)[0, 1],
        "points": {"ideal": ideal_Q[pick], "model": model_Q[pick]},
    }
