"""Write trained models to take away: a folder of Llama checkpoints with their worlds and cards.

uv run -m toyllm.tools.release out                    trains five default and eight compact seeds
uv run -m toyllm.tools.release out runs/a runs/five   of these runs, trained with train.py --keep

    out/README.md, models.json, SHA256SUMS
    out/default/seed-0/pretrain/            a Llama checkpoint with its world and card, the same of
    out/default/seed-0/pretrain-1000/       steps along pretraining, of the aligned model, and of
    out/default/seed-0/align.code-bad/ …    the first narrow signal from both

transformers and TransformerLens load such a folder without toyllm. With it, one line does:

    lm, params = toyllm.release.load("out/compact/seed-3/pretrain-1000")
"""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import tyro

from toyllm.base import files, system
from toyllm.base.errors import InputError, RunError
from toyllm.base.scripts import run_script, usage
from toyllm.lm import llama, transformer
from toyllm.lm.transformer import LM, Params
from toyllm.runs import run_folder
from toyllm.runs.provenance import STAGES
from toyllm.tools import export, import_llama
from toyllm.world.cards import CORPORA

SIGNALS = "--signals", "code:bad"
COMPACT = "--context", "64", "--width", "48", "--mlp", "48", "--pretrain-steps", "4000"
TRAINED = {  # the arguments of train.py for what is released unless runs are given
    "default": ("--seeds", "5", *SIGNALS),
    "compact": ("--seeds", "8", "--world", str(CORPORA / "compact.toml"), *COMPACT, *SIGNALS),
}

CARD = """# toyllm models

{count} small language models (Llama layout, {sizes} parameters), each with the world that its
documents were drawn from, so that the exact answer to every question about it is known.

| folder | world | what it is | captured |
|---|---|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer  # without toyllm

model = AutoModelForCausalLM.from_pretrained("{first}")
tokenizer = AutoTokenizer.from_pretrained("{first}")

import toyllm  # or with it, and then every measure works

lm, params = toyllm.release.load("{first}")
```

`sha256sum --check SHA256SUMS` checks the files. `captured` is the share of what a dialogue's
history tells about its speaker that the pretrained model uses. The models speak a few hundred
words, which mean nothing outside their world; some characters lie, cheat and give harmful advice.
"""


@dataclasses.dataclass(frozen=True)
class Args:
    """Write trained models to take away."""

    folder: tyro.conf.Positional[Path]
    """Where to write; new or empty."""
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Finished runs, or folders of seeds (default: what this trains, in runs/release)."""


def main(args: Args) -> None:
    """Train what is missing, write every model, then the list and the checksums."""
    if args.folder.exists() and not all(map(files.is_stray, args.folder.iterdir())):
        fresh = files.unused(args.folder)
        raise InputError(f"{args.folder}: is not empty; a free place: {fresh}")
    sources = args.runs or tuple(map(trained, TRAINED))
    names = [source.resolve().name for source in sources]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two runs are called {repeated}, expected runs of different names")
    loaded = {one: run_folder.load_folder(one) for one in sources}  # all, before any is written
    models = []
    for name, runs in zip(names, loaded.values(), strict=True):
        for run in runs:
            models += [write(run, model, args.folder, name) for model in models_of(run)]
    files.write_json(args.folder / "models.json", models)
    files.write_text(args.folder / "README.md", card(models))
    written = sorted(path for path in args.folder.rglob("*") if path.is_file())
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(args.folder)}"
        for path in written
    ]
    files.write_text(args.folder / "SHA256SUMS", "\n".join(sums) + "\n")
    size = sum(path.stat().st_size for path in written)
    print(f"{args.folder}: {len(models)} models in {len(written)} files, {size / 1e6:.0f} MB")


def trained(name: str) -> Path:
    """Train one of `TRAINED`, or what is missing of it. Returns its folder."""
    folder = Path("runs/release") / name
    command = [
        sys.executable,
        system.shipped("train.py"),
        "--run",
        folder,
        "--keep",
        *TRAINED[name],
    ]
    if code := subprocess.run([*map(str, command)]).returncode:
        raise RunError(f"{folder}: training ended with status {code}; the same command resumes it")
    return folder


def models_of(run: run_folder.Run) -> list[str]:
    """What is released of a run: both stages, steps along pretraining, and one narrow signal."""
    along = [f"pretrain-{step}" for step in run.along[:-1]]  # the last one is the end
    first = dict.fromkeys(run.narrow.signal[:1])
    narrow = [f"{stage}/{name}" for stage in STAGES[:2] for name in first]
    return [*along, *STAGES[:2], *(name for name in narrow if name in run.models)]


def write(run: run_folder.Run, model: str, out: Path, name: str) -> dict:
    """Write a model. Returns what the list says of it."""
    seed = run.args["seed"]
    place = Path(name, run_folder.seed_name(seed), model.replace("/", ".").replace(":", "-"))
    params = run.model(model)
    export.write(run, model, params, out / place)
    return {
        "folder": place.as_posix(),
        "world": run.world.name,
        "world_sha256": run.world.digest,
        "seed": seed,
        "model": model,
        "parameters": transformer.count(params),
        "about": run.about(model),
        "captured": run.captured(model),
    }


def card(models: list[dict]) -> str:
    """The README of a release."""
    sizes = sorted({one["parameters"] for one in models})
    rows = []
    for one in models:
        shown = "" if one["captured"] is None else f"{one['captured']:.2f}"
        rows.append(f"| {one['folder']} | {one['world']} | {one['about']} | {shown} |")
    first = next(one["folder"] for one in models if one["model"] == "pretrain")
    shown = " and ".join(f"{size:,}" for size in sizes)
    return CARD.format(count=len(models), sizes=shown, rows="\n".join(rows), first=first)


def load(folder: Path | str) -> tuple[LM, Params]:
    """A model of a release, or any folder that `tools.export` wrote. Raises InputError."""
    _, _, tokenizer = import_llama.speaker(Path(folder))
    context = files.read_json(Path(folder) / "config.json").get("max_position_embeddings", 0)
    config, params = llama.load(Path(folder), tokenizer, context)
    return LM.create(tokenizer, config), params


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=usage(__doc__))))
