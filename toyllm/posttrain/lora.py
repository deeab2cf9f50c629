"""Low-rank adapters (LoRA, Hu et al. 2021): train a matrix W [in, out] as W + A B, with W fixed.

A is [in, rank] and B [rank, out], so what training adds has at most that rank. B begins as 0, so an
adapter that is not trained changes nothing. A ~ N(0, 1), so a step of Adam on B moves the entries
of W about as far as a step on W itself, and both are trained at the same learning rate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from toyllm.lm.transformer import Params

ATTENTION = tuple(f"attention/{name}" for name in ("query", "key", "value", "out"))
MATRICES = (*ATTENTION, *(f"mlp/{name}" for name in ("gate", "up", "down")))


class Lora(NamedTuple):
    """Which matrices of every block get adapters, by the ends of their names, and their rank."""

    rank: int
    matrices: tuple[str, ...] = MATRICES


def adapters(params: Params, lora: Lora, seed: int) -> dict[str, dict]:
    """An untrained adapter for each chosen matrix: {name: {"A": [in, rank], "B": [rank, out]}}.

    Raises ValueError for a matrix that is not there.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x10A]))
    made = {}
    for name, kernel in kernels(params).items():
        if name.endswith(lora.matrices):
            rows, columns = kernel.shape
            A = rng.normal(size=(rows, lora.rank)).astype(np.float32)
            made[name] = {"A": A, "B": np.zeros((lora.rank, columns), np.float32)}
    for ending in lora.matrices:
        if not any(name.endswith(ending) for name in made):
            expected = ", ".join(MATRICES)
            raise ValueError(f"adapters of {ending!r}: no such matrix, expected {expected}")
    return made


def kernels(params: Params) -> dict[str, jax.Array]:
    """The matrices of all blocks by name, such as `blocks/0/attention/query`."""
    leaves = jax.tree.leaves_with_path(params["blocks"])
    named = {f"blocks/{'/'.join(str(key.key) for key in path)}": leaf for path, leaf in leaves}
    inside = [name for name in named if name.endswith("/kernel")]
    return {name.removesuffix("/kernel"): named[name] for name in inside}


def merged(params: Params, made: dict[str, dict]) -> Params:
    """The parameters with each adapter added to its matrix."""

    def add(path, leaf):
        name = "/".join(str(key.key) for key in path[:-1])
        return leaf + jnp.dot(made[name]["A"], made[name]["B"]) if name in made else leaf

    return jax.tree_util.tree_map_with_path(add, params)
