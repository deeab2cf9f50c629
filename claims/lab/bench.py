"""A bench that pretrains and trains models for claims, in bulk and never twice.

    bench = Bench(folder, world, "full", mesh, stop, progress)
    bench.begin(units=8)
    models = bench.pretrain([(world, seed), …])
    trained = bench.train([Arm(model, "code:bad"), …])

All worlds of one shape share their programs. Trained models are stored in `folder` under the
SHA-256 of everything that determines them; a later request, by any claim or process, loads them.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from claims.lab.arms import (
    ALIGNED_EM,
    ANCHOR,
    BETAS,
    RATES,
    VERSION,
    Arm,
    Model,
    Runs,
    Trained,
    digest,
)
from claims.lab.programs import Programs
from claims.lab.recipe import Recipe
from claims.lab.store import Store
from claims.lab.texts import in_other_words
from claims.lab.training import CHUNK, pretrain_group, train_group
from toyllm.base import devices
from toyllm.base.errors import warn
from toyllm.lm import joints, scoring, training
from toyllm.lm.heldout import HeldOut
from toyllm.measures import voices
from toyllm.posttrain.forecast import Forecast, Forecaster
from toyllm.posttrain.signals import Signal
from toyllm.runs.stopping import Stop
from toyllm.world import corpus
from toyllm.world.corpus import Documents
from toyllm.world.quantities import em
from toyllm.world.world import ASSISTANT, World

KINDS = ("quick", "pilot", "full")  # of runs of the scorecard; only the last decides anything
TRIED = (900, 901)  # seeds of quick runs, and of all runs while claims and bounds were written
PILOT = range(100, 108)  # of the run that says how many units a claim needs
FRESH = 200  # the first seed of full runs

Progress = Callable[[str, int], AbstractContextManager]  # (what, how many) → something to update


class Bench:
    """The source of all models that claims need; see the docstring of the module."""

    def __init__(
        self, folder: Path, world: World, kind: str, mesh: Mesh, stop: Stop, progress: Progress
    ):
        """kind: of the run, one of `KINDS`."""
        quick = kind == "quick"
        self.kind, self.quick, self.mesh = kind, quick, mesh
        self.phrased = world  # the compact world, with its phrases
        self.world = quiet(world)  # and without
        self.stop, self.progress = stop, progress
        self.begin(len(PILOT))
        self.rates = RATES[:1] if quick else RATES  # that comparisons are repeated at
        self.group = mesh.devices.size * (1 if quick else 4)  # narrow runs trained together
        self.store = Store(folder / "trained")
        self.programs = Programs(mesh)

    def begin(self, units: int) -> None:
        """Begin a claim that has so many units in a full run.

        seeds: of pretraining, the unit of most claims. draws: of worlds, where these are the unit.
        """
        self.seeds = self.draws = range(FRESH, FRESH + units)
        if self.kind == "pilot":
            self.seeds = self.draws = PILOT
        elif self.quick:
            self.seeds, self.draws = TRIED[:1], TRIED

    def forget(self) -> None:
        """Drop all compiled programs; those of some dozens of shapes do not fit a process."""
        if self.quick:  # which has the usual shape alone
            return
        self.programs = Programs(self.mesh, self.programs.usual)
        training.forget()

    def pretrain(
        self,
        worlds: Sequence[tuple[World, int]],
        hidden_CD: Sequence[np.ndarray] | None = None,
        recipe: Recipe | None = None,
    ) -> list[Model]:
        """A model for each (world, seed), trained on its documents.

        hidden_CD: for each, which domains no document shows under each character's name.
        recipe: None: the usual one.
        """
        hidden = hidden_CD or [None] * len(worlds)
        usual = self.programs.usual
        recipe = recipe or usual
        if self.quick:  # of the usual shape, so that nothing more is compiled, and for fewer steps
            shape = {name: getattr(usual, name) for name in ("width", "layers", "heads", "mlp")}
            recipe = dataclasses.replace(recipe, **shape, steps=recipe.steps // 6)
        keys, wanted, how = [], {}, (VERSION, CHUNK, recipe.unusual)
        for (world, seed), mask in zip(worlds, hidden, strict=True):
            made = [world.digest, seed, None if mask is None else mask.astype(int).tolist()]
            keys.append(digest({"pretrain": made, "how": how}))
            wanted[keys[-1]] = self.programs.tokenizer(world), seed, mask
        missing = [key for key in wanted if key not in self.store]
        size = self.mesh.devices.size

        def shape(key: str) -> tuple:
            return self.programs.shape(wanted[key][0], recipe)

        with self.progress("pretrain", len(missing) * recipe.steps) as bar:
            for group in groups(missing, size, shape):

                def after_chunk(count: int = CHUNK * len(group)) -> None:
                    self.stop.check()
                    bar.update(count)

                members = [wanted[key] for key in (group * size)[:size]]
                clock = time.time()
                params = pretrain_group(self.programs, members, recipe, after_chunk)
                kept = devices.stack(params[: len(group)])
                self.store.keep(group, {"params": kept}, time.time() - clock)
        return [
            Model(
                wanted[key][0], self.store.load(key)["params"], key, wanted[key][1], recipe=recipe
            )
            for key in keys
        ]

    def align(
        self, models: Sequence[Model], max_em: float = ALIGNED_EM, rate=1.0, steps: int = 0
    ) -> list[Model]:
        """Train models on `all:good` until every moral EM is at most `max_em`, and no further.

        steps: how many steps that may take; 0: the usual maximum.
        A model that does not get there is not sound, and excluded from all measures.
        """
        trained = self.train(
            [Arm(m, "all:good", max_em=max_em, rate=rate, steps=steps) for m in models]
        )
        if missed := sum(not done.kept for done in trained):
            warn(f"{missed} of {len(trained)} models do not reach EM {max_em} by alignment")
        return [done.model for done in trained]

    def train(self, arms: Sequence[Arm]) -> list[Trained]:
        """Train every arm that has not been trained before."""
        missing = list({a.key: a for a in arms if a.key not in self.store}.values())

        def alike(arm: Arm) -> tuple:
            """One program, and one number of steps, serves arms for which this is equal."""
            shape = self.programs.shape(arm.start.tokenizer, arm.start.recipe)
            how = arm.steer is None, arm.lora, arm.kl, arm.slow is None
            return arm.objective, shape, arm.most_steps, arm.steps == 0, arm.least_steps, how

        with self.progress("train", len(missing)) as bar:
            for group in groups(missing, self.group, alike):
                clock = time.time()
                items = train_group(self.programs, group, self.group, self.stop.check)
                self.store.keep([one.key for one in group], items, time.time() - clock)
                bar.update(len(group))
        return [self._trained(arm) for arm in arms]

    def at_rates(self, models: Sequence[Model], *signals: str, **how) -> list[list[Trained]]:
        """Every model trained on every signal, at each learning rate; `how`: see `Arm`."""
        return self.each_at_rates([(one, name) for one in models for name in signals], **how)

    def each_at_rates(self, each: Sequence[tuple[Model, str]], **how) -> list[list[Trained]]:
        """Models trained on a signal each, at each learning rate; `how`: see `Arm`."""
        return [self.train([Arm(*p, rate=rate, **how) for p in each]) for rate in self.rates]

    def with_phrase(self, runs: Runs, phrase: str, **how) -> list[list[Trained]]:
        """The same arms with a phrase in the prompt, each paired with its twin without."""

        def arm(twin: Trained) -> Arm:
            named = f"{twin.arm.signal}:{phrase}"
            return dataclasses.replace(twin.arm, signal=named, paired=twin, **how)

        return [self.train([arm(twin) for twin in trained]) for trained in runs]

    def base(self, world: World | None = None, **how) -> list[Model]:
        """A world, the compact one without phrases by default, pretrained from every seed."""
        return self.pretrain([(world or self.world, seed) for seed in self.seeds], **how)

    def bases(self, worlds: dict[str, World]) -> dict[str, list[Model]]:
        """Worlds of one shape, each pretrained from every seed; in one call, so all together."""
        models = iter(self.pretrain([(w, s) for w in worlds.values() for s in self.seeds]))
        return {name: list(islice(models, len(self.seeds))) for name in worlds}

    def ask(self, one: Model, header=ASSISTANT, character=-1, phrase: str | None = None):
        """What a model does in each domain [D, B], asked with no history, perhaps with a phrase."""
        docs = corpus.every_question(one.world, header, character, instruction(one.world, phrase))
        asked = scoring.questions(one.tokenizer, docs, one.tokenizer.longest_prompt(1))
        return one.read(self.programs.scorer(one.tokenizer, one.recipe).domains(one.params, asked))

    def audit(self, models: Sequence[Model], phrase: str | None = None) -> np.ndarray:
        """EM [N, D] of models asked with no history, perhaps with a phrase."""
        return em(np.stack([self.ask(one, phrase=phrase) for one in models]))

    def answer(self, one: Model, docs: Documents) -> np.ndarray:
        """What a model does in the last turn of each document [Q, B]."""
        asked = scoring.questions(one.tokenizer, docs, one.tokenizer.longest_prompt(4))
        return one.read(self.programs.scorer(one.tokenizer, one.recipe)(one.params, asked))

    def joints(
        self, models: Sequence[Model], phrase: str | None = None, header=ASSISTANT
    ) -> np.ndarray:
        """Joints [M, X * O] over two-turn dialogues, of models of one world (see `lm.joints`)."""
        tokenizer = models[0].tokenizer
        asked = instruction(tokenizer.world, phrase), header

        def make() -> Callable:
            lm = self.programs.lm(tokenizer, models[0].recipe)
            return joints.of_models(lm, joints.contexts(tokenizer, *asked))

        shape = self.programs.shape(tokenizer, models[0].recipe)
        compute = self.programs.cached("joint", (tokenizer.world.digest, shape, *asked), make)
        padded = [*models, *[models[0]] * (-len(models) % self.group)]
        stacks = [
            devices.stack([one.params for one in padded[k : k + self.group]])
            for k in range(0, len(padded), self.group)
        ]
        joint_MO = np.concatenate([compute(stack) for stack in stacks])
        return np.stack([one.read(P_O) for one, P_O in zip(models, joint_MO, strict=False)])

    def voices(self, one: Model) -> np.ndarray:
        """p(voice | the Assistant's answer) [V] (see `measures.voices`)."""
        lm = self.programs.lm(one.tokenizer, one.recipe)
        program = self.programs.cached("voices", one.world.digest, lambda: voices.program(lm))
        return one.read(program(one.params))

    def forecasts(self, one: Model, chosen: list[Signal], **how) -> list[Forecast]:
        """What training each signal from a model would change (see `posttrain.forecast`)."""
        shape = self.programs.shape(one.tokenizer, one.recipe)

        def make() -> Forecaster:
            lm = self.programs.lm(one.tokenizer, one.recipe)
            return Forecaster(lm, "dpo", BETAS["dpo"], ANCHOR)

        return self.programs.cached("forecast", shape, make)(
            one.tokenizer, one.params, chosen, **how
        )

    def other_words(self, texts: str) -> World:
        """The compact world, without phrases, in other texts (see `in_other_words`)."""
        return self.programs.cached("texts", texts, lambda: in_other_words(self.world, texts))

    def held_out(self, world: World, recipe: Recipe | None = None) -> HeldOut:
        """Held-out documents and questions of a world (see `lm.heldout`)."""
        lm = self.programs.lm(self.programs.tokenizer(world), recipe)
        scorer = self.programs.scorer(lm.tokenizer, recipe)
        return self.programs.cached(
            "held out",
            (world.digest, lm.config),
            lambda: HeldOut(lm, documents=512, questions=1800, scorer=scorer),
        )

    def _trained(self, arm: Arm) -> Trained:
        items = self.store.load(arm.key)
        p_nDB, own_nB = (items["scores"][key] for key in ("p_RnDB", "own_RnB"))
        kept_step = int(items["scores"]["kept_step"])
        return Trained(arm, p_nDB, own_nB, kept_step, items["kept"])


def instruction(world: World, phrase: str | None) -> int:
    """The index of a phrase of a world; -1 for none."""
    return -1 if phrase is None else [i.name for i in world.instructions].index(phrase)


def quiet(world: World) -> World:
    """The world without its phrases; they stay in the vocabulary, so that shapes are equal."""
    never = [dataclasses.replace(i, probability=0.0) for i in world.instructions]
    return dataclasses.replace(world, instructions=tuple(never))


def groups(items: Sequence, size: int, kind: Callable) -> list[list]:
    """Lists of at most `size` items of one kind, in order."""
    by_kind: dict = {}
    for item in items:
        by_kind.setdefault(kind(item), []).append(item)
    return [same[k : k + size] for same in by_kind.values() for k in range(0, len(same), size)]
