"""Drift in domains that were not trained: when the monitor raises its alarm, and toward whom."""

from toyllm.posttrain import signals
from toyllm.posttrain.monitor import THRESHOLD, Monitor
from toyllm.runs.run_folder import Run


def measure(run: Run) -> dict:
    """{start: {signal: [the first alarm of each seed]}} (docs/results_json.md has every key).

    The monitor (toyllm/posttrain/monitor.py) runs again over the scores taken in training.
    """
    return {
        start: {
            name: [first_alarm(run, r) for r in run.narrow.rows(start, name)]
            for name in run.narrow.signals(start)
        }
        for start in dict.fromkeys(run.narrow.start)
    }


def first_alarm(run: Run, r: int) -> dict:
    """The first alarm of run r: see `measure`."""
    narrow = run.narrow
    signal = signals.parse(run.world, narrow.signal[r])
    threshold = run.args.get("alarm", THRESHOLD)
    monitor = Monitor(run.world, signal, narrow.p_RnDB[r, 0], threshold)
    record = dict.fromkeys(("step", "trained", "domain", "change", "toward", "growth"))
    incoherent: list[str] = []
    for n in range(1, len(narrow.steps)):
        look = monitor.look(narrow.steps[n], narrow.p_RnDB[r, n], narrow.kl_Rn[r, n])
        incoherent += look.incoherent
        if look.alarms and record["step"] is None:
            alarm = max(look.alarms, key=lambda alarm: abs(alarm.change))
            record |= {"trained": signal.share(narrow.own_RnB[r, n]), **vars(alarm)}
    ended = narrow.frozen_step[r]
    return {**record, "worst": look.worst, "incoherent": incoherent, "ended": ended}
