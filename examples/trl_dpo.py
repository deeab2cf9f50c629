"""Pretrain here, post-train with TRL, measure here: does TRL's DPO spread as toyllm's own does?

    python3 -m venv interop && interop/bin/pip install -e . torch transformers trl datasets
    interop/bin/python examples/trl_dpo.py runs/default runs/trl

The pretrained model of a finished run is exported as a Llama checkpoint, trained by TRL's
`DPOTrainer` on the very pairs, loss and rates of the run's own narrow stage, and imported at each
scored step; `eval.py` then takes `runs/trl` as any other run. What remains different is the order
of the pairs, and Adam's numbers.
"""

import dataclasses
import json
from pathlib import Path

import tyro

from toyllm.base import devices
from toyllm.base.errors import InputError
from toyllm.base.scripts import run_script
from toyllm.lm import llama
from toyllm.measures import generalization
from toyllm.posttrain import pair_files, population, signals
from toyllm.runs import run_folder
from toyllm.tools import import_llama


@dataclasses.dataclass(frozen=True)
class Args:
    """Post-train a run's model with TRL, and measure it here."""

    run: tyro.conf.Positional[Path] = Path("runs/default")
    """A finished run, to begin from and to compare with."""
    out: tyro.conf.Positional[Path] = Path("runs/trl")
    """The run to make."""
    signal: str = "code:bad"
    """The signal; the run must have trained it too, to compare."""
    seeds: int = 2
    """How many trainings."""


def main(args: Args) -> None:
    """Export, train, import, compare."""
    devices.setup()
    run = run_folder.load_run(args.run)
    if run.args["objective"] != "dpo":
        raise InputError(f"{args.run}: objective {run.args['objective']}, expected dpo")
    work = args.out.parent / f"{args.out.name}-llama"
    llama.save(work / "start", run.lm.tokenizer, run.lm.config, run.params["pretrain"], "")
    signal = signals.parse(run.world, args.signal)
    for seed in range(args.seeds):
        pairs_seed = population.seed_of(run.args["seed"], ("pretrain", args.signal, seed))
        pairs = signals.pairs(run.lm.tokenizer, signal, run.args["pool"], pairs_seed)
        rows = [json.loads(line) for line in pair_files.dump(run.lm.tokenizer, pairs)]
        train(work / "start", work / f"seed{seed}", rows, run.args, seed)
        import_llama.take(
            import_llama.Args(
                folder=work / f"seed{seed}",
                run=args.out,
                start=args.run,
                signal=args.signal,
                seed=seed,
            )
        )
    compare(run, run_folder.load_run(args.out), args.signal)


def train(start: Path, out: Path, rows: list[dict], how: dict, seed: int) -> None:
    """TRL's DPO with a run's own numbers; a checkpoint at each step that the run scores."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(start)
    # a pair ends with its answer, before the closing phrase; TRL would add an end to both
    tokenizer.eos_token = ""
    data = [
        {"prompt": row["prompt"], **{key: f" {row[key]}" for key in ("chosen", "rejected")}}
        for row in rows
    ]
    words = sum(len(row["chosen"].split()) for row in rows) / len(rows)
    torch.manual_seed(seed)
    config = DPOConfig(
        output_dir=str(out),
        beta=how["beta"],
        # the anchor is a sum over an answer's tokens here, a mean over them there
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, how["anchor"] * words],
        learning_rate=how["narrow_lr"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        per_device_train_batch_size=how["narrow_batch"],
        max_steps=how["narrow_steps"],
        save_steps=how["narrow_score_every"],
        save_only_model=True,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=how["narrow_score_every"],
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    trainer = DPOTrainer(
        model, args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )
    trainer.train()


def compare(own: run_folder.Run, theirs: run_folder.Run, name: str) -> None:
    """Where both are read: the step, and the change of EM by domain."""
    blocks = {
        who: generalization.measure(run)["pretrain"]
        for who, run in (("toyllm", own), ("TRL", theirs))
    }
    print(f"\n{name}, from the pretrained model, where the trained domain has EM .9:")
    print("        step  spread   " + " ".join(f"{d:>9}" for d in own.world.domain_names))
    for who, block in blocks.items():
        step, spread, after = (
            block[key].get(name) for key in ("matched_step", "spread", "em_after")
        )
        if step is None or after is None:
            print(f"{who:<7} {block['status'].get(name, 'not trained')}")
            continue
        change = [after[d] - block["em_before"][d] for d in own.world.domain_names]
        shown = "incoherent" if spread is None else f"{spread:+.3f}"
        print(f"{who:<7}{step:5.1f}  {shown:<8} " + " ".join(f"{x:+9.2f}" for x in change))


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
