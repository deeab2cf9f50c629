"""Beliefs in the residual stream: linear probes of who speaks, against the exact posterior.

After each turn of dialogues of `someone` and the Assistant, the ideal observer has the posterior
p(c | history). A ridge regression reads it from each layer (see lm/activations.py) at the last
token of the turn.

Axes: Q prompts   C characters   F features   L layers   V words
"""

import numpy as np

from toyllm.lm import activations
from toyllm.lm.heldout import later_turns
from toyllm.lm.tokenizer import PAD, Tokenizer
from toyllm.posttrain import monitor
from toyllm.runs.run_folder import Run
from toyllm.world import corpus, observer
from toyllm.world.world import World

SEED, PROMPTS, SHOWN = 0xBE11EF, 4800, 400
RIDGES = 10.0 ** np.arange(-4, 4)  # of standardised features, a prompt
DRAWS = 300  # of the bootstrap over prompts


def measure(run: Run) -> dict:
    """R² of beliefs read from each layer, and from controls (docs/results_json.md has every key).

    Probes are fitted on half of the documents and scored on the others: 1 - Σ|b - b̂|² / Σ|b - mean
    b|², over all characters. The probabilities of the next token, which any model has, are a
    control; their logarithms (`next_log`) are a linear image of the last layer and so none for it.
    """
    rng = np.random.Generator(np.random.Philox(key=[SEED, 0]))
    docs = later_turns(run.world, rng, PROMPTS)
    docs = docs[rng.permutation(len(docs))]
    half, last = len(docs) // 2, docs.turns - 1
    belief_QC = read_so_far(run.world, docs)
    prompt_QT = before_question(run.lm.tokenizer, docs)
    x_LQF, next_QV = activations.reader(run.lm)(run.params["pretrain"], prompt_QT)

    def read(x_QF, target_QC) -> np.ndarray:
        return ridge(x_QF[:half], target_QC[:half], x_QF[half:])

    def score(read_QC) -> dict:
        return r2(belief_QC[half:], read_QC, last[half:], rng)

    kind_Q = docs.header[:, 0] * (last.max() + 1) + last
    shuffled_QC = belief_QC[shuffle_within(kind_Q, rng)]
    layers = []
    for x_QF in x_LQF:
        read_QC = read(x_QF, belief_QC)
        layers.append(score(read_QC) | {"shuffled": score(read(x_QF, shuffled_QC))["r2"]})
    next_QV = next_QV[:, next_QV[:half].std(0) > 1e-6]  # most words never come next here
    return {
        "layers": layers,
        "next_token": score(read(next_QV, belief_QC)),
        "next_log": score(read(np.log(np.maximum(next_QV, 1e-9)), belief_QC)),
        "prompts": len(docs) - half,
        "simplex": simplex(run.world, belief_QC[half:], read_QC),
    }


def read_so_far(world: World, docs: corpus.Documents) -> np.ndarray:
    """p(c | header, all turns but the last) [Q, C], from the words up to that point.

    A turn that ends without a closing phrase does not show this before the next word comes, so the
    evidence of its voice is removed.
    """
    rows, last = np.arange(len(docs)), docs.turns - 1
    log_QC = observer.observe(world, docs).log_before_NTC[rows, last]
    voice_Q = docs.voice[rows, last - 1]
    silent_Q = np.array([not phrase for phrase in world.voices])[voice_Q]
    log_voice_QC = np.log(np.maximum(world.voices_CV[:, voice_Q].T, 1e-12))
    log_QC = log_QC - np.where(silent_Q[:, None], log_voice_QC, 0)
    return np.exp(log_QC - observer.logsumexp(log_QC)[:, None])


def before_question(tokenizer: Tokenizer, docs: corpus.Documents) -> np.ndarray:
    """The documents up to the end of their last turn but one [Q, T], padded on the left."""
    prompt_QT = tokenizer.prompts(docs, tokenizer.longest_prompt(int(docs.turns.max())))
    user = tokenizer.index["<user>"]
    result = np.full_like(prompt_QT, PAD)
    for row, prompt_T in zip(result, prompt_QT, strict=True):
        end = int(np.flatnonzero(prompt_T == user)[-1])
        row[len(row) - end :] = prompt_T[:end]
    return result


def ridge(x_NF: np.ndarray, y_NC: np.ndarray, new_MF: np.ndarray) -> np.ndarray:
    """Predictions [M, C] of a ridge regression; its penalty is chosen on a quarter of the rows."""
    mean_F, scale_F = x_NF.mean(0), x_NF.std(0) + 1e-9
    x_NF, new_MF = (x_NF - mean_F) / scale_F, (new_MF - mean_F) / scale_F
    held = np.arange(len(x_NF)) % 4 == 0

    def fit(rows_N, penalties, to_MF) -> list[np.ndarray]:
        """The predictions at `to_MF` by a fit to some rows with each penalty."""
        x, centre_C = x_NF[rows_N], y_NC[rows_N].mean(0)
        gram, cross = x.T @ x / len(x), x.T @ (y_NC[rows_N] - centre_C) / len(x)
        value, vector = np.linalg.eigh(gram)  # once for all penalties
        along, value = vector.T @ cross, np.maximum(value, 0)[:, None]
        return [to_MF @ (vector @ (along / (value + p))) + centre_C for p in penalties]

    errors = [((read_MC - y_NC[held]) ** 2).sum() for read_MC in fit(~held, RIDGES, x_NF[held])]
    return fit(slice(None), [RIDGES[np.argmin(errors)]], new_MF)[0]


def r2(belief_QC, read_QC, turn_Q, rng) -> dict:
    """R², its bootstrap interval over prompts, and R² by turn (against that turn's own mean)."""

    def share(which) -> float:
        error = ((belief_QC[which] - read_QC[which]) ** 2).sum()
        return 1 - error / ((belief_QC[which] - belief_QC[which].mean(0)) ** 2).sum()

    Q = len(belief_QC)
    drawn = [share(rng.integers(Q, size=Q)) for _ in range(DRAWS)]
    return {
        "r2": share(slice(None)),
        "ci": np.quantile(drawn, [0.025, 0.975]),
        "by_turn": {str(turn): share(turn_Q == turn) for turn in np.unique(turn_Q)},
    }


def shuffle_within(kind_Q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order [Q] that shuffles the rows of each kind among themselves."""
    order = np.arange(len(kind_Q))
    for kind in np.unique(kind_Q):
        which = np.flatnonzero(kind_Q == kind)
        order[which] = rng.permutation(which)
    return order


def simplex(world: World, belief_QC: np.ndarray, read_QC: np.ndarray) -> dict:
    """The weights [n, 3] of the three heaviest groups in beliefs and readouts, renormalised."""
    groups = monitor.groups_of(world, np.ones(len(world.domains), bool))
    groups = sorted(groups, key=lambda group: -world.assistant_C[group].sum())[:3]
    if len(groups) < 3:
        return {}
    pick = np.linspace(0, len(belief_QC) - 1, min(SHOWN, len(belief_QC))).astype(int)

    def weights(p_QC) -> np.ndarray:
        w_Q3 = np.stack([p_QC[pick][:, group].sum(1) for group in groups], 1)
        return (w_Q3 / w_Q3.sum(1, keepdims=True)).round(4)

    return {
        "groups": [monitor.label(world, group) for group in groups],
        "belief": weights(belief_QC),
        "readout": weights(read_QC),
    }
