"""32 narrow runs as a population, against the same runs one after another.

    uv run benchmarks/population.py           about 3 minutes

As a population: groups of 16 share the devices, each device taking its runs one by one (lax.map).
For comparison, each device takes its runs all at once (vmap); and one after another, each run
alone, on one device and with its batch cut over all devices. Counted are the seconds of 10 training
steps of every run (compiled before); the ways take turns.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from contestants import prepare
from throughput import spread

from toyllm import devices, model, population, scoring, signals, training

STEPS, BATCH, POOL = 10, 16, 512


@dataclasses.dataclass(frozen=True)
class Args:
    """A population of narrow runs against one after another."""

    runs: int = 32
    """Narrow runs: 8 signals, the rest seeds."""
    group: int = 16
    """Runs of a group, stepped together."""
    turns: int = 5
    """Alternations."""
    json: Path | None = None
    """Also write everything that was measured."""


def main(args: Args) -> None:
    """Measure and print."""
    mesh = devices.setup()
    codec, config, _ = prepare("default")
    apply, init = model.create(config)
    params = jax.device_get(jax.jit(init)(jax.random.key(0)))
    names = [f"{d.name}:bad" for d in codec.world.domains if d.moral][:8]
    pools = []
    for r in range(args.runs):
        signal = signals.parse(codec.world, names[r % len(names)])
        pools.append(training.preference_pool(codec, signal, "dpo", POOL, seed=r))
    reference = jax.jit(
        lambda params, pool: scoring.answer_logprobs(
            apply, config, params, pool["prompt"], pool["answer"]
        )
    )
    for pool in pools:
        pool["reference"] = np.asarray(reference(params, pool))
    rows_R = [training.draws(r, 0, STEPS, BATCH, POOL) for r in range(args.runs)]
    loss = training.preference_loss(apply, config, "dpo", 1.0, 0.5)
    optimizer = optax.adam(1e-3)
    state = jax.device_get(training.start(params, optimizer))

    def step(state, pool, index_KB):
        batches = jax.tree.map(lambda x: x[index_KB], pool)
        return training.scan_steps(loss, optimizer, state, batches)

    def together(inside: str):
        program = population.over_runs(step, mesh, inside=inside)
        groups = [slice(k, k + args.group) for k in range(0, args.runs, args.group)]
        states = population.stack([state] * args.group)

        def run() -> list:
            done = []
            for group in groups:
                arrays = states, population.stack(pools[group]), np.stack(rows_R[group])
                done.append(program(*(devices.split(mesh, x) for x in arrays))[0].params)
            return jax.device_get(done)

        return run

    def alone(cut: bool):
        def batches(r: int) -> dict:
            return {key: value[rows_R[r]] for key, value in pools[r].items()}

        if cut:
            placed = devices.place(mesh, state)
            first = devices.split(mesh, batches(0), axis=1)
            program = training.compile_chunk(loss, optimizer, placed, first, mesh)
        else:
            program = jax.jit(
                lambda state, batch: training.scan_steps(loss, optimizer, state, batch),
                compiler_options=devices.options(),
            )

        def run() -> list:
            done = []
            for r in range(args.runs):
                begin = devices.place(mesh, state) if cut else state
                batch = devices.split(mesh, batches(r), axis=1) if cut else batches(r)
                done.append(jax.device_get(program(begin, batch)[0].params))
            return done

        return run

    ways = {
        "population, lax.map within a device": together("map"),
        "population, vmap within a device": together("vmap"),
        "one after another, on one device": alone(cut=False),
        "one after another, batch cut over devices": alone(cut=True),
    }
    seconds: dict = {name: [] for name in ways}
    for run in ways.values():
        run()  # compiled
    for _ in range(args.turns):
        for name, run in ways.items():
            clock = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - clock)
    first = np.array(seconds["population, lax.map within a device"])
    for name, values in seconds.items():
        ratio = np.array(values) / first
        print(f"{name}: {spread(values, '.2f')} s; {spread(ratio, '.2f')} times the first")
    if args.json:
        args.json.write_text(json.dumps(seconds, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
