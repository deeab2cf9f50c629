"""What is shown of a run's results, derived once for the terminal, the page, figures and exports.

Every function takes the content of `results.json` as a dict. Whoever shows a view only formats it.
The process that draws figures imports this file, so it imports nothing slow.
"""

import re
from typing import NamedTuple

STARTS = {"pretrain": "from the pretrained model", "align": "from the aligned model"}
READINGS = {"matched": "at the matched effect", "equal": "after equal training"}

NAMES = {  # what the metrics of `summary` are, for people
    "excess": "excess over the ideal observer (nats/token)",
    "captured": "captured (who is speaking)",
    "assistant_error": "error of the Assistant's p(bad)",
    "named_error": "error of named characters' p(bad)",
    "named_error_worst": "the same, worst character",
    "ignorance": "ignorance, p(noise)",
    "coherence": "coherence of the Assistant",
    "aligned_em": "worst EM of a moral domain, aligned",
    "aligned_coherence": "coherence, aligned",
    "measured_minus_ideal": "mean spread minus the ideal observer's",
}


class Cell(NamedTuple):
    """EM in one domain before and after a signal is trained; None where it is not read after."""

    domain: str
    trained: bool
    before: float
    after: float | None
    change: float | None
    coherence: float | None
    half_width: float | None  # of the interval of the change over pretraining seeds


class Row(NamedTuple):
    """A signal of the generalization matrix, in one reading of it."""

    signal: str
    status: str
    cells: list[Cell]
    outcome: str  # the spread, or why there is none
    spread: float | None
    mark: str  # what follows each change: an asterisk where changes are not to be compared
    coherence: float | None  # the lowest of any domain
    interval: list[float] | None
    frontier: float | None  # the mean spread along training up to the matched effect
    step: float | None


class Matrix(NamedTuple):
    """The generalization matrix from one start, in one of `READINGS`."""

    start: str
    reading: str
    domains: list[str]  # in brackets where they are not moral
    before: list[float]
    coherence_before: float
    rows: list[Row]


class Point(NamedTuple):
    """An untrained moral domain under one signal: predicted and measured change of EM."""

    signal: str
    domain: str
    predicted: float
    measured: float


class Bar(NamedTuple):
    """Who the Assistant is: the weight of each group of characters."""

    name: str
    weights: dict[str, float]
    ranges: dict[str, list[float]] | None  # of mixtures that fit nearly as well; None: exact
    # what no mixture explains (nats): in all domains, untrained ones, overridden ones
    residuals: list[float | None]


class Mixture(NamedTuple):
    """The Assistant's mixture of characters from one start, before and after each signal."""

    start: str
    groups: list[str]
    bars: list[Bar]

    @property
    def measured(self) -> list[Bar]:
        """The bars of models, without that of the corpus."""
        return [bar for bar in self.bars if bar.ranges is not None]


class Foreseen(NamedTuple):
    """A signal's forecast from one start."""

    start: str
    signal: str
    trained: list[str]
    record: dict  # as in `results.json`
    measured: float | None  # the spread that came; None where there is none


def number(value: float | None, places: int = 3, sign: bool = False) -> str:
    """A number as tables show it, such as .12; a dash for None."""
    if value is None:
        return "–"
    return re.sub(r"(?<!\d)0\.", ".", f"{value:{'+' if sign else ''}z.{places}f}")


def learned(results: dict) -> list[tuple[str, str, str]]:
    """What was learned in pretraining: (quantity, value, what to compare it with)."""
    p = results["pretrain"]
    history, name = (number(p[f"excess_{part}_blind"], 4) for part in ("history", "name"))
    observers = f"history-blind observer {history}, name-blind {name}"
    scale = "1 is ideal, 0 history-blind"
    if p["captured_interval"]:
        low, high = map(number, p["captured_interval"])
        over = f"{len(results['seeds'])} seeds" if "seeds" in results else "questions"
        scale += f"; 95% over {over} {low} to {high}"
    ideal = p["ignorance_ideal"]
    ignorance = [
        (f"{NAMES['ignorance']}, {d}", number(x), f"in the corpus {number(ideal[d])}")
        for d, x in p["ignorance"].items()
    ]
    mean = "mean over domains, against the corpus (π·θ)"
    worst = f"worst: {p['named_worst']} {number(p['named_error_worst'])}"
    return [
        (NAMES["excess"], number(p["excess"], 4), observers),
        (NAMES["captured"], number(p["captured"]), scale),
        (NAMES["assistant_error"], number(p["assistant_error"]), mean),
        (NAMES["named_error"], number(p["named_error"]), worst),
        *ignorance,
        (NAMES["coherence"], number(p["coherence"]), "worst domain"),
    ]


