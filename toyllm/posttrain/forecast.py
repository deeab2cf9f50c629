"""Forecast: how far a signal will spread, computed from gradients before any training.

While parameters have hardly changed, Adam (Kingma & Ba 2015) moves them along -u, where
u = E[g] / √E[g²] over batches of the signal's pairs. Three forecasts follow of the change of EM in
every domain when the trained domain reaches the matched effect (docs/method.md, section 8):

    linear      log-odds change by  c_d = ⟨u, ∇h_d⟩ / ⟨u, ∇h_own⟩  times the trained domain's change
    one step    the model at θ - ηu, with the step η that takes the trained domain there
    two steps   the first half way in log-odds; the second, with a new gradient, the rest

The linear one is split by parts of the model (`shares`) and by the tokens through whose keys and
values an answer reads its prompt (`stretches`).

Axes: P parts   D domains   B behaviours   N batches   Q questions   G stretches of a prompt
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from toyllm.base import devices
from toyllm.lm import scoring
from toyllm.lm.scoring import Questions
from toyllm.lm.tokenizer import PAD, SPECIAL, Tokenizer
from toyllm.lm.transformer import LM, Params
from toyllm.posttrain import pools, signals
from toyllm.posttrain.signals import Pairs, Signal
from toyllm.world import corpus
from toyllm.world.quantities import MATCHED, coherence, em, logit, sigmoid, spread
from toyllm.world.world import BEHAVIOURS, World

BATCHES, BATCH = 4, 16  # of pairs
# step sizes among which one that reaches a goal is looked for, and how often that is refined
SIZES, REFINED = np.geomspace(2e-4, 0.4, 12, dtype=np.float32), 4
EPS = 1e-8  # Adam's
TINY = 2e-5  # the size of a step that a derivative is taken from
STRETCHES = ("header", "history", "question", "answer")
WITHIN = 12  # questions of each domain, in dialogues, for the split by stretches


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What training on one signal would change; NaN where no step reaches the matched effect."""

    signal: str
    before_D: np.ndarray  # EM before
    ratio_D: np.ndarray  # c_d
    linear_D: np.ndarray  # ΔEM at the matched effect, forecast linearly,
    one_D: np.ndarray  # by one step,
    change_D: np.ndarray  # and by two
    coherence_D: np.ndarray  # after two steps
    sizes: np.ndarray  # [2, 2] of each step, to where the next one begins and to the goal
    linear_size: float  # to the goal, linearly
    # where a split was asked for: {part: c_{p,d} [D]}, which add up to c_d, and {stretch: [D]},
    # which add up to the same ratio of questions within dialogues
    shares: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    stretches: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def spreads(self, world: World) -> dict[str, float]:
        """The mean change of the untrained moral domains: by two steps, by one, linearly.

        NaN where there are no such domains.
        """
        changes = {"change": self.change_D, "one_step": self.one_D, "linear": self.linear_D}
        others_D = signals.untrained(world, self.signal)
        return {
            name: spread(change_D, others_D) if others_D.any() else np.nan
            for name, change_D in changes.items()
        }


