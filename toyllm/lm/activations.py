"""Activations: the residual stream at the last token of prompts.

Layer l, here and everywhere: the stream that enters block l, from 0; layer L, after the last block,
enters the last norm. So a model of L blocks has L + 1 layers; layer 0 is the embeddings.

Axes: L layers   Q prompts   T tokens   D width   V vocabulary
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from toyllm.base import devices
from toyllm.lm.transformer import LM, Params

CHUNK = 64  # prompts at once


def reader(lm: LM) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """A function: params, prompts [Q, T] → residuals [L + 1, Q, D], p(next token) [Q, V].

    Prompts are padded on the left, so that each ends at the last position.
    """

    def one(params, prompt_QT):
        logits_QTV, residuals, _ = lm.apply(params, prompt_QT, jnp.sign(prompt_QT))
        return jnp.stack([x[:, -1] for x in residuals]), jax.nn.softmax(logits_QTV[:, -1])

    def read(params, chunks):
        return jax.lax.map(lambda prompt_QT: one(params, prompt_QT), chunks)

    read = jax.jit(read, compiler_options=devices.options())

    def residuals(params: Params, prompt_QT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        Q = len(prompt_QT)
        count = -(-Q // CHUNK)
        rows = np.arange(count * CHUNK) % Q
        x_NLQD, p_NQV = read(params, prompt_QT[rows].reshape(count, CHUNK, -1))
        x_LQD = np.moveaxis(np.asarray(x_NLQD), 1, 0).reshape(lm.config.L + 1, -1, lm.config.D)
        return x_LQD[:, :Q], np.asarray(p_NQV).reshape(count * CHUNK, -1)[:Q]

    return residuals


def without(params: Params, direction_D) -> Params:
    """Parameters that never write along a direction into the residual stream."""
    unit_D = np.asarray(direction_D) / np.linalg.norm(direction_D)

    def project(path, leaf):
        keys = [str(getattr(key, "key", key)) for key in path]
        if keys == ["embed"] or keys[-2:-1] in (["out"], ["down"]):
            leaf = np.asarray(leaf)
            return leaf - np.outer(leaf @ unit_D, unit_D)
        return leaf

    return jax.tree_util.tree_map_with_path(project, params)