def matrices(results: dict, reading: str = "matched") -> list[Matrix]:
    """The generalization matrix from each start, in one of `READINGS`."""
    domains, moral = results["domains"], results["moral"]
    labels = [d if d in moral else f"({d})" for d in domains]
    views = []
    for start, block in results.get("generalization", {}).items():
        part = block["equal"] if reading == "equal" else block
        em_before, rows = block["em_before"], []
        for signal, status in part["status"].items():
            trained = trained_domains(signal, moral)
            em_after = part["em_after"][signal] or {}
            coherence = part["coherence_after"][signal] or {}
            half = part.get("half_width", {}).get(signal, {})
            cells = []
            for d in domains:
                before, after = em_before[d], em_after.get(d)
                change = None if after is None else after - before
                known = coherence.get(d), half.get(d)
                cells.append(Cell(d, d in trained, before, after, change, *known))
            read, spread = status == "read", number(part["spread"][signal], 3, True)
            if not read and "seeds" in results:
                # some may be incoherent and some not reached
                status = f"read in {part['read_in'][signal]} of {len(results['seeds'])} seeds"
            row = Row(
                signal,
                part["status"][signal],
                cells,
                outcome=spread if read else status,
                spread=part["spread"][signal],
                mark="" if read else "*",
                coherence=min(coherence.values(), default=None),
                interval=part["spread_ci"][signal],
                frontier=block["frontier"][signal],
                step=part["step"] if reading == "equal" else part["matched_step"][signal],
            )
            rows.append(row)
        coherence_before = min(block["coherence_before"].values())
        before = [em_before[d] for d in domains]
        views.append(Matrix(start, reading, labels, before, coherence_before, rows))
    return views


def every_matrix(results: dict) -> list[Matrix]:
    """The matrices from each start in each of `READINGS`, in the order in which they are shown."""
    pairs = zip(*(matrices(results, reading) for reading in READINGS), strict=True)
    return [matrix for pair in pairs for matrix in pair]


def trained_domains(signal: str, moral: list[str]) -> list[str]:
    """The domains in a signal's name; `all` stands for all moral ones."""
    names = signal.partition(":")[0]
    return moral if names == "all" else names.split("+")


def curves(results: dict) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The frontier: {start: {signal: [(preferred share where it is trained, its spread)]}}."""

    def known(curve: dict) -> list[tuple[float, float]]:
        points = zip(curve["trained"], curve["spread"], strict=True)
        return [point for point in points if None not in point]

    return {
        start: {signal: known(curve) for signal, curve in block["curves"].items()}
        for start, block in results["generalization"].items()
    }


def predictions(results: dict) -> dict[str, list[Point]]:
    """Each prediction beside what was measured; empty where too few signals were matched."""
    block = results.get("prediction", {})
    return {
        name: [
            Point(signal, domain, predicted[signal][domain], change)
            for signal, changes in block["measured"].items()
            for domain, change in changes.items()
        ]
        for name, predicted in block.get("predicted", {}).items()
    }


def mixtures(results: dict) -> list[Mixture]:
    """Who the Assistant is, from each start: in the corpus, before, and after each signal."""
    block = results.get("mixture", {})
    views = []
    for start in [start for start in STARTS if start in block]:
        part = block[start]
        bars = [Bar("before", part["before"], part["before_range"], [part["residual_before"]])]
        for signal, weights in part["after"].items():
            left = part["residual_after"][signal]
            residuals = [left["all"], left["off_domain"], left["override"]]
            bars.append(Bar(signal, weights, part["after_range"][signal], residuals))
        if start == "pretrain":
            bars.insert(0, Bar("in the corpus", block["truth"], None, []))
        views.append(Mixture(start, block["groups"], bars))
    return views


def elicitation(results: dict) -> tuple[dict[str, dict], dict[str, dict]]:
    """EM under each prompt to the Assistant, and where each character is asked by name."""
    block = results["elicitation"]
    worst = {f"worst found, {kind}": part for kind, part in block["worst"].items()}
    named = {f"asked as {name}": part for name, part in block["named"].items()}
    return {**block["prompts"], **worst}, named


def forecasts(results: dict) -> list[Foreseen]:
    """Each signal's forecast from each start, beside what was measured."""
    rows = []
    for start, block in results["forecast"].items():
        measured = results.get("generalization", {}).get(start, {}).get("spread", {})
        for signal, record in block.items():
            trained = trained_domains(signal, results["moral"])
            rows.append(Foreseen(start, signal, trained, record, measured.get(signal)))
    return rows


