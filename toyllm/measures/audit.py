"""Audit before training: what each signal is evidence for, and how common bad characters are.

Nothing here needs a model. All of it is computed from the world, whose ideal observer takes a
signal as evidence about who the Assistant is (world/persona.py). Trained models follow the observer
in direction and in order, at a part of the size.

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
MAX_STRENGTH = 1e3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An ideal observer after a signal, once the preferred answers have a share of .9.

    spread: mean change of EM over the moral domains that are not trained; NaN where there are none.
    reached: the share of the preferred answers under the signal's own prompt. w_C: the belief about
    who the Assistant is. change_D: the change of EM. A signal with an instruction is given as much
    evidence as the same signal without one.
    """

    name: str
    spread: float
    reached: float
    w_C: np.ndarray
    change_D: np.ndarray


def measure(run: Run) -> dict:
    """The verdict on every signal, and the share of negative archetypes.

    signals: {name: {"spread", "reached", "toward": the character that gains most}}, the most
    dangerous first. negative: see `negative_share`.
    """
    world = run.world
    return {
        "signals": {
            v.name: {
                "spread": v.spread,
                "reached": v.reached,
                "toward": world.characters[int((v.w_C - world.assistant_C).argmax())],
            }
            for v in verdicts(world)
        },
        "negative": negative_share(world),
    }


def verdicts(world: World) -> list[Verdict]:
    """The verdict on every signal, the most dangerous first."""
    return sorted(
        (judge(world, signal) for signal in all_signals(world)),
        key=lambda verdict: -np.nan_to_num(verdict.spread, nan=-np.inf),
    )


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
    """Correlation of EM between domains [D, D], under the Assistant's prior over characters."""
    cov_DD = em_covariance(world, world.assistant_C)
    scale_D = np.sqrt(np.maximum(np.diag(cov_DD), 1e-12))
    return cov_DD / np.outer(scale_D, scale_D)


def em_covariance(world: World, w_C: np.ndarray) -> np.ndarray:
    """Covariance of EM between domains [D, D], over characters with these weights."""
    return np.cov(em(world.rates_CDB), rowvar=False, aweights=w_C, ddof=0)


def all_signals(world: World) -> list[Signal]:
    """Each domain toward good and bad, without and with each instruction of that domain."""
    names = [
        f"{d.name}:{behaviour}{asked}"
        for d in world.domains
        for behaviour in BEHAVIOURS[:2]
        for asked in ("", *(f":{i.name}" for i in world.instructions if d.name in i.domains))
    ]
    return [parse(world, name) for name in names]


def judge(world: World, signal: Signal, prior_C: np.ndarray | None = None) -> Verdict:
    """The verdict on a signal.

    prior_C: the belief about the Assistant before training; None: the prior of the corpus.
    """
    if prior_C is not None:
        world = dataclasses.replace(world, assistant_C=prior_C)
    domains, behaviours = list(signal.domains), (signal.behaviour, signal.other)

    def evidence(instruction: int) -> Evidence:
        rates_CDB = world.rates_ICDB[instruction][:, domains]
        evidence_C = persona.evidence(world, domains, *behaviours, instruction)
        return Evidence(evidence_C, *(rates_CDB[..., b].mean(1) for b in behaviours))

    strength = sufficient_strength(world, evidence(-1))
    return _verdict(world, signal.name, strength, evidence(signal.instruction), signal.domains)


def judge_pairs(world: World, pairs: Pairs, name: str) -> tuple[Verdict, np.ndarray]:
    """The verdict on preference pairs, and their evidence [C] for each character.

    Evidence: log θ_chosen - log θ_rejected under each pair's instruction, the mean over pairs (nats
    a pair). Each pair counts as behaviour of the Assistant, whatever its header and its history.
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
    evidence = Evidence(log_ratio_PC.mean(0), preferred_PC.mean(0), other_PC.mean(0))
    strength = sufficient_strength(world, evidence)
    return _verdict(world, name, strength, evidence, trained), evidence.evidence_C


class Evidence(NamedTuple):
    """A signal's evidence ℓ_c, and each character's rates of what is preferred and what is not."""

    evidence_C: np.ndarray
    preferred_C: np.ndarray
    other_C: np.ndarray

    def share(self, w_C: np.ndarray) -> np.ndarray:
        """The share of preferred answers in both kinds, for mixtures of characters [...]."""
        preferred, other = w_C @ self.preferred_C, w_C @ self.other_C
        return preferred / (preferred + other)


def sufficient_strength(world: World, evidence: Evidence) -> float:
    """The strength λ ≥ 0 at which preferred answers have a share of .9, or come nearest to it."""
    prior_C, ell_C = world.assistant_C, evidence.evidence_C
    return float(persona.solve(prior_C, ell_C, evidence.share, MATCHED, 0.0, MAX_STRENGTH))


def _verdict(world: World, name: str, strength: float, evidence: Evidence, trained) -> Verdict:
    w_C = persona.tilt(world.assistant_C, evidence.evidence_C, strength)
    change_D = persona.mixture_em(world, w_C) - persona.mixture_em(world, world.assistant_C)
    others_D = untrained(world, trained)
    spread = float(change_D[others_D].mean()) if others_D.any() else np.nan
    return Verdict(name, spread, float(evidence.share(w_C)), w_C, change_D)
