"""Drift beside what was trained: when the monitor's alarm rings, over what, and toward whom."""

from toyllm.posttrain import signals
from toyllm.posttrain.monitor import THRESHOLD, Monitor
from toyllm.runs.run_folder import Run


def measure(run: Run) -> dict:
    """{start: {signal: [{step, trained, domain, change, toward, growth, …} of each seed]}}.

    The first alarm of each narrow run; step None: it stays silent. trained: the share of what is
    preferred in the trained domains then. worst: the largest rise of an untrained moral domain's EM
    at the end; incoherent: untrained domains that came apart on the way. The monitor
    (toyllm/posttrain/monitor.py) is run again over what was scored while training.
    """
    result: dict = {}
    for start in dict.fromkeys(run.narrow.start):
        result[start] = {
            name: [first_alarm(run, r) for r in run.narrow.rows(start, name)]
            for name in run.narrow.signals(start)
        }
    return result


def first_alarm(run: Run, r: int) -> dict:
    """What the monitor says of run r."""
    narrow = run.narrow
    signal = signals.parse(run.world, narrow.signal[r])
    threshold = run.args.get("alarm", THRESHOLD)
    monitor = Monitor(run.world, signal, narrow.p_RnDB[r, 0], threshold)
    found = dict.fromkeys(("step", "trained", "domain", "change", "toward", "growth"))
    incoherent: list[str] = []
    for n in range(1, len(narrow.steps)):
        step, p_DB = int(narrow.steps[n]), narrow.p_RnDB[r, n]
        look = monitor.look(step, p_DB, narrow.kl_Rn[r, n])
        incoherent += look.incoherent
        if look.alarms and found["step"] is None:
            alarm = max(look.alarms, key=lambda alarm: abs(alarm.change))
            trained = float(signal.share(narrow.own_RnB[r, n]))
            found |= {"trained": trained, **vars(alarm)}
    ended = int(narrow.frozen_step[r])
    return {**found, "worst": look.worst, "incoherent": incoherent, "ended": ended}
