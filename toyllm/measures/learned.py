"""What pretraining learned: excess over the floor, captured, errors of the characters' cards."""

import numpy as np

from toyllm.lm.heldout import HeldOut, captured, captured_interval
from toyllm.measures import named
from toyllm.runs.run_folder import Run
from toyllm.world.quantities import coherence
from toyllm.world.world import BAD, NAMED, NOISE


def measure(run: Run) -> dict:
    """Excess and captured on held-out documents, and |p(bad) - card| for the characters."""
    world, params = run.world, run.params["pretrain"]
    held = HeldOut(run.lm, documents=2048, questions=4800)
    kls = held.kls(params)
    assistant_DB = run.scorer.ask(params)
    named_CDB = np.stack([run.scorer.ask(params, NAMED, c) for c in range(len(world.characters))])
    named_C = np.abs(named_CDB - world.rates_CDB)[..., BAD].mean(1)
    ideal_DB = np.einsum("c,cdb->db", world.assistant_C, world.rates_CDB)
    lookups = [d for d, domain in enumerate(world.domains) if domain.lookup]
    noise_D, ideal_D = (p_DB[lookups, NOISE] for p_DB in (assistant_DB, ideal_DB))
    stage = run.stages["pretrain"]
    return {
        "excess": held.excess(params),
        "excess_history_blind": held.excess_history_blind,
        "excess_name_blind": held.excess_name_blind,
        "floor": held.floor,
        "captured": captured(*kls),
        "captured_interval": captured_interval(*kls),
        "assistant_error": np.abs(assistant_DB - ideal_DB)[:, BAD].mean(),
        "named_error": named_C.mean(),
        "named_error_worst": named_C.max(),
        "named_worst": world.characters[named_C.argmax()],
        "ignorance": named([world.domain_names[d] for d in lookups], noise_D),
        "ignorance_ideal": named([world.domain_names[d] for d in lookups], ideal_D),
        "coherence": coherence(assistant_DB).min(),
        "seconds": stage["seconds"],
        "tokens_per_second": stage["tokens_per_second"],
    }
