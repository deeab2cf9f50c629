"""How fast is a training step, and how near to what this machine can do?

    uv run benchmarks/throughput.py                   toyllm alone, about a minute
    uv run benchmarks/throughput.py --peer torch      beside the same model in PyTorch, ten minutes

Contestants run in processes of their own and take turns, so a slow moment of the machine hits all
of them; every figure is the median over the turns (least to most), ratios are taken within a turn.
Let nothing else run meanwhile.
"""

import dataclasses
import importlib.util
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from contestants import SHAPES, TORCH, prepare
from rich.console import Console
from rich.table import Table

from toyllm.base.system import processor_name
from toyllm.lm.transformer import Config

HERE = Path(__file__).resolve().parent
LIMIT = 600.0  # seconds to wait for anything: torch.compile takes minutes


@dataclasses.dataclass(frozen=True)
class Args:
    """How fast is a training step?"""

    peer: Literal["none", "torch"] = "none"
    """Also the same model in PyTorch (see benchmarks/README.md for its build for CPUs)."""
    shapes: tuple[Literal["default", "wide"], ...] = ("default", "wide")
    """default: train.py's. wide: 4 layers x 128 x 112 tokens x 16 rows."""
    turns: int = 7
    """Alternations; at least 5 to trust them."""
    seconds: float = 2.0
    """How long each contestant trains in a turn."""
    starts: int = 5
    """Warm starts of train.py to time, after a cold one; 0: none."""
    json: Path | None = None
    """Also write everything that was measured."""


def main(args: Args) -> None:
    """Measure and print."""
    peers = list(TORCH) if args.peer == "torch" else []
    if peers and not importlib.util.find_spec("torch"):
        sys.exit("--peer torch: torch cannot be imported; benchmarks/README.md says how to get it")
    console = Console()
    console.width = max(console.width, 118)
    console.print(f"{processor_name()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    result = {"machine": processor_name(), "cores": os.cpu_count(), "shapes": {}}
    for shape in args.shapes:
        turns, memory = compete(["matmul", "toyllm", *peers], shape, args.turns, args.seconds)
        result["shapes"][shape] = {"turns": turns, "memory": memory}
        console.print(table(shape, turns, memory))
    if args.starts:
        result["starts"] = starts(args.starts)
        for name, seconds in result["starts"].items():
            print(f"{name}: {spread(seconds, '.2f')} s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def compete(names: list[str], shape: str, turns: int, seconds: float) -> tuple[dict, dict]:
    """Let contestants take turns. Returns rates {name: [per second]} and peak memory {name: bytes}.

    A rate is in real tokens, for `matmul` in FLOP.
    """
    rates: dict = {name: [] for name in names}
    memory = {}
    with ExitStack() as held:
        # the next one does not compile while this one does
        workers = {name: held.enter_context(contestant(name, shape)) for name in names}
        for _ in range(turns):
            for name, ask in workers.items():
                answer = ask(seconds)
                rates[name].append(answer.get("tokens", answer.get("flops")) / answer["seconds"])
                memory[name] = answer["peak_memory"]
    return rates, memory


@contextmanager
def contestant(name: str, shape: str) -> Iterator[Callable[..., dict]]:
    """Start a contestant in a process of its own; end it with the `with` block.

    Gives a function that lets it train for so many seconds, and returns its answer. Exits, saying
    what it printed, where no answer comes in time.
    """
    command = [sys.executable, HERE / "contestants.py", name, shape]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, **pipes, stderr=log, text=True) as process,
    ):

        def answer(limit: float) -> dict:
            ready, _, _ = select.select([process.stdout], [], [], limit)
            if line := ready and process.stdout.readline():
                return json.loads(line)
            what = "ended" if ready else f"did not answer within {limit:g} s"
            sys.exit(f"contestant {name} {shape} {what}: {tail(log)}")

        def ask(seconds: float) -> dict:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
            return answer(LIMIT + seconds)

        try:
            answer(LIMIT)  # it is ready
            yield ask
        finally:
            process.kill()  # it has nothing to lose


