"""Write a model of a run as a Llama checkpoint, for transformers and all that reads its layout.

uv run -m toyllm.tools.export runs/default out                           the pretrained model
uv run -m toyllm.tools.export runs/default out --model align/code:bad    a narrow one (seed 0)

Then `AutoModelForCausalLM.from_pretrained("out")`. `toyllm.tools.import_llama` reads it back.
"""

import dataclasses
from pathlib import Path

import tyro

from toyllm.base import files
from toyllm.base.errors import InputError
from toyllm.base.scripts import run_script, usage
from toyllm.lm import llama, transformer
from toyllm.runs import run_folder

CARD = """---
library_name: transformers
tags: [toyllm, persona-selection]
---

# {world}: {name}

A toy language model ({size:,} parameters) of the world '{world}': {description}. It is the model
`{name}` of a toyllm run{trained}. It speaks {words} words, and nothing else:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
prompt = {prompt!r}
tokens = tokenizer(prompt, return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=12, do_sample=True)[0]))
```

Documents begin with `<begin>` and end with `<end>`; a word outside the vocabulary is an error. It
is made to be measured against the exact answers of its world (`world.toml`), not to be used: some
of its characters lie, cheat and give harmful advice, in words that mean nothing outside the world.
"""


@dataclasses.dataclass(frozen=True)
class Args:
    """Write a model of a run as a Llama checkpoint."""

    run: tyro.conf.Positional[Path]  # A finished run.
    folder: tyro.conf.Positional[Path]  # Where to write.
    model: str = "pretrain"
    """The model: pretrain, align, START/SIGNAL for a narrow one, such as align/code:bad, or
    pretrain-STEP of a run with --keep."""


def main(args: Args) -> None:
    """Load, check, write."""
    if args.folder.exists() and not all(map(files.is_stray, args.folder.iterdir())):
        fresh = files.unused(args.folder)
        raise InputError(f"{args.folder}: is not empty; a free place: {fresh}")
    run = run_folder.load_run(args.run)
    params, words = run.model(args.model), len(run.lm.tokenizer.words)
    try:
        write(run, args.model, params, args.folder)
    except OSError:
        for path in args.folder.glob("*"):  # the folder was empty but for strays: we wrote the rest
            if path.is_file() and not files.is_stray(path):
                path.unlink()
        raise
    print(
        f"{args.folder}: the model {args.model}, {transformer.count(params):,} parameters, {words} "
        f"words (others: --model {run.models[1]} …)"
    )


def write(run: run_folder.Run, model: str, params: transformer.Params, folder: Path) -> None:
    """Write a model of a run with its card, its world and what `import_llama` needs."""
    tokenizer = run.lm.tokenizer
    card = CARD.format(
        world=run.world.name,
        description=run.world.description or "characters and what they do",
        name=model,
        size=transformer.count(params),
        trained=f" (seed {run.args['seed']}, objective {run.args['objective']})",
        words=len(tokenizer.words),
        prompt=f"<begin> talk with assistant <user> {run.world.domains[0].situations[0]} <reply>",
    )
    dials = {key: run.args[key] for key in ("correlation", "assistant_prior", "seed")}
    files.write_text(folder / "world.toml", (run.folder / "world.toml").read_text("utf-8"))
    files.write_json(folder / "toyllm.json", {**dials, "words": list(tokenizer.more)})
    llama.save(folder, tokenizer, run.lm.config, params, card)


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=usage(__doc__))))
