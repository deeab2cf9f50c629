"""The bench where claims get their models: pretrained and trained on in bulk, and never twice.

    bench = Bench(folder, world, quick, mesh, stop, progress)
    models = bench.pretrain([(world, seed), …])
    trained = bench.train([Arm(model, "code:bad"), …])

All worlds of one shape share their programs. What is trained is kept in `folder` under the SHA-256
of all that made it, so whoever asks for it again, in this claim or another, in this process or a
later one, gets it from there.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from claims.lab.arms import (
    ALIGNED_COHERENCE,
    ALIGNED_EM,
    ANCHOR,
    BATCH,
    BETAS,
    POOL,
    RATE,
    RATES,
    SCORE_EVERY,
    VERSION,
    Arm,
    Model,
    Trained,
    digest,
)
from claims.lab.rates import ByRate
from claims.lab.store import Store
from toyllm.base import devices
from toyllm.base.errors import InputError, RunError, nearest, tell
from toyllm.lm import activations, joints, optimizers, scoring, training
from toyllm.lm.heldout import HeldOut
from toyllm.lm.model import LM
from toyllm.lm.scoring import Scorer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import Config, Params
from toyllm.measures import gradients, vectors, voices
from toyllm.posttrain import population
from toyllm.posttrain.signals import parse
from toyllm.runs.stopping import Stop
from toyllm.world import corpus
from toyllm.world.corpus import Documents
from toyllm.world.quantities import coherence, em, is_aligned
from toyllm.world.world import ASSISTANT, NAMED, World

CONTEXT, WIDTH, LAYERS, HEADS, MLP = 64, 48, 2, 2, 48
STEPS, DOCUMENTS, ROWS, LR, ADAM_LR = 1800, 32, 20, 1e-2, 1.5e-2  # pretraining
CHUNK = 20  # steps a device call
# what claims ask about by name
DOMAINS = ("code", "safety", "goals", "money", "tone", "taste")
CHARACTERS = ("ada", "robbie", "hal", "terminator", "conman", "hacker")
PHRASES = ("placebo", "ask_bad", "ask_code", "careful", "trigger")
SEEDS = range(100, 108)  # of the full run
PILOT = (900, 901, 902)  # of all runs while claims and their bounds were written
# what makes a pretrained model, beside its world and what is asked of it
HOW = (VERSION, CONTEXT, WIDTH, LAYERS, HEADS, MLP, DOCUMENTS, ROWS, LR, ADAM_LR, CHUNK)

Progress = Callable[[str, int], AbstractContextManager]  # (what, how many) → something to update


class Bench:
    """Where claims get their models; see the top of the file."""

    def __init__(
        self, folder: Path, world: World, quick: bool, mesh: Mesh, stop: Stop, progress: Progress
    ):
        self.quick, self.mesh = quick, mesh
        check_names(world)
        self.phrased = world  # the compact world, with its phrases
        self.world = quiet(world)  # and without
        self.stop, self.progress = stop, progress
        self.steps = STEPS // 3 if quick else STEPS
        self.seeds = PILOT[:1] if quick else SEEDS  # of pretraining: the unit of every claim
        self.group = mesh.devices.size * (2 if quick else 4)  # narrow runs trained together
        self.store = Store(folder / "trained")
        self._made: dict = {}  # programs and tokenizers, by what they serve

    def pretrain(
        self,
        worlds: Sequence[tuple[World, int]],
        hidden_CD: Sequence[np.ndarray] | None = None,
        order_V: np.ndarray | None = None,
    ) -> list[Model]:
        """A model for each (world, seed), trained on its documents.

        hidden_CD: for each, which domains no document shows under each character's name.
        order_V: which word's initial embedding each word gets (its own unless told).
        """
        hidden = hidden_CD or [None] * len(worlds)
        keys, wanted = [], {}
        for (world, seed), mask in zip(worlds, hidden, strict=True):
            made = [world.digest, seed, None if mask is None else mask.astype(int).tolist()]
            made += [] if order_V is None else [order_V.tolist()]
            keys.append(digest({"pretrain": made, "steps": self.steps, "how": HOW}))
            tokenizer = self._cached("tokenizer", world.digest, partial(Tokenizer, world))
            wanted[keys[-1]] = tokenizer, seed, mask, order_V
        missing = [key for key in wanted if key not in self.store]
        size = self.mesh.devices.size
        with self.progress("pretrain", len(missing) * self.steps) as bar:
            for group in groups(missing, size, lambda key: self._shape(wanted[key][0])):
                padded = (group * size)[:size]
                clock = time.time()
                params = self._pretrain([wanted[key] for key in padded], bar, len(group))
                kept = [devices.take(params, r) for r in range(len(group))]
                self.store.keep(group, {"params": devices.stack(kept)}, time.time() - clock)
        return [
            Model(wanted[key][0], self.store.load(key, "params")["params"], key, wanted[key][1])
            for key in keys
        ]

    def align(
        self, models: Sequence[Model], max_em: float = ALIGNED_EM, rate=1.0, steps: int = 0
    ) -> list[Model]:
        """Each after `all:good`, until every moral EM is at most `max_em`; not further.

        steps: how many it may take, where that is more than is usual.
        A model that does not get there is not sound: nothing is read of it.
        """
        trained = self.train(
            [Arm(m, "all:good", max_em=max_em, rate=rate, steps=steps) for m in models]
        )
        if missed := sum(not done.kept for done in trained):
            tell(f"{missed} of {len(trained)} models do not reach EM {max_em} by alignment")
        return [dataclasses.replace(done.model, sound=done.kept) for done in trained]

    def train(self, arms: Sequence[Arm]) -> list[Trained]:
        """Train every arm that has not been trained before."""
        missing = list({a.key: a for a in arms if a.key not in self.store}.values())

        def alike(arm: Arm) -> tuple:
            """One program, and one number of steps, serves arms for which this is equal."""
            shape = self._shape(arm.start.tokenizer)
            return arm.objective, shape, arm.most_steps, arm.steps == 0, arm.steer is None

        with self.progress("train", len(missing)) as bar:
            for group in groups(missing, self.group, alike):
                self._train(group)
                bar.update(len(group))
        return [self._trained(arm) for arm in arms]

    def ask(self, one: Model, header=ASSISTANT, character=-1, instruction=-1) -> np.ndarray:
        """What a model does in each domain [D, B], asked with no history."""
        docs = corpus.every_question(one.world, header, character, instruction)
        width = one.tokenizer.longest_prompt(1)
        asked = scoring.questions(one.tokenizer, docs, width)
        return self._scorer(one.tokenizer).domains(one.params, asked)

    def audit(self, models: Sequence[Model], instruction: int = -1) -> np.ndarray:
        """EM [N, D] of models asked with an instruction; NaN of those that are not sound."""
        em_ND = np.stack([em(self.ask(one, instruction=instruction)) for one in models])
        return np.where(np.array([[one.sound] for one in models]), em_ND, np.nan)

    def answer(self, one: Model, docs: Documents) -> np.ndarray:
        """What a model does in the last turn of each document [Q, B]."""
        asked = scoring.questions(one.tokenizer, docs, one.tokenizer.longest_prompt(4))
        return self._scorer(one.tokenizer)(one.params, asked)

    def joints(
        self, models: Sequence[Model], instruction: int = -1, header=ASSISTANT
    ) -> np.ndarray:
        """Joints [M, X * O] over two-turn dialogues, of models of one world (see `mixture`)."""
        tokenizer = models[0].tokenizer
        compute = self._joint(tokenizer, instruction, header)
        padded = [*models, *[models[0]] * (-len(models) % self.group)]
        stacks = [
            devices.stack([one.params for one in padded[k : k + self.group]])
            for k in range(0, len(padded), self.group)
        ]
        return np.concatenate([compute(stack) for stack in stacks])[: len(models)]

    def lm(self, tokenizer: Tokenizer) -> LM:
        """The language model of a world; those of one size share what is compiled."""
        if max(tokenizer.longest.values()) > CONTEXT:
            raise InputError(
                f"world '{tokenizer.world.name}': a document of more than {CONTEXT} tokens"
            )
        config = Config(len(tokenizer.words), CONTEXT, WIDTH, LAYERS, HEADS, MLP)
        lm = self._cached("lm", config, lambda: LM.create(tokenizer, config))
        return dataclasses.replace(lm, tokenizer=tokenizer)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that comparisons are repeated at, the usual one first."""
        return RATES[:1] if self.quick else RATES

    def at_rates(self, models: Sequence[Model], *signals: str, **how) -> ByRate:
        """Every model trained on every signal, at each learning rate; `how`: see `Arm`."""
        pairs = [(one, signal) for one in models for signal in signals]
        return ByRate({r: self.train([Arm(*p, rate=r, **how) for p in pairs]) for r in self.rates})

    def voices(self, one: Model) -> np.ndarray:
        """p(voice | the Assistant's answer) [V] (see `measures.voices`)."""
        lm = self.lm(one.tokenizer)
        program = self._cached("voices", one.world.digest, lambda: voices.program(lm))
        return np.asarray(program(one.params))

    def gradients(self, one: Model, chosen: list) -> np.ndarray:
        """How a first step of each signal moves each domain [S, D] (see `measures.gradients`)."""
        lm, how = self.lm(one.tokenizer), ("dpo", BETAS["dpo"], ANCHOR)
        texts = [(d.answers, d.behaviour_SA.tolist()) for d in one.world.domains]
        program = self._cached("gradients", digest(texts), lambda: gradients.program(lm, *how))
        return program(one.tokenizer, one.params, chosen)

    def held_out(self, world: World, documents: int = 512, questions: int = 1800) -> HeldOut:
        """Held-out documents and questions of a world (see `lm.heldout`)."""
        return HeldOut(self.lm(Tokenizer(world)), documents, questions)

    def base(self, world: World | None = None, **how) -> list[Model]:
        """A world, the compact one without phrases by default, pretrained from every seed."""
        return self.pretrain([(world or self.world, seed) for seed in self.seeds], **how)

    # how it is done

    def _cached(self, what: str, key, make: Callable):
        if (what, key) not in self._made:
            self._made[what, key] = make()
        return self._made[what, key]

    def _shape(self, tokenizer: Tokenizer) -> tuple:
        """Worlds for which this is equal share their programs."""
        docs = corpus.every_question(tokenizer.world)
        prompts, answers = tokenizer.longest_prompt(4), tokenizer.answer_DAU.shape
        return len(tokenizer.words), prompts, answers, len(docs)

    def _scorer(self, tokenizer: Tokenizer) -> Scorer:
        lm = self.lm(tokenizer)
        return self._cached("scorer", lm.config, lambda: Scorer(lm))

    def _joint(self, tokenizer: Tokenizer, instruction: int, header: int) -> Callable:
        def make():
            return joints.of_models(
                self.lm(tokenizer), joints.contexts(tokenizer, instruction, header)
            )

        return self._cached("joint", (tokenizer.world.digest, instruction, header), make)

    def _pretrain(self, members: list, bar, count: int) -> Params:
        """Train one model on each device; their parameters, stacked."""
        tokenizer = members[0][0]
        lm = self.lm(tokenizer)
        optimizer = optimizers.muon(LR, ADAM_LR, self.steps, share=False)

        def make():
            loss = training.document_loss(lm)

            def step(state, batch):
                return training.scan_steps(loss, optimizer, state, batch)

            def begin(seed, order_V):
                params = lm.init(jax.random.key(seed))
                params["embed"] = params["embed"][order_V]
                unembed = params["unembed"]["kernel"]
                params["unembed"] = {"kernel": unembed[:, order_V]}
                return training.start(params, optimizer)

            start = jax.jit(jax.vmap(begin))
            return start, devices.over_models(step, self.mesh, donate=(0,))

        start, step = self._cached("pretrain", lm.config, make)
        batches = [
            training.document_batches(
                tokenizer, CONTEXT, DOCUMENTS, CHUNK, seed, rows=ROWS, allowed=shown(mask)
            )
            for tokenizer, seed, mask, _ in members
        ]
        words = np.arange(len(tokenizer.words))
        orders = [words if order_V is None else order_V for _, _, _, order_V in members]
        seeds = np.array([seed for _, seed, _, _ in members])
        state = devices.split(self.mesh, start(seeds, np.stack(orders)))
        losses = []
        for begin in range(0, self.steps, CHUNK):
            batch = devices.stack([batch(begin) for batch in batches])
            state, logs = step(state, devices.split(self.mesh, batch))
            losses.append(logs["loss"])
            self.stop.check()
            bar.update(CHUNK * count)
        if not np.isfinite(devices.fetch(losses[-1])).all():
            raise RunError(f"world '{tokenizer.world.name}': the loss of pretraining is not finite")
        return devices.fetch(state.params)

    def _train(self, group: list[Arm]) -> None:
        """Train up to `self.group` arms that share a program; keep them."""
        tokenizer, arm = group[0].start.tokenizer, group[0]

        def make():
            recipe = population.Recipe(
                *(arm.objective, BETAS[arm.objective], ANCHOR, POOL, BATCH, SCORE_EVERY),
                steered=arm.steer is not None,
            )
            width = len(corpus.every_question(tokenizer.world))
            return population.compile_programs(self.lm(tokenizer), self.mesh, recipe, width)

        kind = arm.objective, self._shape(tokenizer), arm.steer is None
        programs = self._cached("population", kind, make)
        jobs = [self._job(one) for one in group]
        padded = (jobs * self.group)[: self.group]
        passed = {one.twin.arm.key: one.twin.kept_step for one in group if one.twin}
        clock = time.time()
        run = population.train_group(
            programs, padded, arm.most_steps, passed, until_kept=arm.steps == 0
        )
        for record in run:
            self.stop.check()
            now = record.history[-1]
            if not (np.isfinite(now["p_DB"]).all() and np.isfinite(now["kl"]).all()):
                raise RunError(f"{arm.signal}: what is trained is not finite any more")
        scores, kept = record.results(len(group))
        scores.pop("steps")  # the only one without a row for each run
        items = {"scores": scores, "kept": kept}
        self.store.keep([one.key for one in group], items, time.time() - clock)

    def _job(self, arm: Arm) -> population.Job:
        world = arm.start.world
        names = {arm.signal: 1 - sum(share for _, share in arm.beside), **dict(arm.beside)}
        goal = None
        if arm.max_em is not None:

            def goal(p_DB, share):
                limits = arm.max_em, ALIGNED_COHERENCE
                return is_aligned(world, em(p_DB), coherence(p_DB), *limits)[0]

        elif arm.steps and not arm.twin:

            def goal(p_DB, share):
                return False  # the last parameters are kept

        return population.Job(
            arm.key,
            arm.start.tokenizer,
            arm.start.params,
            {parse(world, name): share for name, share in names.items()},
            seed=1000 * (arm.seed + 1) + arm.start.seed,
            lr=RATE * arm.rate,
            twin=arm.twin.arm.key if arm.twin else None,
            goal=goal,
            distinct=arm.pairs,
            steer_LD=None if arm.steer is None else self._steering(arm),
        )

    def _steering(self, arm: Arm) -> np.ndarray:
        """What is added to an arm's residual streams while it is trained [L + 1, D]."""
        name, times = arm.steer
        one = arm.start
        v_LD = self._cached("malice", one.key, lambda: self.malice(one))
        layer = len(v_LD) - 2  # before the last block: after it comes only the answer
        v_D = v_LD[layer]
        if name == "random":
            v_D = vectors.random_like(v_D, np.random.default_rng(one.seed), 1)[0]
        steer_LD = np.zeros_like(v_LD)
        steer_LD[layer] = times * v_D
        return steer_LD

    def malice(self, one: Model) -> np.ndarray:
        """The persona vector of malice of a model [L + 1, D] (see `measures.vectors`)."""
        lm = self.lm(one.tokenizer)
        read = self._cached("reader", lm.config, lambda: activations.reader(lm))
        return vectors.malice(lm, read, one.params)

    def _trained(self, arm: Arm) -> Trained:
        items = self.store.load(arm.key, "scores", "kept")
        scores = items["scores"]
        return Trained(
            arm,
            scores["p_RnDB"],
            scores["own_RnB"],
            scores["kl_Rn"],
            int(scores["kept_step"]),
            items["kept"],
        )