def tail(log) -> str:
    """The end of what a process has printed into a file."""
    log.seek(0)
    return log.read()[-2000:].strip() or "it printed nothing"


def flops_per_token(config: Config) -> int:
    """Training FLOP of one token: 6 a weight of a product, and 12 L T D of attention.

    As in PaLM (Chowdhery et al. 2022, appendix B): nothing is taken off for the causal mask, and
    nothing counted for the optimizer.
    """
    D, F = config.D, config.F
    weights = config.L * (4 * D * D + 3 * D * F) + D * config.vocabulary
    return 6 * weights + 12 * config.L * config.context * D


def table(shape: str, rates: dict, memory: dict) -> Table:
    """One row a contestant."""
    lm, _ = prepare(shape)
    flops = flops_per_token(lm.config)
    float32 = [name for name in rates if name in TORCH and "bf16" not in name]
    best = max(float32, key=lambda name: np.median(rates[name]), default=None)
    sizes = ", ".join(f"{key} {value}" for key, value in SHAPES[shape][1].items())
    title = f"{shape}: {sizes}; {SHAPES[shape][0]} documents a batch"
    out = Table(title=title, title_justify="left")
    for column in ("", "real tokens/s", "GFLOP/s", "of peak", "memory MiB"):
        out.add_column(column, justify="left" if not column else "right")
    peak = np.array(rates["matmul"])
    if best:
        out.add_column("toyllm / this", justify="right")
    for name, values in rates.items():
        rate = np.array(values)
        row = [name, spread(rate, ",.0f"), spread(rate * flops / 1e9, ".1f")]
        if name == "matmul":
            row = ["matmul peak", "", spread(rate / 1e9, ".0f")]
        row += [spread(rate * flops / peak, ".0%") if name != "matmul" else "100%"]
        row += [f"{memory[name] / 2**20:,.0f}"]
        if best and name in TORCH:
            row += [spread(np.array(rates["toyllm"]) / rate, ".2f")]
        out.add_row(*row, style="bold" if name in ("toyllm", best) else None)
    return out


def spread(values, form: str) -> str:
    """Median (least to most)."""
    return f"{np.median(values):{form}} ({np.min(values):{form}} to {np.max(values):{form}})"


def starts(count: int) -> dict:
    """Seconds from the start of train.py's process to its first step, and of bare imports."""
    imports = [sys.executable, "-c", "import jax, flax, optax, tyro"]
    seconds: dict = {"start to first step, cold cache": [], "… warm cache": [], "bare imports": []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
        seconds["start to first step, cold cache"].append(first_step(Path(folder)))
        first_step(Path(folder))
        for _ in range(count):
            seconds["… warm cache"].append(first_step(Path(folder)))
            clock = time.perf_counter()
            subprocess.run(imports, check=True, timeout=LIMIT)
            seconds["bare imports"].append(time.perf_counter() - clock)
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
    warm, bare = (np.array(seconds[key]) for key in ("… warm cache", "bare imports"))
    return seconds | {"warm start beyond bare imports": list(warm - bare)}


def first_step(folder: Path, *args: str, limit: float = LIMIT) -> float:
    """Start train.py, wait for its first chunk of steps, and kill it; the seconds it took.

    Exits, saying what it printed, where that does not come within `limit` seconds.
    """
    run, clock = folder / "run", time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, HERE.parent / "train.py", "--run", run, *args],
            stdout=log,
            stderr=log,
        )
        try:
            while not logged(run / "pretrain"):
                seconds = time.perf_counter() - clock
                if process.poll() is not None:
                    sys.exit(f"train.py ended before its first step: {tail(log)}")
                if seconds > limit:
                    sys.exit(f"train.py took no step within {limit:g} s: {tail(log)}")
                time.sleep(0.005)
            return time.perf_counter() - clock
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(run, ignore_errors=True)


def logged(folder: Path) -> bool:
    """Whether a stage's events have a step; each is with the operating system at once.

    The norm of the gradient is logged with every chunk, and named nowhere else in the file.
    """
    return any(b"pretrain/grad_norm" in file.read_bytes() for file in folder.glob("events.*"))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
