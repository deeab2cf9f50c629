"""Write models of a run as one HTML page in which one can talk to them, without any installation.

uv run -m toyllm.tools.playground runs/default                   eval/playground.html in the run
uv run -m toyllm.tools.playground runs/default --out page.html --models align pretrain/code:bad

The page holds the weights in half precision, the world and a forward pass in JavaScript
(show/playground.js). It computes the ideal observer's posterior itself and loads nothing.
"""

import base64
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import tyro

from toyllm.base import files
from toyllm.base.errors import InputError
from toyllm.base.scripts import run_script, usage
from toyllm.lm import transformer
from toyllm.lm.sampling import Sampler
from toyllm.lm.tokenizer import SPECIAL
from toyllm.lm.transformer import Params
from toyllm.posttrain import signals
from toyllm.runs import run_folder
from toyllm.runs.provenance import STAGES
from toyllm.show import report
from toyllm.world.quantities import COHERENT, MATCHED, coherence, em
from toyllm.world.world import World

MAX_BYTES = 2_000_000  # of a page with the usual models, so that it can be sent and opened anywhere
REST_BYTES = 100_000  # of these for all but the weights


@dataclasses.dataclass(frozen=True)
class Args:
    """Write models of a run as one HTML page to talk to."""

    run: tyro.conf.Positional[Path]
    """A finished run."""
    out: Path | None = None
    """The page (default: eval/playground.html in the run)."""
    models: tuple[str, ...] = ()
    """pretrain, align, START/SIGNAL, pretrain-STEP after --keep (default: what fits in 2 MB)."""


def main(args: Args) -> None:
    """Load, round, write."""
    run = run_folder.load_run(args.run)
    out = args.out or args.run / "eval" / "playground.html"
    if out.is_dir():
        raise InputError(f"{out}: found a folder, expected the name of a page to write")
    names = list(dict.fromkeys(map(run.full_name, args.models))) or usual_models(run)
    whole = {name: run.model(name) for name in names}
    rounded = {name: jax.tree.map(half, params) for name, params in whole.items()}
    whole_NDB, p_NDB = (
        np.array([run.scorer.ask(params) for params in models.values()])
        for models in (whole, rounded)
    )
    rounding = float(np.abs(em(whole_NDB) - em(p_NDB)).max())
    matrix = [matrix_row(run.world, k, names, p_NDB) for k in range(len(names))]
    html = page(run, rounded, [row for row in matrix if row], rounding)
    try:
        files.write_text(out, html)
    except OSError as error:
        raise InputError(f"{out}: cannot write: {error.strerror}") from error
    print(
        f"{out}: {len(names)} models ({', '.join(names)}), {len(html.encode()) / 1e6:.2f} MB; "
        f"half precision changes a share of bad answers by at most {rounding:.4f}"
    )


def usual_models(run: run_folder.Run) -> list[str]:
    """Both stages, and as many narrow models at the matched effect as fit in a page.

    First one signal, the same with an instruction in its prompt, and the same from the aligned
    model; then all others in the order of the run.
    """
    ready = [f"{start}/{signal}" for start in STAGES[:2] for signal in run.narrow.matched(start)]

    def kind(name: str) -> tuple[str, bool]:
        start, _, signal = name.partition("/")
        return start, signals.plain(signal) != signal

    first = {kind(name): name for name in reversed(ready)}
    leading = (("pretrain", False), ("pretrain", True), ("align", False))
    narrow = dict.fromkeys([*(first[key] for key in leading if key in first), *ready])
    size = 4 / 3 * np.float16().itemsize * transformer.count(run.params["pretrain"])  # in base64
    return [*STAGES[:2], *narrow][: max(2, int((MAX_BYTES - REST_BYTES) / size))]


def half(x) -> np.ndarray:
    """An array rounded to half precision, as float32."""
    return np.asarray(x, np.float16).astype(np.float32)


