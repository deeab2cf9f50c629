"""The narrow stage of a run: which groups are left to train, their events and alarms.

with NarrowStage(run, members) as stage:
    for group in stage.missing():
        for record in population.train_group(programs, jobs, steps, stage.kept_steps):
            group.look(record)
        group.save(record)
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from toyllm.base import devices, files, scripts
from toyllm.posttrain.monitor import Look, Monitor
from toyllm.posttrain.population import Job, Member, Record
from toyllm.runs import checkpoints, run_folder
from toyllm.runs.stage import check_losses
from toyllm.runs.tensorboard import SummaryWriter

GROUP = 16  # narrow runs trained together


class NarrowStage:
    """The narrow runs of a run, in groups that are trained together; finished groups are skipped.

    kept_steps: the step at which each finished member reached the matched effect; -1: never.
    """

    def __init__(self, run, members: list[Member]):
        """run: a `session.Session`."""
        self.run, self.members, self.folder = run, members, run.folder / "narrow"
        self.count = run.mesh.devices.size
        size = min(max(GROUP, self.count), len(members))  # at least one for each device
        self.groups = {
            self.folder / f"group-{k // size:02}": members[k : k + size]
            for k in range(0, len(members), size)
        }
        self.kept_steps: dict[Member, int] = {}
        self.alarms: dict = {}  # (signal, start) → how many alarms and notes it has raised
        self.seconds = 0.0

    def __enter__(self) -> "NarrowStage":
        steps = len(self.members) * self.run.args.narrow_steps
        self.bar = self.run.progress("narrow", 0, steps).__enter__()
        return self

    def __exit__(self, kind, *_) -> None:
        self.bar.close()
        if kind is None:
            self._finish()

    def missing(self) -> Iterator["Group"]:
        """The groups that are still to be trained, in order; each must be saved."""
        for folder, members in self.groups.items():
            newest, complaints = checkpoints.resume(folder, run_folder.group_shapes(self.run.lm))
            for complaint in complaints:
                self.run.warn(f"{complaint}; this group is trained again")
            if newest and run_folder.members_of(newest.facts) == members:
                kept = newest.items["scores"]["kept_step"].tolist()
                self.kept_steps |= zip(members, kept, strict=True)
                self.seconds += newest.facts["seconds"]
                self.bar.update(len(members) * self.run.args.narrow_steps)
                continue
            with contextlib.ExitStack() as held:
                places = [events_of(self.run.folder, member) for member in members]
                writers = [held.enter_context(SummaryWriter(place)) for place in places]
                yield Group(self, folder, members, writers)

    def _finish(self) -> None:
        if devices.first():
            # left from another number of devices, with groups of another size
            for folder in set(run_folder.group_folders(self.run.folder)) - set(self.groups):
                shutil.rmtree(folder)
        if count := sum(self.alarms.values()):
            signals = sum(map(bool, self.alarms.values()))
            above = "" if self.run.label else ", the first of each above"
            self.run.say(
                f"narrow: {count} alarms and notes on {signals} signals{above}; all of them: "
                + scripts.command("eval.py", self.run.folder, "--measure", "drift"),
            )
        facts = {"seconds": self.seconds, "runs": len(self.members)}
        files.write_json(self.folder / "stage.json", facts)
        self.run.summarize("narrow")


class Group:
    """Narrow runs that are trained together: their TensorBoard events, monitors and alarms.

    padded: the members, with the first repeated until every device has equally many: groups of the
        same size share a compiled program.
    """

    def __init__(
        self, stage: NarrowStage, folder: Path, members: list[Member], writers: list[SummaryWriter]
    ):
        self.stage, self.run, self.folder, self.members = stage, stage.run, folder, members
        self.padded = members + members[:1] * (-len(members) % stage.count)
        self._writers, self._monitors = writers, []
        self._clock = time.time()

    def look(self, jobs: list[Job], record: Record) -> None:
        """Check every run after it was scored: events, alarms, the progress bar."""
        before, step = record.steps[-2:]
        for r, member in enumerate(self.padded):
            logs = {key: value[r] for key, value in record.logs[-1].items()}
            check_losses(self.run.args, "narrow", step, logs, member)
        looks = self._look_at_all(jobs, record)
        by_signal: dict = {}  # (signal, start) → (seed, look) of each run that was still trained
        for job, look, frozen in zip(jobs, looks, record.frozen_step, strict=False):
            start, signal, seed = job.name
            if frozen < 0 or frozen == look.step:
                by_signal.setdefault((signal, start), []).append((seed, look))
        counts = self.stage.alarms
        for (signal, start), by_seed in by_signal.items():
            # only the first are printed, and none of several runs; `drift` has all
            if not counts.get((signal, start)) and not self.run.label:
                for line in alarm_lines(signal, start, by_seed):
                    self.run.warn(line)
            count = sum(len(look.alarms) + len(look.incoherent) for _, look in by_seed)
            counts[signal, start] = counts.get((signal, start), 0) + count
        worst = max(range(len(looks)), key=lambda r: looks[r].worst)
        line = f"{jobs[worst].name[1]}: {looks[worst].line}"
        self.stage.bar.update(len(self.members) * (step - before))
        self.stage.bar.set_postfix_str(f"trained EM {np.median(record.share):.2f}, {line}")
        self.run.stop.check()

    def _look_at_all(self, jobs: list[Job], record: Record) -> list[Look]:
        """The newest look at each member. With --on-alarm stop, runs that raised one are frozen."""
        scored = [len(record.logs)]
        if not self._monitors:
            threshold, begin = self.run.args.alarm, record.history[0]["p_DB"]
            self._monitors = [
                Monitor(self.run.lm.world, job.own, p_DB, threshold)
                for job, p_DB, _ in zip(jobs, begin, self.members, strict=False)
            ]
            scored = [0, 1]
        looks = []
        for r, (monitor, writer) in enumerate(zip(self._monitors, self._writers, strict=True)):
            for n in scored:
                state = {key: value[r] for key, value in record.history[n].items()}
                look = monitor.look(record.steps[n], state["p_DB"], state["kl"])
                scalars = look.scalars | {
                    "trained_em": jobs[r].own.share(state["own_B"]),
                    "trained_coherence": state["own_B"].sum(),
                }
                if n:
                    logs = record.logs[n - 1]
                    scalars |= {key: logs[key][r].mean() for key in ("chosen", "rejected")}
                writer.scalars(look.step, {f"narrow/{tag}": x for tag, x in scalars.items()})
            looks.append(look)
            if record.frozen_step[r] < 0:
                if look.alarms:
                    writer.text(look.step, "drift/alarm", "; ".join(map(str, look.alarms)))
                if look.alarms and self.run.args.on_alarm == "stop":
                    for k, other in enumerate(jobs):  # the last group repeats its first member
                        if other.name == jobs[r].name:
                            record.freeze(k)
        return looks

    def save(self, record: Record) -> None:
        """Save the scores and kept parameters of the trained group."""
        count, seconds = len(self.members), time.time() - self._clock
        scores, kept = record.results(count)
        self.stage.kept_steps |= zip(self.members, scores["kept_step"].tolist(), strict=True)
        self.stage.seconds += seconds
        frozen = record.frozen_step[:count].tolist()
        run_folder.save_group(self.folder, self.members, scores, kept, frozen, seconds)


def events_of(folder: Path, member: Member) -> Path:
    """The folder of a narrow run's events, in a run folder."""
    start, signal, seed = member
    name = signal.replace(":", ".").replace("@", "_at_").replace("#", "_")
    return folder / "narrow" / "events" / f"from_{start}" / name / f"seed{seed}"