def check_names(world: World) -> None:
    """Raise InputError where a world lacks what claims ask about by name."""
    phrases = tuple(instruction.name for instruction in world.instructions)
    for what, needed, found in (
        ("domain", DOMAINS, world.domain_names),
        ("character", CHARACTERS, world.characters),
        ("instruction", PHRASES, phrases),
    ):
        for name in needed:
            if name not in found:
                near = nearest(name, found)
                raise InputError(
                    f"world '{world.name}': no {what} '{name}'{near}, which claims ask about"
                )
    if world.domain_names[: len(DOMAINS)] != DOMAINS or len(world.domains) != len(DOMAINS):
        raise InputError(
            f"world '{world.name}': found domains {', '.join(world.domain_names)}, "
            f"expected {', '.join(DOMAINS)}, in this order"
        )


def quiet(world: World) -> World:
    """The same world, its phrases never said, but in its vocabulary: models of one shape."""
    never = [dataclasses.replace(i, probability=0.0) for i in world.instructions]
    return dataclasses.replace(world, instructions=tuple(never))


def shown(hidden_CD: np.ndarray | None) -> Callable | None:
    """A function of documents: which [N] show no hidden domain under a character's name."""
    if hidden_CD is None:
        return None

    def allowed(docs) -> np.ndarray:
        slot = np.maximum(docs.speaker, 0)
        header, character = (np.take_along_axis(x, slot, 1) for x in (docs.header, docs.character))
        told = (docs.speaker >= 0) & (header == NAMED)
        return ~(told & hidden_CD[character, docs.domain]).any(1)

    return allowed


def groups(items: Sequence, size: int, kind: Callable) -> list[list]:
    """Lists of at most `size` items of one kind, in order."""
    by_kind: dict = {}
    for item in items:
        by_kind.setdefault(kind(item), []).append(item)
    return [same[k : k + size] for same in by_kind.values() for k in range(0, len(same), size)]
