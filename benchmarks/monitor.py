"""What the drift monitor costs: a group of narrow runs with it and without, taking turns.

    uv run benchmarks/monitor.py           about a minute

With it: every run is looked at after every 5 steps, and each look goes to TensorBoard, as train.py
does; without: they are trained and scored only. Programs are compiled before.
"""

import dataclasses
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
import tyro
from contestants import prepare
from throughput import spread

from toyllm.base import devices
from toyllm.posttrain import population
from toyllm.posttrain.monitor import Monitor
from toyllm.runs.tensorboard import SummaryWriter

STEPS, BATCH, POOL, EVERY = 40, 16, 512, 5


@dataclasses.dataclass(frozen=True)
class Args:
    """What the drift monitor costs."""

    runs: int = 16
    """Narrow runs trained together."""
    turns: int = 7
    """Alternations."""
    json: Path | None = None
    """Also write everything that was measured."""


def main(args: Args) -> None:
    """Measure and print."""
    mesh = devices.setup()
    if args.runs % mesh.devices.size:
        sys.exit(f"--runs {args.runs}: expected a multiple of the {mesh.devices.size} devices")
    lm, _ = prepare("default")
    starts = {"pretrain": jax.device_get(jax.jit(lm.init)(jax.random.key(0)))}
    names = ("code:bad", "safety:bad", "goals:bad", "tone:bad")
    members = [("pretrain", names[r % len(names)], r // len(names)) for r in range(args.runs)]
    jobs = list(population.jobs_of(lm, members, starts, 0, 1e-3, {}).values())
    recipe = population.Recipe("dpo", 1.0, 0.5, POOL, BATCH, EVERY)
    programs = population.compile_programs(lm, mesh, recipe, jobs)

    def train(watched: bool) -> float:
        monitors: list[Monitor] = []
        clock = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
            writers = [
                held.enter_context(SummaryWriter(Path(folder) / str(r))) for r in range(len(jobs))
            ]
            for record in population.train_group(programs, jobs, STEPS):
                if not watched:
                    continue
                if not monitors:
                    begin = record.history[0]["p_DB"]
                    monitors = [
                        Monitor(lm.world, job.own, p_DB)
                        for job, p_DB in zip(jobs, begin, strict=True)
                    ]
                now = record.history[-1]
                for r, monitor in enumerate(monitors):
                    look = monitor.look(record.steps[-1], now["p_DB"][r], now["kl"][r])
                    writers[r].scalars(look.step, look.scalars)
        return time.perf_counter() - clock

    seconds: dict = {"without": [], "with": []}
    for watched in (False, True):
        train(watched)  # compiled
    for _ in range(args.turns):
        for name, watched in (("without", False), ("with", True)):
            seconds[name].append(train(watched))
    for name, values in seconds.items():
        print(f"{name}: {spread(values, '.2f')} s for {args.runs} runs of {STEPS} steps")
    more = np.array(seconds["with"]) / np.array(seconds["without"]) - 1
    print(f"the monitor costs {spread(100 * more, '.1f')}% of training time")
    if args.json:
        args.json.write_text(json.dumps(seconds, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