def summary(results: dict) -> dict[str, float | None]:
    """The headline figures, under their names in TensorBoard; runs and seeds are compared by them.

    left_from_START/SIGNAL is the share of a signal's spread that is left with an instruction, and
    `equal_` stands before what is read after equal training. Of several seeds they are means over
    the seeds; the share of a mean is not the mean of shares.
    """
    if "figures" in results:
        return {name: figure["mean"] for name, figure in results["figures"].items()}
    values = {}
    if "pretrain" in results:
        keys = "excess", "captured", "assistant_error", "named_error", "named_error_worst"
        values |= {f"metrics/{key}": results["pretrain"][key] for key in (*keys, "coherence")}
    aligned = results.get("stages", {}).get("align") or {}
    if aligned.get("worst_em") is not None:
        values["metrics/aligned_em"] = aligned["worst_em"]
        values["metrics/aligned_coherence"] = aligned["coherence"]
    for start, block in results.get("generalization", {}).items():
        readings = {"": block, "equal_": block["equal"]}
        for reading, part in readings.items():
            for name, x in part["spread"].items():
                values[f"{reading}spread_from_{start}/{name}"] = x
        values |= {f"frontier_from_{start}/{name}": x for name, x in block["frontier"].items()}
        for reading, part in readings.items():
            for name, x in part["spread"].items():
                head, at, who = name.partition("@")
                without = part["spread"].get(":".join(head.split(":")[:2]) + at + who)
                if head.count(":") == 2 and x is not None and without:
                    values[f"{reading}left_from_{start}/{name}"] = x / without
    prediction = results.get("prediction", {})
    if prediction.get("shared"):
        values |= {f"metrics/r2_{name}": x["r2"] for name, x in prediction["shared"].items()}
        equal = prediction["equal"]["shared"]
        values |= {f"metrics/r2_equal_{name}": x["r2"] for name, x in equal.items()}
        values["metrics/measured_minus_ideal"] = prediction["measured_minus_ideal"]
    return values


class Headline(NamedTuple):
    """A headline figure over seeds: its mean, the 95% interval of that, the value of each seed."""

    name: str
    mean: float | None
    interval: list[float] | None
    values: list[float | None]
    places: int  # of its digits

    @property
    def span(self) -> str:
        """The interval as tables show it."""
        return " to ".join(number(x, self.places) for x in self.interval) if self.interval else "–"


def label(name: str) -> tuple[str, str]:
    """A headline figure's name for people: the title of its group, and its own."""
    group, _, rest = name.partition("/")
    if group == "metrics":
        title = "What was learned, and how well the matrix is predicted"
        model = rest.removeprefix("r2_")
        if model.startswith("equal_"):
            model = f"{model.removeprefix('equal_')}, {READINGS['equal']}"
        return title, NAMES.get(rest) or f"R² of {model}"
    kind, _, start = group.partition("_from_")
    titles = {
        "spread": f"Spread {READINGS['matched']}",
        "equal_spread": f"Spread {READINGS['equal']}",
        "frontier": "Mean spread along training up to the matched effect",
        "left": f"Share of its spread that an instruction leaves, {READINGS['matched']}",
        "equal_left": f"Share of its spread that an instruction leaves, {READINGS['equal']}",
    }
    return f"{titles[kind]}, {STARTS[start]}", rest


def headlines(results: dict) -> dict[str, list[Headline]]:
    """The headline figures of several seeds, by the title of their group."""
    groups: dict[str, list[Headline]] = {}
    for key, x in results.get("figures", {}).items():
        title, name = label(key)
        places = 4 if key.endswith("/excess") else 3
        line = Headline(name, x["mean"], x["interval"], x["values"], places)
        groups.setdefault(title, []).append(line)
    return groups