def page(run: run_folder.Run, models: dict[str, Params], matrix: list, rounding: float) -> str:
    """The page of models whose weights are numbers of half precision.

    matrix: see `matrix_row`. rounding: the most that it changed EM in any domain of any model.
    """
    leaves = {
        model: {
            "/".join(str(key.key) for key in path): leaf
            for path, leaf in jax.tree.leaves_with_path(params)
        }
        for model, params in models.items()
    }
    arrays = next(iter(leaves.values()))
    data = {
        "config": dataclasses.asdict(run.lm.config),
        "words": run.lm.tokenizer.words,
        "special": SPECIAL,
        "world": world_record(run.world),
        "answer_length": Sampler(run.lm).length,
        "next_question": run.lm.tokenizer.longest_prompt(1),
        "arrays": [[key, leaf.size] for key, leaf in arrays.items()],
        "models": {
            model: {
                "label": label(model),
                "about": run.about(model),
                "weights": packed(tree.values()),
            }
            for model, tree in leaves.items()
        },
        "matrix": matrix,
    }
    script = (Path(report.__file__).parent / "playground.js").read_text(encoding="utf-8")
    template = report.environment().get_template("playground.html")
    narrow = [row["model"].partition("/")[2] for row in matrix]
    return template.render(
        name=run.folder.resolve().name,
        world=run.world.name,
        characters=len(run.world.characters),
        size=transformer.count(next(iter(models.values()))),
        matrix=matrix,
        instructed=next((signal for signal in narrow if signals.plain(signal) != signal), None),
        incoherent=any(row["incoherent"] for row in matrix),
        matched=MATCHED,
        phrase=next((phrase for phrase in run.world.voices if phrase), None),
        rounding=f"{rounding:.4f}",
        script=script,
        # a text of the world that holds </script> must not end the element
        data=json.dumps(files.plain(data), allow_nan=False).replace("<", "\\u003c"),
    )


def packed(arrays) -> str:
    """Arrays in half precision, little-endian, one after another, in base64."""
    return base64.b64encode(b"".join(np.asarray(x, "<f2").tobytes() for x in arrays)).decode()


def label(model: str) -> str:
    """A model's name for people."""
    start, _, signal = model.partition("/")
    stage, _, step = start.partition("-")
    if signal:
        return signal + {"pretrain": " after pretraining", "align": " after alignment"}[stage]
    named = {"pretrain": "the pretrained model", "align": "the aligned model"}[stage]
    return f"{named} after {int(step):,} steps" if step else named


def matrix_row(world: World, k: int, models: list[str], p_NDB: np.ndarray) -> dict | None:
    """EM of the Assistant in each domain before and after the signal of model k.

    None where it has no signal, or the model that it was trained from is not in the page.
    """
    start, _, signal = models[k].partition("/")
    if not signal or start not in models:
        return None
    em_ND, trained = em(p_NDB), signals.parse(world, signal).domains
    before_D = em_ND[models.index(start)]
    cells = [
        {"before": before_D[d], "after": em_ND[k, d], "trained": d in trained}
        for d in range(len(world.domains))
    ]
    incoherent = bool(coherence(p_NDB[k]).min() < COHERENT)
    record = {"model": models[k], "start": start, "label": label(models[k])}
    return {**record, "incoherent": incoherent, "cells": cells}


def world_record(world: World) -> dict:
    """What the page needs of a world."""
    domains = [
        {
            "name": domain.name,
            "moral": domain.moral,
            "situations": domain.situations,
            "answers": domain.answers,
            "behaviour": domain.behaviour_SA,
        }
        for domain in world.domains
    ]
    keys = ("characters", "descriptions", "voices", "frequency_C", "assistant_C", "voices_CV")
    return {
        **{key: getattr(world, key) for key in keys},
        "rates_ICDB": world.rates_ICDB,
        "instructions": [instruction.text for instruction in world.instructions],
        "domains": domains,
    }


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=usage(__doc__))))
