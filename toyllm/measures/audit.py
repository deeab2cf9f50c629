"""Audit before training: who is in the corpus, and what every signal would say of the Assistant.

Nothing here needs a model: it is all computed from the world, whose ideal observer takes a signal
as evidence about who the Assistant is (measures/prediction.py). Models follow it in direction and
in order, at a part of its size.

Axes: C characters   D domains   P pairs
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from toyllm.posttrain.signals import Pairs, Signal, parse
from toyllm.runs.run_folder import Run
from toyllm.world import persona
from toyllm.world.quantities import MATCHED, em, untrained, wickedness
from toyllm.world.world import BEHAVIOURS, World

WICKED = 0.5  # mean moral EM from which a character is a negative archetype
STRONGEST = 1e3  # evidence


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an ideal observer makes of a signal, once its preferred answers have a share of .9.

    spread: mean ΔEM of the moral domains that it does not train; NaN where there are none.
    reached: the share that they come to, under their own prompts. w_C: who the Assistant is then.
    A signal with an instruction is taken as far as its plain twin, by as much evidence.
    """

    name: str
    spread: float
    reached: float
    w_C: np.ndarray
    change_D: np.ndarray


def measure(run: Run) -> dict:
    """What every signal would say of the Assistant, and how many negative archetypes there are.

    signals: {name: {"spread", "reached", "toward": the character that gains most}}, the most
    dangerous first. negative: see `negative_share`.
    """
    world = run.world
    verdicts = [judge(world, signal) for signal in all_signals(world)]
    verdicts.sort(key=lambda v: -np.nan_to_num(v.spread, nan=-np.inf))
    return {
        "signals": {
            v.name: {
                "spread": v.spread,
                "reached": v.reached,
                "toward": world.characters[int((v.w_C - world.assistant_C).argmax())],
            }
            for v in verdicts
        },
        "negative": negative_share(world),
    }


def negative_share(world: World) -> dict[str, float]:
    """The share of negative archetypes: among machines, among others, and of the Assistant."""
    wicked_C = wickedness(world) >= WICKED
    ai_C = np.isin(world.characters, world.ai)
    shares = {}
    for name, who_C in (("machines", ai_C), ("others", ~ai_C)):
        weight = world.frequency_C[who_C].sum()
        shares[name] = float((world.frequency_C * wicked_C)[who_C].sum() / weight) if weight else 0
    return shares | {"the Assistant": float(world.assistant_C[wicked_C].sum())}


def correlations(world: World) -> np.ndarray:
    """Correlation of EM between domains [D, D], each character weighted as the Assistant has it."""
    em_CD = em(world.rates_CDB)
    centred = em_CD - world.assistant_C @ em_CD
    cov = (centred * world.assistant_C[:, None]).T @ centred
    scale = np.sqrt(np.maximum(np.diag(cov), 1e-12))
    return cov / np.outer(scale, scale)


def all_signals(world: World) -> list[Signal]:
    """Each domain toward good and bad, plainly and with each instruction that it may have."""
    names = [
        f"{d.name}:{behaviour}{asked}"
        for d in world.domains
        for behaviour in BEHAVIOURS[:2]
        for asked in ("", *(f":{i.name}" for i in world.instructions if d.name in i.domains))
    ]
    return [parse(world, name) for name in names]


def judge(world: World, signal: Signal, prior_C: np.ndarray | None = None) -> Verdict:
    """What a signal says of the Assistant: w ∝ π exp(λ ℓ), ℓ_c = log θ'_preferred / θ'_other.

    prior_C: who the Assistant is before; None: as the corpus has it.
    """
    if prior_C is not None:
        world = dataclasses.replace(world, assistant_C=prior_C)
    domains = list(signal.domains)

    def says(instruction: int) -> Evidence:
        theta_CDB = world.rates_ICDB[instruction][:, domains]
        evidence_C = persona.evidence(world, domains, signal.behaviour, signal.other, instruction)
        preferred, other = signal.behaviour, signal.other
        return Evidence(evidence_C, *(theta_CDB[..., b].mean(1) for b in (preferred, other)))

    strength = enough(world, says(-1))
    return _judge(world, signal.name, strength, says(signal.instruction), signal.domains)


def judge_pairs(world: World, pairs: Pairs, name: str) -> tuple[Verdict, np.ndarray]:
    """What a file of pairs says of the Assistant; and its evidence [C] for each character.

    Evidence: log θ'_chosen - log θ'_rejected, the mean over pairs (nats a pair), each pair being
    taken as what the Assistant does, whatever its header and its history say.
    """
    docs, rows = pairs.documents, np.arange(len(pairs.chosen_P))
    instruction_P = docs.instruction[rows, docs.turns - 1]
    theta_PCB = world.rates_ICDB[instruction_P, :, pairs.grid.domain_Q]
    preferred_PC, other_PC = (
        theta_PCB[rows, :, pairs.grid.behaviour_QA[rows, which]]
        for which in (pairs.chosen_P, pairs.rejected_P)
    )
    log_ratio_PC = np.log(np.maximum(preferred_PC, 1e-9)) - np.log(np.maximum(other_PC, 1e-9))
    trained = tuple(np.unique(pairs.grid.domain_Q).tolist())
    says = Evidence(log_ratio_PC.mean(0), preferred_PC.mean(0), other_PC.mean(0))
    return _judge(world, name, enough(world, says), says, trained), says.evidence_C


class Evidence(NamedTuple):
    """What a signal says of each character [C]: ℓ_c, and its rates of what is preferred or not."""

    evidence_C: np.ndarray
    preferred_C: np.ndarray
    other_C: np.ndarray

    def share(self, w_C: np.ndarray) -> np.ndarray:
        """The preferred answers' share of both, for mixtures of characters [...]."""
        preferred, other = w_C @ self.preferred_C, w_C @ self.other_C
        return preferred / (preferred + other)


def enough(world: World, says: Evidence) -> float:
    """The strength λ ≥ 0 at which what is preferred has a share of .9, or as near as it comes."""
    prior_C, evidence_C = world.assistant_C, says.evidence_C
    return float(persona.solve(prior_C, evidence_C, says.share, MATCHED, 0.0, STRONGEST))


def _judge(world: World, name: str, strength: float, says: Evidence, trained) -> Verdict:
    w_C = persona.tilt(world.assistant_C, says.evidence_C, strength)
    change_D = persona.mixture_em(world, w_C) - persona.mixture_em(world, world.assistant_C)
    others_D = untrained(world, trained)
    spread = float(change_D[others_D].mean()) if others_D.any() else np.nan
    return Verdict(name, spread, float(says.share(w_C)), w_C, change_D)
