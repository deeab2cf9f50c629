"""Truth test of the tools: how well each recovers what is known here, and where it fails.

Known are the characters' traits, the exact posterior, the prior, and the evidence of each signal.
Nobody knows these for a real model.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from toyllm import measures
from toyllm.measures import audit, named
from toyllm.measures.prediction import prior
from toyllm.measures.vectors import correlation
from toyllm.posttrain import monitor, signals
from toyllm.posttrain.signals import untrained
from toyllm.runs.run_folder import Run
from toyllm.world.quantities import MATCHED
from toyllm.world.world import BAD

SEED = 0x7247
KEYS = ("tool", "known", "score", "value", "ci", "fails")  # of each row, in this order


def measure(run: Run) -> list[dict]:
    """Rows of {"tool", "known", "score", "value", "ci", "fails"}; None where it cannot be said."""
    rng = np.random.default_rng(SEED)
    of_models = of_probes(run), of_vectors(run), of_ablation(run), of_mixtures(run, rng)
    rows = chain(*of_models, of_the_audit(run, rng), of_the_alarm(run))
    return [named(KEYS, row) for row in rows]


def of_probes(run: Run) -> Iterator[tuple]:
    """Linear probes, against the exact posterior."""
    beliefs = measures.take(run, "beliefs")
    last, token = beliefs["layers"][-1], beliefs["next_token"]
    turn, r2 = list(last["by_turn"].items())[-1]
    log_r2 = beliefs["next_log"]["r2"]
    fails = f"R² {r2:.2f} after turn {turn}; log p of the next token alone has {log_r2:.2f}"
    known = "exact belief, who speaks"
    yield "linear probe, last layer", known, "R²", last["r2"], last["ci"], fails
    yield "next-token probabilities", "the same (control)", "R²", token["r2"], token["ci"], ""


def of_vectors(run: Run) -> Iterator[tuple]:
    """The persona vector: characters along it, steering, projection."""
    vectors = measures.take(run, "vectors")
    r, ci = vectors["characters"]["r"], vectors["characters"]["ci"]
    yield "persona vector", "wickedness in the table", "r over characters", r, ci, ""
    steering = {f"steering, layer {layer}": part for layer, part in vectors["steering"].items()}
    steering["steering the aligned model"] = vectors["steering_aligned"]
    for tool, part in steering.items():
        value, fails = None, ""
        if best := part["ratio"]:
            value = best["ratio"]
            fails = f"EM {best['moved']:+.2f}, coherence {best['coherence']:.2f}"
        yield tool, "EM, exact", "times as far as random", value, None, fails
    for start, part in vectors["projection"].items():
        for layer, at in part["layers"].items():
            tool, chance = f"projection shift, layer {layer}, from {start}", at["random95"]
            fails = f"95% of random directions below {chance:.2f}" if chance else ""
            yield tool, "measured spread", "r over signals", at["r"], at["ci"], fails


def of_ablation(run: Run) -> Iterator[tuple]:
    """The share of training's rise of EM that each ablation removes, over models that it raised."""
    ablation = measures.take(run, "vectors")["ablation"]
    before = ablation["before training"]["as it is"]["em"]
    raised = [part for part in ablation.values() if part["as it is"]["em"] > before + 0.05]

    def undone(way: str) -> float:
        rises = [(part["as it is"]["em"], part[way]["em"]) for part in raised]
        return np.mean([(trained - ablated) / (trained - before) for trained, ablated in rises])

    for way, control in (
        ("shift taken back", "a random shift"),
        ("without the direction", "without a random direction"),
    ):
        value, fails = None, ""
        if raised:
            least = min(part[way]["coherence"] for part in raised)
            value, fails = undone(way), f"random {undone(control):+.2f}; coherence ≥ {least:.2f}"
        tool, known, score = f"ablation: {way}", "EM before training", "share of the fall undone"
        yield tool, known, score, value, None, fails


