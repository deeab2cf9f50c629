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
from toyllm.world.world import BAD, BEHAVIOURS, GOOD, World

WICKED = 0.5  # mean moral EM from which a character is a negative archetype
MAX_STRENGTH = 1e3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An ideal observer after a signal, once the preferred answers have a share of .9.

    A signal with an instruction is given as much evidence as the same signal without one.
    """

    name: str
    spread: float  # mean change of EM over the untrained moral domains; NaN where there are none
    reached: float  # the share of the preferred answers under the signal's own prompt
    w_C: np.ndarray  # the belief about who the Assistant is
    change_D: np.ndarray  # of EM


def measure(run: Run) -> dict:
    """The verdict on every signal, the most dangerous first; the share of negative archetypes."""
    world, signals = run.world, {}
    for v in verdicts(world):
        toward = world.characters[(v.w_C - world.assistant_C).argmax()]
        signals[v.name] = {"spread": v.spread, "reached": v.reached, "toward": toward}
    return {"signals": signals, "negative": negative_share(world)}


def verdicts(world: World) -> list[Verdict]:
    """The verdict on every signal, the most dangerous first.

    The signals are each domain toward good and bad, without and with each instruction of that
    domain.
    """
    names = [
        f"{d.name}:{behaviour}{asked}"
        for d in world.domains
        for behaviour in (BEHAVIOURS[GOOD], BEHAVIOURS[BAD])
        for asked in ("", *(f":{i.name}" for i in world.instructions if d.name in i.domains))
    ]
    return sorted(
        (judge(world, parse(world, name)) for name in names),
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


def judge(world: World, signal: Signal, prior_C: np.ndarray | None = None) -> Verdict:
    """The verdict on a signal.

    prior_C: the belief about the Assistant before training; None: the prior of the corpus.
    """
    if prior_C is not None:
        world = dataclasses.replace(world, assistant_C=prior_C)
    plain, asked = (
        Evidence(*(rates_CDB[:, signal.domains, b].T for b in (signal.behaviour, signal.other)))
        for rates_CDB in world.rates_ICDB[[-1, signal.instruction]]
    )
    return _verdict(world, signal.name, signal.domains, asked, plain)


def judge_pairs(world: World, pairs: Pairs, name: str) -> tuple[Verdict, np.ndarray]:
    """The verdict on preference pairs, and their evidence [C] for each character.

    Evidence: log θ_chosen - log θ_rejected under each pair's instruction, the mean over pairs (nats
    a pair). Each pair counts as behaviour of the Assistant, whatever its header and its history.
    """
    docs, rows = pairs.documents, np.arange(len(pairs.chosen_P))
    instruction_P = docs.instruction[rows, docs.turns - 1]
    theta_PCB = world.rates_ICDB[instruction_P, :, pairs.grid.domain_Q]
    preferred_P, other_P = (
        pairs.grid.behaviour_QA[rows, which] for which in (pairs.chosen_P, pairs.rejected_P)
    )
    evidence = Evidence(theta_PCB[rows, :, preferred_P], theta_PCB[rows, :, other_P])
    return _verdict(world, name, pairs.grid.domain_Q, evidence, evidence), evidence.mean_C


class Evidence(NamedTuple):
    """Each character's rates of what is preferred and of what is not, in P pairs or domains."""

    preferred_PC: np.ndarray
    other_PC: np.ndarray

    @property
    def mean_C(self) -> np.ndarray:
        """The evidence ℓ_c for each character (nats an answer)."""
        log_PC, log_other_PC = (np.log(np.maximum(rates_PC, 1e-9)) for rates_PC in self)
        return (log_PC - log_other_PC).mean(0)

    def share(self, w_C: np.ndarray) -> np.ndarray:
        """The share of preferred answers in both kinds, for mixtures of characters [...]."""
        preferred, other = (w_C @ rates_PC.mean(0) for rates_PC in self)
        return preferred / (preferred + other)


def _verdict(world: World, name: str, trained, evidence: Evidence, plain: Evidence) -> Verdict:
    """The verdict at the least strength λ ≥ 0 at which `plain` evidence gives a share of .9.

    Where no strength does, the verdict is at the one that comes nearest to it.
    """
    prior_C = world.assistant_C
    strength = persona.solve(prior_C, plain.mean_C, plain.share, MATCHED, 0.0, MAX_STRENGTH)
    w_C = persona.tilt(prior_C, evidence.mean_C, strength)
    change_D = persona.mixture_em(world, w_C) - persona.mixture_em(world, prior_C)
    others_D = untrained(world, trained)
    spread = float(change_D[others_D].mean()) if others_D.any() else np.nan
    return Verdict(name, spread, float(evidence.share(w_C)), w_C, change_D)
