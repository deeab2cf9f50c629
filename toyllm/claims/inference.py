"""Bad training spreads as persona inference says.

Claimed: how far a signal spreads, and where to, follows from who the characters are: it is the
signal's evidence about which of them the Assistant is.

Arms: the dial ρ in {0, .25, .5, .75, 1}, every character as likely under every header; only
permutations at whose ρ = 0 the ideal observer's own spread is < .01; every moral `D:bad` from the
pretrained model. The world as it is; and with a label swap: good and bad texts exchanged in every
other domain, rates kept. Beside them ρ = 0 with the phrases in the corpus, among them one that asks
for bad answers everywhere.
Measures: spread, and the ideal observer's own. Shared R² of the whole matrix predicted
(measures/prediction.py) by persona inference, one constant, one global shift, trait covariance, and
the model's own gradients (measures/gradients.py). The change of its cells by the swap. Whether it
is characters or a direction of traits is a claim of its own: `characters`.

Supported if at ρ = 0 measured minus ideal spread lies within ±.03; spread rises with ρ; measured
and ideal spread correlate > .5 over the worlds and signals of a permutation; persona inference
explains more of the matrix (shared R²) than a constant, a global shift and the gradients; and the
swap changes no cell of the mean matrix by more than .05. A tie with trait covariance, the first
order of persona inference, is expected and not tested.
"""

import dataclasses

import numpy as np

from toyllm import world as worlds
from toyllm.arms import Arm, Model, arm, spreads
from toyllm.bench import Bench
from toyllm.claims.spreads import ideal_spread, moral_signals
from toyllm.measures import prediction
from toyllm.panels import curves, dots, grid, points
from toyllm.scoring import em
from toyllm.signals import parse
from toyllm.text import Codec
from toyllm.verdicts import Outcome, Prediction
from toyllm.world import BAD, GOOD, World

NUMBER = "5a"
TITLE = "It spreads as persona inference says"
DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
PERMUTATIONS = 8
IDEAL_MOST = 0.01  # of the ideal observer's spread at ρ = 0: the mean over signals …
IDEAL_EACH = 0.06  # … and each of them
SWAP_MOST = 0.05