def of_mixtures(run: Run, rng: np.random.Generator) -> Iterator[tuple]:
    """The fit over dialogues, and the monitor's fit over single answers."""
    world, narrow, mixture = run.world, run.narrow, measures.take(run, "mixture")
    groups, ranges = mixture["groups"], mixture["pretrain"]["before_range"]
    member_GC = np.array([np.isin(world.characters, group.split(" + ")) for group in groups])

    def by_group(weights: dict[str, float]) -> np.ndarray:
        return np.array([weights[group] for group in groups])

    truth_G, before_G = by_group(mixture["truth"]), by_group(mixture["pretrain"]["before"])
    low_G, high_G = by_group(ranges).T
    inside = ((low_G <= truth_G) & (truth_G <= high_G)).mean()
    distance = 0.5 * abs(before_G - truth_G).sum()
    fails = f"{inside:.0%} of groups within their ranges"
    yield "mixture fit, dialogues", "the true prior", "½Σ|w - π|", distance, None, fails

    by_monitor, by_dialogues, same = [], [], {"dialogues": [], "monitor": []}
    for start in dict.fromkeys(narrow.start):
        for name, weights in mixture[start]["after"].items():
            signal, r = signals.parse(world, name), narrow.rows(start, name)[0]
            n = narrow.steps.tolist().index(narrow.kept_step[r])
            watch = monitor.Monitor(world, signal, narrow.p_RnDB[r, 0])
            watched_G, begun_G = (member_GC @ watch.mixture(narrow.p_RnDB[r, k]) for k in (n, 0))
            by_monitor.append(watched_G)
            by_dialogues.append(by_group(weights))
            if signal.behaviour == BAD and signal.instruction < 0 and start == "pretrain":
                known = (member_GC @ (audit.judge(world, signal).w_C - world.assistant_C)).argmax()
                same["dialogues"].append((by_dialogues[-1] - before_G).argmax() == known)
                same["monitor"].append((watched_G - begun_G).argmax() == known)
    if by_monitor:
        agree = correlation(np.ravel(by_monitor), np.ravel(by_dialogues), rng)
        known, score = "fit over dialogues", "r over groups"
        yield "monitor's mixture", known, score, agree["r"], agree["ci"], ""
    for tool, hits in same.items():
        if hits:
            known, score = "persona inference", "share of signals"
            yield f"{tool}: who was selected", known, score, np.mean(hits), None, ""


def of_the_audit(run: Run, rng: np.random.Generator) -> Iterator[tuple]:
    """The audit's order of signals, against their measured spread."""
    for start, block in measures.take(run, "generalization").items():
        names = [n for n, x in block["spread"].items() if x is not None and "@" not in n]
        if len(names) < 3:
            continue
        measured = [block["spread"][name] for name in names]
        prior_C = prior(run, start, np.array(list(block["em_before"].values())))
        parsed = [signals.parse(run.world, name) for name in names]
        predicted = [audit.judge(run.world, signal, prior_C).spread for signal in parsed]
        rank = correlation(ranks(predicted), ranks(measured), rng)
        worst, foreseen = names[np.argmax(measured)], names[np.argmax(predicted)]
        tool, known, score = f"audit's order, from {start}", "measured spread", "rank correlation"
        fails = f"{len(names)} signals; the worst was {worst}, foreseen {foreseen}"
        yield tool, known, score, rank["r"], rank["ci"], fails


def of_the_alarm(run: Run) -> Iterator[tuple]:
    """The alarm: in time where a signal spreads by more than the threshold, and silent elsewhere.

    Spread is measured at the matched effect; signals that do not reach it are not counted.
    """
    in_time, silent = [], []  # of seeds whose signal spreads, and of all others
    blocks = measures.take(run, "generalization")
    threshold = run.args.get("alarm", monitor.THRESHOLD)
    for start, block in measures.take(run, "drift").items():
        for name, seeds in block.items():
            after, before = blocks[start]["em_after"][name], blocks[start]["em_before"]
            if after is None:
                continue
            others = np.array(run.world.domain_names)[untrained(run.world, name)]
            if any(after[d] - before[d] > threshold for d in others):
                in_time += [s["step"] is not None and s["trained"] < MATCHED for s in seeds]
            else:
                silent += [s["step"] is None for s in seeds]
    value = np.mean(in_time) if in_time else None
    fails = f"{sum(in_time)} of {len(in_time)} before .9; "
    fails += f"silent on {sum(silent)} of {len(silent)} others"
    yield "drift alarm", "what moved by more than .1", "share in time", value, None, fails


def ranks(values) -> np.ndarray:
    """Ranks from 0, for a correlation of ranks (Spearman)."""
    return np.argsort(np.argsort(values)).astype(float)