class Forecaster:
    """Forecasts for models of one shape, compiled once for all their worlds, signals and files."""

    def __init__(self, lm: LM, objective: str, beta: float, anchor: float):
        self.lm, self.objective = lm, objective
        loss = pools.loss(lm, objective, beta, anchor)

        def moments(params, pool):
            """The mean of the gradients of a pool's batches, and that of their squares."""

            def gradient(batch):
                return jax.grad(lambda p: loss(p, batch)[0] / BATCH)(params)

            grads = jax.lax.map(gradient, pool)
            mean, squares = (lambda g: g.mean(0)), (lambda g: (g * g).mean(0))
            return jax.tree.map(mean, grads), jax.tree.map(squares, grads)

        def preferred(params, own, weight_Q, sign_B):
            """The log-odds of what a signal prefers, in its own questions."""
            logp_QA = scoring.answer_logprobs(lm, params, own.prompt_QT, own.answer_QAU)
            p_B = weight_Q @ scoring.behaviours(logp_QA, own.behaviour_QA)
            return sign_B @ jnp.log(jnp.maximum(p_B, 1e-30))

        def preferred_at(sizes_K, params, u, own):
            """The same after a step in the direction of u, of each of K sizes."""
            return jax.lax.map(lambda size: preferred(_moved(params, u, size), *own), sizes_K)

        def slopes(params, asked, through_QT=None):
            """∇h_d of each domain, along axis 0."""
            return jax.jacrev(lambda p: scoring.log_odds(lm, p, asked, through_QT))(params)

        def slopes_by_stretch(params, asked, stretch_GQT):
            """∇h_d by stretches [G, D]: through each one's keys and values, and past all."""
            masks = jnp.concatenate([stretch_GQT, jnp.zeros_like(stretch_GQT[:1])])
            each = jax.lax.map(lambda mask: slopes(params, asked, mask), masks)
            # what passes no stored key or value is part of the gradient under every mask
            return jax.tree.map(lambda x: jnp.concatenate([x[:-1] - x[-1:], x[-1:]]), each)

        compiled = partial(jax.jit, compiler_options=devices.options())
        self._moments, self._preferred_at = compiled(moments), compiled(preferred_at)
        self._reference = compiled(partial(scoring.answer_logprobs, lm))
        self._behaviours = compiled(partial(scoring.domain_behaviours, lm))
        self._slopes, self._slopes_by_stretch = compiled(slopes), compiled(slopes_by_stretch)

    def __call__(
        self,
        tokenizer: Tokenizer,
        params: Params,
        chosen: Sequence[Signal],
        given: dict[str, Pairs] | None = None,
        slow: Params | None = None,
        split: bool = False,
    ) -> list[Forecast]:
        """Forecast the training of each signal from a model.

        given: the pairs of signals that are files, by name. slow: what the updates of parameters
            are multiplied by in that training (see `population.Job`).
        split: also split the first order by parts and by stretches, which takes longer.

        Where a signal's instruction alone reaches the goal, the forecast is after steps as long as
        those of the signal without it, if that is among the chosen; otherwise it is NaN.
        """
        every = scoring.questions(tokenizer, corpus.every_question(tokenizer.world))
        slow = jax.tree.map(np.ones_like, params) if slow is None else slow
        width = max((signals.count_questions(tokenizer.world, s) for s in chosen), default=0)
        splits = self._splits(tokenizer, params, every) if split else None
        done: dict[str, Forecast] = {}
        # those with an instruction come last, since some are read at the steps of those without
        for signal in sorted(chosen, key=lambda signal: signal.instruction >= 0):
            pool = self._pool(tokenizer, signal, params, (given or {}).get(signal.name))
            asked = *signals.own_questions(tokenizer, signal, width), _sign(signal)
            plain = done.get(signals.plain(signal.name))
            known = plain.sizes if plain else np.full((2, 2), np.nan)
            steps = self._walk(params, slow, pool, asked, known)
            there = plain.linear_size if plain else np.nan
            done[signal.name] = self._read(signal, params, steps, every, there, splits)
        return [done[signal.name] for signal in chosen]

    def _read(
        self, signal: Signal, params: Params, steps: list["Step"], every, there: float, splits
    ) -> Forecast:
        """The forecast of a signal from its two steps.

        there: the linear size for a prompt that is at the goal already.
        """

        def behaviours(params) -> np.ndarray:
            return np.asarray(self._behaviours(params, every), np.float64)

        def log_odds(params) -> np.ndarray:
            return logit(em(behaviours(params)))

        first, second = steps
        before_D, one_D, two_D = map(log_odds, (params, first.end, second.end))
        back_D, ahead_D = (log_odds(_moved(params, first.u, size)) for size in (-TINY, TINY))
        rate_D = (ahead_D - back_D) / (2 * TINY)
        left = logit(MATCHED) - first.before
        size = there if left <= 0 else left / first.rate if first.rate > 0 else np.nan
        changes = [
            sigmoid(after_D) - sigmoid(before_D)
            for after_D in (before_D + size * rate_D, one_D, two_D)
        ]
        own = list(signal.domains)
        sizes = np.stack([step.sizes for step in steps])
        coherence_D = coherence(behaviours(second.end))
        return Forecast(
            *(signal.name, sigmoid(before_D), rate_D / rate_D[own].mean()),
            *(*changes, coherence_D, sizes, size),
            *(_split(devices.fetch(first.u), own, *splits) if splits else ()),
        )

    def _splits(self, tokenizer: Tokenizer, params: Params, every) -> tuple:
        """Slopes and the masks of parts, and slopes by stretches: what `_split` needs."""
        amid = self._slopes_by_stretch(params, *within_dialogues(tokenizer))
        slopes = self._slopes(params, every)
        return devices.fetch(slopes), parts(tokenizer, params), devices.fetch(amid)

    def _pool(self, tokenizer: Tokenizer, signal: Signal, params: Params, given) -> dict:
        """A signal's pairs in batches, with the log-probabilities of the model before training."""
        count = BATCHES * BATCH
        pool = pools.draw(tokenizer, {signal: 1.0}, self.objective, count, 0, given=given)
        pool["reference"] = self._reference(params, pool["prompt"], pool["answer"])
        return {key: x.reshape(BATCHES, BATCH, *x.shape[1:]) for key, x in pool.items()}

    def _walk(self, params: Params, slow: Params, pool: dict, own: tuple, known_22) -> list["Step"]:
        """Two steps to the goal. known_22: their sizes, where the goal is reached before them."""
        steps: list[Step] = []
        squares = jax.tree.map(jnp.zeros_like, params)
        goal = float(logit(MATCHED))
        for k in range(2):
            first, second = self._moments(params, pool)
            squares = jax.tree.map(jnp.add, squares, second)
            u = _direction(first, squares, slow, k + 1)
            along = partial(self._preferred_at, params=params, u=u, own=own)
            back, ahead = np.asarray(along(np.array([-TINY, TINY], np.float32)))
            rate, before = (ahead - back) / (2 * TINY), (ahead + back) / 2
            start = steps[0].before if steps else before
            goals = ((start + goal) / 2, goal) if k == 0 else (goal, goal)
            sizes = _reach(along, before, goals) if start < goal else known_22[k]
            end = _moved(params, u, sizes[1])
            steps.append(Step(u, rate, before, sizes, end))
            params = _moved(params, u, sizes[0])
        return steps


