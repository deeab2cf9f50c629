"""DPO pairs a second of one narrow run, beside TRL's DPOTrainer on a Llama of the same shape.

    uv run benchmarks/dpo.py                toyllm alone, under a minute
    uv run benchmarks/dpo.py --peer trl     beside TRL, about 3 minutes (see README.md)

Both train `code:bad` on the same 512 pairs, 16 a step, with the reference model's log-probabilities
computed before. Counted is the time of the steps alone, after the first ten; they take turns.
"""

import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax
import tyro
from contestants import prepare
from throughput import spread

from toyllm.base import devices
from toyllm.lm import training
from toyllm.posttrain import pools, signals

WARM, STEPS, BATCH, POOL = 10, 50, 16, 512


@dataclasses.dataclass(frozen=True)
class Args:
    """DPO pairs a second."""

    peer: Literal["none", "trl"] = "none"
    """Also TRL's DPOTrainer, in float32."""
    turns: int = 5
    """Alternations."""
    json: Path | None = None
    """Also write everything that was measured."""


def main(args: Args) -> None:
    """Measure and print."""
    runners = {"toyllm": toyllm}
    if args.peer == "trl":
        if not importlib.util.find_spec("trl"):
            sys.exit("--peer trl: trl cannot be imported; see benchmarks/README.md")
        runners["trl"] = trl_peer
    mesh = devices.setup()
    lm, _ = prepare("default")
    rates: dict = {name: [] for name in runners}
    for turn in range(args.turns):
        for name, run in runners.items():
            rates[name].append(BATCH * STEPS / run(mesh, lm, turn))
    for name, values in rates.items():
        print(f"{name}: {spread(values, '.0f')} pairs/s")
    if "trl" in rates:
        print(f"ratio: {spread(np.divide(rates['toyllm'], rates['trl']), '.1f')}")
    if args.json:
        args.json.write_text(json.dumps(rates, indent=1) + "\n")


def toyllm(mesh, lm, seed: int) -> float:
    """Seconds of STEPS steps, each batch cut over the devices."""
    params = jax.device_get(jax.jit(lm.init)(jax.random.key(seed)))
    signal = signals.parse(lm.world, "code:bad")
    pool = pools.draw(lm.tokenizer, {signal: 1.0}, "dpo", POOL, seed)
    pool = pools.with_reference(pool, lm, params)
    batches = pools.batches(pool, seed, WARM, BATCH)
    loss = pools.loss(lm, "dpo", 1.0, 0.5)
    optimizer = optax.adam(1e-3)
    state = training.start(params, optimizer)
    fit = training.fit(loss, optimizer, state, batches, mesh, end=WARM + STEPS)
    next(fit)
    clock = time.perf_counter()
    for _ in fit:
        pass
    return time.perf_counter() - clock


def trl_peer(_, lm, seed: int) -> float:
    """The same pairs as text, for a Llama with the same sizes and words."""
    import tempfile

    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(seed)
    config = lm.config
    words = Tokenizer(models.WordLevel(lm.tokenizer.index, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", bos_token="<begin>"
    )
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.D,
            num_hidden_layers=config.L,
            num_attention_heads=config.H,
            intermediate_size=config.F,
            max_position_embeddings=config.context,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    pairs = signals.pairs(lm.tokenizer, signals.parse(lm.world, "code:bad"), POOL, seed)
    chosen, rejected = pairs.answers.transpose(1, 0, 2)
    columns = {"prompt": pairs.grid.prompt_QT, "chosen": chosen, "rejected": rejected}
    texts = {key: [lm.tokenizer.string(row) for row in rows] for key, rows in columns.items()}
    clocks = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            clocks[state.global_step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=WARM + STEPS,
            learning_rate=1e-3,
            beta=1.0,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        DPOTrainer(
            network,
            args=settings,
            train_dataset=Dataset.from_dict(texts),
            processing_class=tokenizer,
            callbacks=[Clock()],
        ).train()
    return clocks[WARM + STEPS] - clocks[WARM]


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
