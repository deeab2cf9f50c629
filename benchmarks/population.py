"""32 narrow runs as a population, against the same runs one after another.

    uv run benchmarks/population.py           about 3 minutes

As a population: groups of 16 share the devices, each device taking its runs one by one (lax.map).
For comparison, each device takes its runs all at once (vmap); and one after another, each run
alone, on one device and with its batch cut over all devices. Counted are the seconds of 10 training
steps of every run (compiled before); the ways take turns.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from contestants import prepare
from jax.sharding import Mesh
from throughput import spread

from toyllm.base import devices
from toyllm.lm import training
from toyllm.posttrain import pools, signals

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
    if args.runs % args.group or args.group % mesh.devices.size:
        sys.exit(
            f"--runs {args.runs} --group {args.group}: expected runs to be a multiple of group, "
            f"and group one of the {mesh.devices.size} devices"
        )
    work = Work.make(args.runs)
    ways = {
        "population, lax.map within a device": together(work, mesh, args.group, "map"),
        "population, vmap within a device": together(work, mesh, args.group, "vmap"),
        "one after another, on one device": alone(work),
        "one after another, batch cut over devices": alone_cut(work, mesh),
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


@dataclasses.dataclass(frozen=True)
class Work:
    """What every way of doing it starts from."""

    loss: training.Loss
    optimizer: optax.GradientTransformation
    state: training.State
    pools: list[dict]  # the pairs of each run …
    rows: list[np.ndarray]  # … and which of them each step takes [STEPS, BATCH]

    @classmethod
    def make(cls, runs: int) -> "Work":
        """Runs of 8 signals, each with pairs of its own."""
        lm, _ = prepare("default")
        params = jax.device_get(jax.jit(lm.init)(jax.random.key(0)))
        names = [f"{d.name}:bad" for d in lm.world.domains if d.moral][:8]
        parsed = [signals.parse(lm.world, names[r % len(names)]) for r in range(runs)]
        pairs = [
            pools.draw(lm.tokenizer, {signal: 1.0}, "dpo", POOL, seed=r)
            for r, signal in enumerate(parsed)
        ]
        optimizer = optax.adam(1e-3)
        return cls(
            loss=pools.loss(lm, "dpo", 1.0, 0.5),
            optimizer=optimizer,
            state=jax.device_get(training.start(params, optimizer)),
            pools=[pools.with_reference(pool, lm, params) for pool in pairs],
            rows=[pools.draw_rows(r, 0, STEPS, BATCH, POOL) for r in range(runs)],
        )

    def batches(self, r: int) -> dict:
        """A run's batches, stacked."""
        return {key: value[self.rows[r]] for key, value in self.pools[r].items()}


def together(work: Work, mesh: Mesh, group: int, inside: str) -> Callable:
    """Groups of runs as `train.py` takes them."""

    def step(state, pool, index_KB):
        batches = jax.tree.map(lambda x: x[index_KB], pool)
        return training.scan_steps(work.loss, work.optimizer, state, batches)

    program = devices.over_models(step, mesh, inside=inside)
    groups = [slice(k, k + group) for k in range(0, len(work.pools), group)]
    states = devices.stack([work.state] * group)

    def run() -> list:
        done = []
        for part in groups:
            arrays = states, devices.stack(work.pools[part]), np.stack(work.rows[part])
            done.append(program(*(devices.split(mesh, x) for x in arrays))[0].params)
        return jax.device_get(done)

    return run


def alone(work: Work) -> Callable:
    """One run after another, each on one device."""
    program = jax.jit(
        lambda state, batches: training.scan_steps(work.loss, work.optimizer, state, batches),
        compiler_options=devices.options(),
    )

    def run() -> list:
        return [
            jax.device_get(program(work.state, work.batches(r))[0].params)
            for r in range(len(work.pools))
        ]

    return run


def alone_cut(work: Work, mesh: Mesh) -> Callable:
    """One run after another, each batch cut over all devices."""

    def placed(r: int) -> tuple:
        return devices.place(mesh, work.state), devices.split(mesh, work.batches(r), axis=1)

    program = training.compile_chunk(work.loss, work.optimizer, *placed(0), mesh)

    def run() -> list:
        return [jax.device_get(program(*placed(r))[0].params) for r in range(len(work.pools))]

    return run


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