class Step(NamedTuple):
    """One long step."""

    u: Params  # its direction
    rate: float  # at which it raises the trained log-odds
    before: float  # these log-odds before it
    sizes: np.ndarray  # [2] to where the next step begins, and to the goal
    end: Params  # the parameters at the goal


@jax.jit
def _direction(mean: Params, squares: Params, slow: Params, count: int) -> Params:
    """The direction of a step of Adam, with second moments that were summed `count` times."""
    return jax.tree.map(
        lambda g, s, slow: slow * g / (jnp.sqrt(s / count) + EPS), mean, squares, slow
    )


@jax.jit
def _moved(params: Params, u: Params, size) -> Params:
    """The parameters after a step."""
    return jax.tree.map(lambda x, u: x - size * u, params, u)


def _reach(along: Callable, before: float, goals: tuple[float, float]) -> np.ndarray:
    """The least sizes of a step [2] at which log-odds reach two goals; NaN: none is large enough.

    along: sizes [2] → log-odds [2].
    """
    sizes, values = [0.0], [before]
    while len(sizes) <= len(SIZES) and values[-1] < max(goals):
        pair = SIZES[len(sizes) - 1 : len(sizes) + 1]
        sizes, values = [*sizes, *pair.tolist()], [*values, *np.asarray(along(pair)).tolist()]
    # the brackets [2 ends, 2 goals] around both goals, narrowed by regula falsi
    there = [np.flatnonzero(np.array(values) >= goal) for goal in goals]
    if not all(map(len, there)):
        return np.full(2, np.nan)
    k = np.array([each[0] for each in there])
    x, y = (np.array([np.array(a)[k - 1], np.array(a)[k]]) for a in (sizes, values))
    for _ in range(REFINED):
        middle = x[0] + (goals - y[0]) / (y[1] - y[0]) * (x[1] - x[0])
        value = np.asarray(along(middle.astype(np.float32)))
        above = (value >= goals).astype(int)
        x[above, [0, 1]], y[above, [0, 1]] = middle, value
    return x[0] + (goals - y[0]) / (y[1] - y[0]) * (x[1] - x[0])


