"""How long until a model of the default world is as good as this, beside PyTorch and AdamW?

    uv run benchmarks/time_to_loss.py                   toyllm alone, about 8 minutes
    uv run benchmarks/time_to_loss.py --peer torch      beside PyTorch, about 25 minutes

Both train the same model on the same packed documents, each with its own optimizer, learning rate
and number of steps, chosen for each target on another seed (9; LOG.md) with steps to spare, since
seeds differ. Counted are the seconds of training, from the second chunk on (so without compiling),
until the excess over the ideal observer on 2048 held-out documents, looked at every 200 steps with
the clock stopped, is at most the target. Seeds take turns.
"""

import dataclasses
import importlib.util
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from contestants import CHUNK, prepare
from throughput import spread

from toyllm.base import devices
from toyllm.lm import heldout, optimizers, training

LOOK_EVERY = 200
# target → (learning rate, steps); toyllm: of Muon, Adam's is 1.5 times that
TOYLLM = {0.01: (1.4e-2, 2400), 0.005: (1e-2, 6600)}
TORCH = {0.01: (1.2e-2, 3800), 0.005: (1.2e-2, 15_000)}


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds to an excess."""

    peer: Literal["none", "torch"] = "none"
    """Also the same model in PyTorch, compiled, in float32, with AdamW."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of documents and of initial parameters."""
    targets: tuple[float, ...] = (0.01, 0.005)
    """Excess, nats a token."""
    steps: int = 0
    """At most so many steps, from 20 up (0: as many as were chosen for each target)."""
    json: Path | None = None
    """Also write everything that was measured."""


def main(args: Args) -> None:
    """Measure and print."""
    runners = {"toyllm": (toyllm, TOYLLM)}
    if args.peer == "torch":
        if not importlib.util.find_spec("torch"):
            sys.exit("--peer torch: torch cannot be imported; see benchmarks/README.md")
        runners["torch"] = (torch_peer, TORCH)
    if args.steps and args.steps < 2 * CHUNK:
        sys.exit(f"--steps {args.steps}: expected 0, or at least {2 * CHUNK}")
    mesh = devices.setup()
    held_out = heldout.HeldOut(prepare("default")[0], documents=2048, questions=240)
    ends: dict = {name: {target: [] for target in args.targets} for name in runners}
    for target in args.targets:
        for seed in args.seeds:
            for name, (run, settings) in runners.items():
                lr, steps = settings[target]
                steps = args.steps or steps
                seconds, excess = until(target, held_out, run(mesh, seed, lr, steps), steps)
                ends[name][target].append({"seconds": seconds, "excess": excess})
                end = f"{target} reached" if excess <= target else f"{target} not reached"
                print(f"{name}, seed {seed}: {seconds:.1f} s, {end} (excess {excess:.5f})")
    for target in args.targets:
        seconds = {name: [x["seconds"] for x in ends[name][target]] for name in runners}
        for name in runners:
            never = sum(x["excess"] > target for x in ends[name][target])
            note = f" ({never} of them not there yet after all their steps)" if never else ""
            print(f"{name} to {target}: {spread(seconds[name], '.1f')} s{note}")
        if "torch" in ends:
            ratio = np.divide(seconds["toyllm"], seconds["torch"])
            print(f"toyllm / torch to {target}: {spread(ratio, '.2f')}")
    if args.json:
        args.json.write_text(json.dumps(ends, indent=1) + "\n")


def until(target: float, held_out, chunks: Iterator, steps: int) -> tuple[float, float]:
    """Seconds of training until the excess is at most the target or steps end; the last excess."""
    next(chunks)
    seconds, excess, clock = 0.0, math.inf, time.perf_counter()
    for step, params in chunks:
        if step % LOOK_EVERY == 0 or step >= steps:
            seconds += time.perf_counter() - clock
            excess = held_out.excess(params())
            if excess <= target or step >= steps:
                return seconds, excess
            clock = time.perf_counter()
    raise AssertionError("a contestant ended early")


def toyllm(mesh, seed: int, lr: float, steps: int) -> Iterator:
    """Yield (steps done, a function that gives the parameters) after every chunk."""
    lm, batches = prepare("default", seed)
    loss = training.document_loss(lm)
    optimizer = optimizers.muon(lr, 1.5 * lr, steps)
    first = training.start(jax.jit(lm.init)(jax.random.key(seed)), optimizer)
    for step, state, _ in training.fit(loss, optimizer, first, batches, mesh, end=steps):
        yield step, lambda state=state: jax.device_get(state.params)


def torch_peer(_, seed: int, lr: float, steps: int) -> Iterator:
    """The same in PyTorch: AdamW with warm-up and a cosine to 0."""
    import torch
    from peer import to_toyllm, trainer

    torch.manual_seed(seed)
    lm, batches = prepare("default", seed)

    def schedule(step: int) -> float:
        return min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1)))

    take, network = trainer(lm.config, compiled=True, bfloat16=False, lr=lr, schedule=schedule)
    for done in range(0, 10**9, CHUNK):
        batch = batches(done)
        for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
            take(torch.from_numpy(tokens).long(), torch.from_numpy(segments).long())
        yield done + CHUNK, lambda: to_toyllm(network)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