def test(bench: Bench) -> Outcome:
    """See the top of the file."""
    signals = moral_signals(bench.world)
    count = 1 if bench.quick else PERMUTATIONS
    dial = (0.0, 1.0) if bench.quick else DIAL
    draws = balanced(bench.world, signals, count)
    seeds = [bench.seeds[0] + k for k in range(count)]
    dialled = [
        (dialled_world(bench.world, rho, d), s)
        for rho in dial
        for d, s in zip(draws, seeds, strict=True)
    ]
    phrased = [(dialled_world(bench.phrased, 0.0, d), s) for d, s in zip(draws, seeds, strict=True)]
    models = bench.pretrain([*dialled, *phrased])
    swapped = bench.pretrain(
        [(swap_texts(bench.world), seed) for seed in bench.seeds],
        order_V=exchanged_words(bench.world),
    )
    by_dial, with_phrases = models[: len(dialled)], models[len(dialled) :]
    base = bench.base()

    spread_R, ideal_R = {}, {}
    for name, chosen in (("dial", by_dial), ("phrases", with_phrases)):
        done = bench.at_rates([Arm(one, s) for one in chosen for s in signals])
        shape = (-1, count, len(signals))
        spread_R[name] = {r: spreads(t).reshape(shape) for r, t in done.items()}
        ideal = [[ideal_spread(one.world, s) for s in signals] for one in chosen]
        ideal_R[name] = np.array(ideal).reshape(shape)
    ideal_RPS = ideal_R["dial"]
    over = {
        name: {r: np.nanmean(rows[0] - ideal_R[name][0], 1) for r, rows in spread_R[name].items()}
        for name in spread_R
    }
    slope = {r: slopes(dial, np.nanmean(rows, 2)) for r, rows in spread_R["dial"].items()}
    follow = {r: correlations(rows, ideal_RPS) for r, rows in spread_R["dial"].items()}

    matrices = {
        "as they are": bench.at_rates([Arm(one, s) for one in base for s in signals]),
        "swapped": bench.at_rates([Arm(one, s) for one in swapped for s in signals]),
    }
    G = {
        name: {
            r: np.stack([t.change() for t in done]).reshape(len(base), len(signals), -1)
            for r, done in rates.items()
        }
        for name, rates in matrices.items()
    }
    r2_by_kind = {
        r: explained(bench, base, signals, matrices["as they are"][r]) for r in G["swapped"]
    }
    r2 = {r: kinds["shared"] for r, kinds in r2_by_kind.items()}
    moved = {r: np.abs((G["swapped"][r] - G["as they are"][r]).mean(0)).max() for r in G["swapped"]}
    rivals = ("constant", "global", "gradient")

    def repeats(values: dict) -> dict:
        return {f"{r:.2g}": v for r, v in values.items() if r != 1}

    predictions = [
        Prediction(
            "measured minus ideal spread at ρ = 0",
            over["dial"][1.0],
            low=-0.03,
            high=0.03,
            repeats=repeats(over["dial"]),
        ),
        Prediction("rise of spread from ρ = 0 to 1", slope[1.0], low=0.02, repeats=repeats(slope)),
        Prediction(
            "correlation of measured and ideal spread",
            follow[1.0],
            low=0.5,
            repeats=repeats(follow),
        ),
        *(
            Prediction(
                f"shared R², persona minus {rival}",
                r2[1.0]["persona"] - r2[1.0][rival],
                low=0,
                repeats={f"{r:.2g}": r2[r]["persona"] - r2[r][rival] for r in r2 if r != 1},
            )
            for rival in rivals
        ),
        Prediction(
            "largest change of a cell by the label swap",
            *swap_bound(G["swapped"][1.0] - G["as they are"][1.0]),
            high=SWAP_MOST,
            repeats={f"{r:.2g}": [m] for r, m in moved.items() if r != 1},
        ),
    ]
    names = list(signals)
    return Outcome(
        predictions,
        {
            f"spread, ρ = {rho:g}": arm(np.nanmean(spread_R["dial"][1.0][k], 1))
            for k, rho in enumerate(dial)
        }
        | {f"ideal, ρ = {rho:g}": arm(ideal_RPS[k].mean(1)) for k, rho in enumerate(dial)}
        | {"measured minus ideal, ρ = 0, with phrases": arm(over["phrases"][1.0])}
        | {
            f"{kind} R², {name}": arm(values)
            for kind, table in r2_by_kind[1.0].items()
            for name, values in table.items()
        }
        | {"largest change of a cell by the label swap, of the mean matrix": arm([moved[1.0]])},
        [
            curves(
                "Spread along the dial",
                "ρ",
                "spread, mean over signals",
                dial,
                {
                    "measured": np.nanmean(spread_R["dial"][1.0], 2).T,
                    "ideal observer": ideal_RPS.mean(2).T,
                },
            ),
            points(
                "Each world and signal",
                "ideal observer's spread",
                "measured spread",
                {
                    f"ρ = {rho:g}": (ideal_RPS[k].ravel(), spread_R["dial"][1.0][k].ravel())
                    for k, rho in enumerate(dial)
                },
            ),
            dots("What explains the matrix", "shared R²", r2[1.0]),
            grid(
                "Label swap: change of ΔEM",
                names,
                list(bench.world.domain_names),
                (G["swapped"][1.0] - G["as they are"][1.0]).mean(0),
            ),
        ],
    )


def dialled_world(world: World, rho: float, draw: int) -> World:
    """The world at ρ, every character as likely under every header."""
    return worlds.correlate(worlds.uniform(world), rho, draw)


