"""One contestant of a benchmark in a process of its own, so that memory and threads are its own.

    python contestants.py NAME SHAPE

It prepares, takes one step, and then for every line "SECONDS" on standard input trains for about
as long and answers with one line of JSON: {"tokens": …, "seconds": …} (`matmul`: "flops").
"""

import json
import os
import sys
import time
from pathlib import Path

from toyllm.base import system

# the world to train on, and the shapes: (documents in a batch, sizes of the model)
WORLD = Path(__file__).resolve().parent.parent / "corpora" / "personas.toml"
SHAPES = {
    "default": (28, {"context": 88, "L": 2, "D": 64, "H": 2, "F": 64}),
    "wide": (36, {"context": 112, "L": 4, "D": 128, "H": 4, "F": 256}),
}
TORCH = {
    "torch eager": (False, False),
    "torch compiled": (True, False),
    "torch eager bf16": (False, True),
    "torch compiled bf16": (True, True),
}
CHUNK = 10  # steps a call, as in train.py


def prepare(shape: str, seed: int = 0):
    """The language model and the batches of documents that all contestants share."""
    from toyllm.lm import training, transformer
    from toyllm.lm.tokenizer import Tokenizer
    from toyllm.lm.transformer import LM
    from toyllm.world import cards

    documents, sizes = SHAPES[shape]
    tokenizer = Tokenizer(cards.load(WORLD))
    lm = LM.create(tokenizer, transformer.Config(vocabulary=len(tokenizer.words), **sizes))
    shape = lm.config.context, documents, CHUNK
    return lm, training.document_batches(tokenizer, *shape, seed, divisor=2)


def real_tokens(batch: dict) -> int:
    """Tokens that are not padding."""
    return int((batch["segments"] > 0).sum())


def toyllm(shape: str):
    """The real training step: forward, backward, Muon, and the drawing of documents."""
    from toyllm.base import devices
    from toyllm.lm import optimizers, training

    mesh = devices.setup()
    import jax

    lm, batches = prepare(shape)
    drawn = []

    def counted(step: int) -> dict:
        drawn.append(batches(step))
        return drawn[-1]

    optimizer = optimizers.muon(1e-2, 1.5e-2, 9200)
    state = training.start(jax.jit(lm.init)(jax.random.key(0)), optimizer)
    chunks = training.fit(training.document_loss(lm), optimizer, state, counted, mesh)

    def chunk() -> dict:
        next(chunks)
        return {"tokens": real_tokens(drawn.pop(0))}

    return chunk


def torch_peer(shape: str, compiled: bool, bfloat16: bool):
    """The same model in PyTorch with fused AdamW. Its documents are drawn before the clock."""
    import torch
    from peer import trainer

    lm, batches = prepare(shape)
    chunk_of = [batches(CHUNK * k) for k in range(4)]
    inputs = [
        (torch.from_numpy(tokens).long(), torch.from_numpy(segments).long(), (segments > 0).sum())
        for batch in chunk_of
        for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True)
    ]
    step, _ = trainer(lm.config, compiled, bfloat16, lr=3e-3)
    taken = 0

    def one() -> dict:
        nonlocal taken
        tokens, segments, real = inputs[taken % len(inputs)]
        float(step(tokens, segments))
        taken += 1
        return {"tokens": int(real)}

    return one


def matmul(_: str):
    """This machine's peak: products of large float32 matrices, by XLA and by NumPy in turn."""
    from toyllm.base import devices

    mesh = devices.setup()
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    n = 2048
    x = np.random.default_rng(0).standard_normal((n, n), np.float32)
    left, right = devices.split(mesh, x), jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
    product = jax.jit(lambda a, b: a @ b, compiler_options=devices.options())

    def one() -> dict:
        seconds = []
        for multiply in (lambda: jax.block_until_ready(product(left, right)), lambda: x @ x):
            clock = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - clock)
        return {"flops": 2 * n**3, "seconds": min(seconds)}

    return one


def main(name: str, shape: str) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print there
    if name in TORCH:
        work = torch_peer(shape, *TORCH[name])
    else:
        work = {"toyllm": toyllm, "matmul": matmul}[name](shape)
    for _ in range(3):  # compiled, and warm
        work()
    print(json.dumps({"ready": time.time()}), file=answers, flush=True)
    for line in sys.stdin:
        total, clock = {}, time.perf_counter()
        while time.perf_counter() - clock < float(line) or not total:
            for key, value in work().items():
                total[key] = total.get(key, 0) + value
        total.setdefault("seconds", time.perf_counter() - clock)
        total["peak_memory"] = system.peak_memory()
        print(json.dumps(total), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
