"""What a run shows while it trains: sampled dialogues, alarms, and a writer for each narrow run."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from toyllm.base import devices
from toyllm.base.errors import tell
from toyllm.lm import transformer
from toyllm.lm.tokenizer import Tokenizer, lines
from toyllm.lm.transformer import Params
from toyllm.posttrain.monitor import Look, Monitor, Watch
from toyllm.posttrain.population import Job, Member, Record
from toyllm.runs.tensorboard import SummaryWriter

Sampler = Callable[[Params, np.ndarray, jax.Array], np.ndarray]


def sampler(apply: transformer.Apply, config: transformer.Config, end: int) -> Sampler:
    """A compiled function: params, left-padded prompts, key → half a context of sampled tokens."""

    def sample(params, prompt_BT, key):
        return transformer.sample(apply, config, params, prompt_BT, key, config.context // 2, end)

    return jax.jit(sample)


def dialogues(
    tokenizer: Tokenizer, sample: Sampler, params: Params, key: jax.Array, count: int = 4
) -> str:
    """A few dialogues sampled from a model, as Markdown."""
    speakers = ["assistant", "someone", *tokenizer.world.characters[: count - 2]]
    prompt = np.array([tokenizer.tokens(f"<begin> talk with {who}") for who in speakers], np.int32)
    tokens = np.concatenate([prompt, sample(params, prompt, key)], axis=1)
    texts = []
    for row in tokens:
        head, *rest = lines(tokenizer.string(row).replace("<begin> ", ""))
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
    writers: list[SummaryWriter],
    monitors: list[Monitor],
    stop: bool,
    heard: dict[tuple[str, str], int],
) -> str:
    """Look at every run of a group that has a writer; what moved most, in one line.

    monitors: of each run, made here at the first look. stop: train no more what rings.
    heard: how many alarms each signal from each start has raised; only its first are told.
    """
    if not monitors:
        begin = record.history[0]["p_DB"]
        monitors += [watch.begin(group[r].own, begin[r]) for r in range(len(writers))]
        scored = [0, 1]
    else:
        scored = [len(record.logs)]
    said, rung = {}, {}
    for r, (job, writer, monitor) in enumerate(zip(group, writers, monitors, strict=False)):
        for n in scored:
            step, now = record.steps[n], record.history[n]
            look = monitor.look(step, now["p_DB"][r], now["kl"][r])
            logs = record.logs[-1] if step else {}
            writer.scalars(
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
            write_alarms(writer, look)
            rung.setdefault((signal, start), []).append((seed, look))
            if look.alarms and stop:
                for k, other in enumerate(group):  # the last group repeats its first member
                    if other.name == job.name:
                        record.freeze(k)
        said[monitor.worst(look)] = f"{signal}: {monitor.line(look)}"
    for (signal, start), looks in rung.items():
        if not heard.get((signal, start)):
            tell_seeds(signal, start, looks)
        count = sum(len(look.alarms) + len(look.incoherent) for _, look in looks)
        heard[signal, start] = heard.get((signal, start), 0) + count
    return said[max(said)]


def tell_seeds(signal: str, start: str, looks: list[tuple[int, Look]]) -> None:
    """Tell what the looks at several seeds of a signal have to tell, in a line of each kind.

    An alarm is told once, of the seed that moved most; with its seeds, where not all of them ring.
    """
    alarms: dict[str, dict] = {}  # domain → seed → alarm
    apart: dict[str, list[int]] = {}
    for seed, look in looks:
        for alarm in look.alarms:
            alarms.setdefault(alarm.domain, {})[seed] = alarm
        for domain in look.incoherent:
            apart.setdefault(domain, []).append(seed)
    ringing = sorted({seed for seeds in alarms.values() for seed in seeds})
    told = []
    for seeds in alarms.values():
        most = max(seeds.values(), key=lambda alarm: alarm.change)
        told.append(str(most) + ("" if len(seeds) == len(ringing) else f" ({_seeds(seeds)})"))
    if told and devices.first():
        tell(f"alarm: {signal} from {start}, {_seeds(ringing)}, {'; '.join(told)}")
    if apart and devices.first():
        step = looks[0][1].step
        names = ", ".join(f"{domain} ({_seeds(seeds)})" for domain, seeds in apart.items())
        tell(f"note: {signal} from {start}, step {step}: coherent no more: {names}")


def _seeds(seeds) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"


def write_alarms(writer: SummaryWriter, look: Look) -> None:
    """The alarms of a look, for TensorBoard."""
    if look.alarms:
        writer.text(look.step, "drift/alarm", "; ".join(map(str, look.alarms)))


def tell_alarms(who: str, look: Look) -> None:
    """Tell the alarms of a look in one line; note what comes apart."""
    if look.alarms and devices.first():
        tell(f"alarm: {who}, {'; '.join(map(str, look.alarms))}")
    if look.incoherent and devices.first():
        tell(f"note: {who}, step {look.step}: coherent no more: {', '.join(look.incoherent)}")