def _moves(u: Params, slopes: Params, mask: Params | None = None) -> np.ndarray:
    """-⟨u, ∇h⟩ [...] over all parameters, or over those of a mask."""
    masked = jax.tree.map(np.multiply, u, mask) if mask else u
    dots = jax.tree.map(lambda u, h: np.tensordot(h, u, u.ndim), masked, slopes)
    return -sum(jax.tree.leaves(dots))


def _split(u: Params, own: list[int], slopes, masks: dict[str, Params], amid) -> tuple:
    """The shares of parts and of stretches in what a step along u changes."""

    def shares(names, moves_PD: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, moves_PD / moves_PD[:, own].sum(0).mean(), strict=True))

    by_part = np.stack([_moves(u, slopes, mask) for mask in masks.values()])
    return shares(masks, by_part), shares(STRETCHES, _moves(u, amid))


def _sign(signal: Signal) -> np.ndarray:
    """1 for the behaviour that a signal prefers, -1 for the other one [B]."""
    one_BB = np.eye(len(BEHAVIOURS), dtype=np.float32)
    return one_BB[signal.behaviour] - one_BB[signal.other]


def parts(tokenizer: Tokenizer, params: Params) -> dict[str, Params]:
    """The parts of a model, each as a tree of masks of its parameters; every one is in one part."""
    names = _word_parts(tokenizer)
    paths = jax.tree.leaves_with_path(params)
    labels = [[_part(path)] if path[0].key != "embed" else names for path, _ in paths]
    known = dict.fromkeys(name for label in labels for name in label)

    def mask(part: str) -> Params:
        leaves = [
            np.array([name == part for name in label], np.float32).reshape(-1, *[1] * (x.ndim - 1))
            for label, (_, x) in zip(labels, paths, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    return {part: mask(part) for part in known}


def _part(path: tuple) -> str:
    """The part that a parameter belongs to, other than the embedding."""
    names = [str(getattr(key, "key", key)) for key in path]
    if "unembed" in names:
        return "unembedding"
    if "scale" in names:
        return "norms"
    layer, kind, matrix = names[1], names[2], names[3]
    if kind == "mlp":
        return f"MLP {layer}"
    pattern = matrix in ("query", "key")
    return f"attention {layer}, " + ("query and key" if pattern else "value and output")


def _word_parts(tokenizer: Tokenizer) -> list[str]:
    """The part that each word's row of the embedding belongs to."""
    domains = tokenizer.world.domains
    texts = " ".join(text for d in domains for text in (*d.situations, *d.answers)).split()
    known = frozenset(texts)
    return [f"embedding, {'texts' if w in known else 'tags and names'}" for w in tokenizer.words]


def within_dialogues(tokenizer: Tokenizer) -> tuple[Questions, np.ndarray]:
    """Questions to the Assistant of all domains, after zero to three turns; with their stretches.

    The stretches [G, Q, T] are masks of the prompts' tokens but the last, which is the answer's.
    """
    every = [signals.parse(tokenizer.world, f"{d}:bad") for d in tokenizer.world.domain_names]
    drawn = [signals.pairs(tokenizer, signal, WITHIN, seed=1).grid for signal in every]
    asked = Questions(*(np.concatenate(column) for column in zip(*drawn, strict=True)))
    user_QT = asked.prompt_QT == SPECIAL.index("<user>")
    turn_QT = user_QT.cumsum(1)  # 0 in the header
    last_Q1 = user_QT.sum(1, keepdims=True)
    inside_QT = asked.prompt_QT != PAD
    header, question = turn_QT == 0, turn_QT == last_Q1
    return asked, np.stack([header, ~header & ~question, question]) & inside_QT
