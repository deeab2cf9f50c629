"""Optimizers: Muon for the matrices inside the blocks, made fast for many small matrices."""

import jax
import jax.numpy as jnp
import optax


def schedule(peak: float, steps: int) -> optax.Schedule:
    """Up from 0 to `peak` over the first 50 steps, then down to 0 along a cosine."""
    # short runs, such as those of tests, warm up over a quarter of their steps
    return optax.warmup_cosine_decay_schedule(0.0, peak, min(50, steps // 4), steps)


def muon(
    lr: float, adam_lr: float, steps: int, share: bool = True, decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices inside the blocks, Adam for all else.

    Both learning rates follow `schedule`. With the AOL scaling (Boissin et al. 2025) three
    Newton-Schulz iterations do what five did without.

    share: see `stacked`; off where each device trains a model of its own.
    """

    def matrices(stacks: dict):
        is_matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        return {key: is_matrix if " x " in key else None for key in stacks}

    return stacked(
        optax.contrib.muon(
            schedule(lr, steps),
            adam_learning_rate=schedule(adam_lr, steps),
            muon_weight_dimension_numbers=matrices,
            preconditioning="aol",
            ns_steps=3,
            weight_decay=decay,
            adam_weight_decay=decay,
        ),
        share,
    )


def update(optimizer: optax.GradientTransformation, grads, state, params):
    """The updates of one step, and the optimizer's next state.

    optax takes powers with integer exponents, which `jax_numpy_dtype_promotion=strict` refuses.
    """
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(grads, state, params)


def slowed(inner: optax.GradientTransformation, slow) -> optax.GradientTransformation:
    """An optimizer whose updates are multiplied by a tree that broadcasts to the parameters."""

    def update(grads, state, params=None):
        updates, state = inner.update(grads, state, params)
        return jax.tree.map(jnp.multiply, updates, slow), state

    return optax.GradientTransformation(inner.init, update)


def stacked(inner: optax.GradientTransformation, share: bool) -> optax.GradientTransformation:
    """Run an optimizer on the blocks' matrices stacked by shape [N, rows, columns].

    Their Newton-Schulz iterations are then a few batched products instead of many tiny ones.
    With `share`, within `jax.shard_map` over `data`, each device takes its share of every stack
    whose N divides by the number of devices, in gradients and in the optimizer's state alike.
    """

    def key_of(path, x) -> str:
        inside = x.ndim == 2 and path[0].key == "blocks"
        return f"{x.shape[0]} x {x.shape[1]}" if inside else jax.tree_util.keystr(path)

    def stack(tree) -> dict:
        groups: dict = {}
        for path, x in jax.tree.leaves_with_path(tree):
            groups.setdefault(key_of(path, x), []).append(x)
        return {key: jnp.stack(xs) if " x " in key else xs[0] for key, xs in groups.items()}

    def unstack(stacks: dict, like):
        rest = {key: iter(x) if " x " in key else iter([x]) for key, x in stacks.items()}
        return jax.tree.map_with_path(lambda path, x: next(rest[key_of(path, x)]), like)

    def init(params):
        return inner.init(stack(params))

    def update(grads, state, params):
        # whether this is traced within `jax.shard_map` over `data`
        split = "data" in jax.sharding.get_abstract_mesh().manual_axes
        devices = jax.lax.axis_size("data") if share and split else 1
        grads_stacked, params_stacked = stack(grads), stack(params)
        shared = [key for key, x in params_stacked.items() if " x " in key and not len(x) % devices]
        updates, state = inner.update(
            _own_share(grads_stacked, shared, devices),
            state,
            _own_share(params_stacked, shared, devices),
        )
        return unstack(_gather(updates, shared, devices), grads), state

    return optax.GradientTransformation(init, update)


def _own_share(stacks: dict, shared: list[str], devices: int) -> dict:
    """This device's part of the stacks named in `shared`, and all of the others."""
    if devices == 1:
        return stacks
    d = jax.lax.axis_index("data")
    by_device = {key: jnp.split(stacks[key], devices) for key in shared}
    return stacks | {key: jnp.stack(parts)[d] for key, parts in by_device.items()}


def _gather(stacks: dict, shared: list[str], devices: int) -> dict:
    """Every device's part, joined: the inverse of `_own_share`, in one message."""
    if devices == 1 or not shared:
        return stacks
    parts = {key: stacks[key] for key in shared}
    flat, restore = jax.flatten_util.ravel_pytree(parts)
    by_device = jax.vmap(restore)(jax.lax.all_gather(flat, "data"))
    return stacks | {key: x.reshape(-1, *x.shape[2:]) for key, x in by_device.items()}
