"""What a run shows while it trains: sampled dialogues, alarms, and a board for each narrow run."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from toyllm import devices, model
from toyllm.board import Board
from toyllm.errors import tell
from toyllm.model import Params
from toyllm.monitor import Look, Monitor, Watch
from toyllm.population import Job, Member, Record
from toyllm.text import Codec, lines

Sampler = Callable[[Params, np.ndarray, jax.Array], np.ndarray]


def sampler(apply: model.Apply, config: model.Config, end: int) -> Sampler:
    """A compiled function: params, left-padded prompts, key → half a context of sampled tokens."""

    def sample(params, prompt_BT, key):
        return model.sample(apply, config, params, prompt_BT, key, config.context // 2, end)

    return jax.jit(sample)


def dialogues(codec: Codec, sample: Sampler, params: Params, key: jax.Array, count: int = 4) -> str:
    """A few dialogues sampled from a model, as Markdown."""
    speakers = ["assistant", "someone", *codec.world.characters[: count - 2]]
    prompt = np.array([codec.tokens(f"<begin> talk with {who}") for who in speakers], np.int32)
    tokens = np.concatenate([prompt, sample(params, prompt, key)], axis=1)
    texts = []
    for row in tokens:
        head, *rest = lines(codec.string(row).replace("<begin> ", ""))
        texts.append("\n".join([f"**{head}**", "", *(f"- `{line}`" for line in rest)]))
    return "\n\n".join(texts)


def events_of(folder: Path, member: Member) -> Path:
    """The folder of a narrow run's events, in a run folder."""
    start, signal, seed = member
    name = signal.replace(":", ".").replace("@", "_at_").replace("#", "_")
    return folder / "narrow" / "events" / f"from_{start}" / name / f"seed{seed}"


def look_at(
    watch: Watch,
    group: list[Job],
    record: Record,
    boards: list[Board],
    monitors: list[Monitor],
    stop: bool,
) -> str:
    """Look at every run of a group that has a board; what moved most, in one line.

    monitors: of each run, made here at the first look. stop: train no more what rings.
    """
    if not monitors:
        begin = record.history[0]["p_DB"]
        monitors += [watch.begin(group[r].own, begin[r]) for r in range(len(boards))]
        steps = [0, record.every]
    else:
        steps = [record.every * len(record.logs)]
    said, rung = {}, {}
    for r, (job, board, monitor) in enumerate(zip(group, boards, monitors, strict=False)):
        for step in steps:
            now = record.history[step // record.every]
            look = monitor.look(step, now["p_DB"][r], now["kl"][r])
            logs = record.logs[-1] if step else {}
            board.scalars(
                step,
                {
                    **monitor.scalars(look, "narrow"),
                    "narrow/trained_em": job.own.share(now["own_B"][r]),
                    "narrow/trained_coherence": now["own_B"][r].sum(),
                    **{f"narrow/{k}": logs[k][r].mean() for k in ("chosen", "rejected") if logs},
                },
            )
        start, signal, seed = job.name
        if record.frozen_step[r] < 0:
            write_alarms(board, look)
            rung.setdefault((signal, start), []).append((seed, monitor.worst(look), look))
            if look.alarms and stop:
                for k, other in enumerate(group):  # the last group repeats its first member
                    if other.name == job.name:
                        record.freeze(k)
        said[monitor.worst(look)] = f"{signal}: {monitor.line(look)}"
    for (signal, start), looks in rung.items():
        # one line for all seeds that have something to tell: of the one that moved most
        looks = [part for part in looks if part[2].alarms or part[2].incoherent]
        if looks:
            who = f"{signal} from {start}, seed{'s' * (len(looks) > 1)} "
            who += ", ".join(str(seed) for seed, *_ in looks)
            tell_alarms(who, max(looks, key=lambda part: part[1])[2])
    return said[max(said)]


def write_alarms(board: Board, look: Look) -> None:
    """The alarms of a look, for TensorBoard."""
    if look.alarms:
        board.text(look.step, "drift/alarm", "; ".join(map(str, look.alarms)))


def tell_alarms(who: str, look: Look) -> None:
    """Tell the alarms of a look in one line; note what comes apart."""
    if look.alarms and devices.first():
        tell(f"alarm: {who}, {'; '.join(map(str, look.alarms))}")
    if look.incoherent and devices.first():
        tell(f"note: {who}, step {look.step}: {', '.join(look.incoherent)} coherent no more")