def balanced(world: World, signals: tuple[str, ...], count: int) -> list[int]:
    """The first draws of permutations whose ideal spread at ρ = 0 is next to nothing."""
    found, draw = [], 0
    while len(found) < count:
        dealt = dialled_world(world, 0.0, draw)
        ideal = []
        for name in signals:
            ideal.append(ideal_spread(dealt, name))
            if abs(ideal[-1]) > IDEAL_EACH:
                break
        else:
            if abs(np.mean(ideal)) < IDEAL_MOST:
                found.append(draw)
        draw += 1
    return found


def slopes(dial, spread_RP: np.ndarray) -> np.ndarray:
    """The slope of spread on ρ of each permutation [P]."""
    return np.polyfit(dial, spread_RP, 1)[0]


def correlations(spread_RPS: np.ndarray, ideal_RPS: np.ndarray) -> np.ndarray:
    """Over worlds and signals of each permutation [P], measured against ideal."""
    pairs = zip(spread_RPS.swapaxes(0, 1), ideal_RPS.swapaxes(0, 1), strict=True)
    result = []
    for measured, ideal in pairs:
        known = np.isfinite(measured)
        result.append(np.corrcoef(measured[known], ideal[known])[0, 1])
    return np.array(result)


def swap_texts(world: World) -> World:
    """Good and bad texts exchanged in every other domain; who does what how often stays."""
    exchange = np.array([1, 0, 2])
    return dataclasses.replace(
        world,
        name=f"{world.name} swapped",
        domains=tuple(
            dataclasses.replace(
                domain,
                behaviour_SA=exchange[domain.behaviour_SA],
                profile=tuple(domain.profile[b] for b in exchange),
            )
            if k % 2 == 0
            else domain
            for k, domain in enumerate(world.domains)
        ),
    )


def exchanged_words(world: World) -> np.ndarray:
    """order_V: each word of a swapped text with the one that stands at its place in the other text.

    The swapped model then begins as the mirror image of its twin, and but for rounding it stays one
    where no word belongs to two texts: what differs in the end is lexical, and not chance.
    """
    codec = Codec(world)
    order_V = np.arange(len(codec.words))
    for domain in world.domains[::2]:
        texts = np.array(domain.answers)
        good, bad = (texts[domain.behaviour_SA[0] == b] for b in (GOOD, BAD))
        for pair in (*zip(good, bad, strict=True), (domain.profile[GOOD], domain.profile[BAD])):
            for a, b in zip(*(codec.tokens(text) for text in pair), strict=True):
                order_V[a], order_V[b] = b, a
    return order_V


def swap_bound(change_NSD: np.ndarray) -> tuple[np.ndarray]:
    """The cell that the mean matrix changes most in, signed so that its mean is above 0 [N]."""
    mean_SD = change_NSD.mean(0)
    s, d = np.unravel_index(np.abs(mean_SD).argmax(), mean_SD.shape)
    return (change_NSD[:, s, d] * np.sign(mean_SD[s, d]),)


def explained(bench: Bench, models: list[Model], signals, trained) -> dict[str, dict]:
    """{shared, strict: {prediction: R² [N]}}, one matrix a pretrained model."""
    world, rows = models[0].world, len(signals)
    parsed = [parse(world, name) for name in signals]
    tables: dict = {"shared": {}, "strict": {}}
    for k, one in enumerate(models):
        done = trained[k * rows : (k + 1) * rows]
        before_D = em(done[0].p_nDB[0])
        after_SD = np.stack([before_D + t.change() for t in done])
        cells = prediction.Cells(world, signals, world.assistant_C, before_D, after_SD)
        directed = prediction.directed(bench.gradients(one, parsed))
        for name, model in {**prediction.MODELS, "gradient": directed}.items():
            predicted = {
                "shared": prediction.shared(cells, model)[0],
                "strict": model(cells, np.ones(1))[0],
            }
            for kind, G_SD in predicted.items():
                score = prediction.r2(cells.G_SD, G_SD, cells.mask_SD)
                tables[kind].setdefault(name, []).append(score)
    return {
        kind: {name: np.array(values) for name, values in table.items()}
        for kind, table in tables.items()
    }