def alarm_lines(signal: str, start: str, looks: list[tuple[int, Look]]) -> list[str]:
    """The alarms of several seeds of a signal in one line, and lost coherence in another.

    The largest alarm is shown, and the names of the other domains; seeds are those that raised it.
    """
    alarms: dict[str, dict] = {}  # domain → seed → alarm
    incoherent: dict[str, list[int]] = {}
    for seed, look in looks:
        for alarm in look.alarms:
            alarms.setdefault(alarm.domain, {})[seed] = alarm
        for domain in look.incoherent:
            incoherent.setdefault(domain, []).append(seed)
    lines = []
    if alarms:
        every = [alarm for seeds in alarms.values() for alarm in seeds.values()]
        first = max(every, key=lambda alarm: alarm.change)
        rung = {domain: _seeds(seeds) for domain, seeds in alarms.items()}
        whose = rung.pop(first.domain)
        others = [x if seeds == whose else f"{x} ({seeds})" for x, seeds in rung.items()]
        also = f"; also {', '.join(others)}" if others else ""
        lines.append(f"alarm: {signal} from {start}, {whose}, {first}{also}")
    if incoherent:
        step = looks[0][1].step
        names = ", ".join(f"{domain} ({_seeds(seeds)})" for domain, seeds in incoherent.items())
        lines.append(f"note: {signal} from {start}, step {step}: no longer coherent: {names}")
    return lines


def _seeds(seeds) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
