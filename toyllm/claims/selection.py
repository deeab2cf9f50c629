"""Post-training selects a character, and edits locally.

Claimed: preference training moves the Assistant among the characters it knows (selection), and
changes beside that only what is trained itself (a local edit).

Arms: aligned by `all:good`; narrow `code:bad` at the matched effect, and `goals:good`, each from
the pretrained model. One value a pretraining seed.
Measures: of the move away from the mixture before, KL(after ‖ mixture before) less the residual
before, the share that the nearest mixture explains (selection), that one scalar on the trained
domain's log-odds explains beside it (local edit), and the rest; the same in dialogues that do not
touch the trained domain. For `goals:good`: ΔEM of the moral domain that improved least.

Supported if selection explains > .5 of alignment's move, and > .5 of the narrow move outside the
trained domain; the local edit > .1 of all of it; and `goals:good` improves every moral domain.
"""

import numpy as np

from toyllm.arms import Arm, arm
from toyllm.bench import Bench
from toyllm.hull import Hull
from toyllm.measures.generalization import untrained
from toyllm.panels import dots, grid
from toyllm.verdicts import Outcome, Prediction

NUMBER = "3"
TITLE = "Post-training selects a character, and edits locally"
NARROW, POSITIVE = "code:bad", "goals:good"


def test(bench: Bench) -> Outcome:
    """See the top of the file."""
    world, models = bench.world, bench.base()
    hull = Hull.of(models[0].codec)
    before_NO, aligned = bench.joints(models), bench.align(models)
    narrow = bench.at_rates([Arm(one, NARROW) for one in models])
    positive = bench.at_rates([Arm(one, POSITIVE) for one in models])
    domain = world.domain_names.index(NARROW.split(":")[0])

    def joint(trained):
        return bench.joints([done.model for done in trained])

    align = shares(hull, before_NO, bench.joints(aligned))
    moves = {rate: shares(hull, before_NO, joint(t), domain) for rate, t in narrow.items()}
    off = {rate: shares(*outside(hull, domain, before_NO, joint(t))) for rate, t in narrow.items()}
    others = untrained(world, POSITIVE)
    least = {
        rate: [done.change()[others].max() for done in trained]
        for rate, trained in positive.items()
    }
    changes = {
        "all:good": np.array(
            [em_change(bench, *pair) for pair in zip(models, aligned, strict=True)]
        ),
        NARROW: np.array([done.change() for done in narrow[1.0]]),
        POSITIVE: np.array([done.change() for done in positive[1.0]]),
    }
    selection = {"all:good": align["selection"], f"{NARROW}, all": moves[1.0]["selection"]}
    selection[f"{NARROW}, off its domain"] = off[1.0]["selection"]
    return Outcome(
        [
            Prediction(
                "share of the narrow move off its domain that is selection",
                off[1.0]["selection"],
                low=0.5,
                repeats={f"{r:.2g}": off[r]["selection"] for r in off if r != 1},
            ),
            Prediction("share of alignment's move that is selection", align["selection"], low=0.5),
            Prediction(
                "share of the narrow move that is a local edit",
                moves[1.0]["edit"],
                low=0.1,
                repeats={f"{r:.2g}": moves[r]["edit"] for r in moves if r != 1},
            ),
            Prediction(
                "ΔEM of the moral domain that goals:good improves least",
                least[1.0],
                high=0,
                repeats={f"{r:.2g}": least[r] for r in least if r != 1},
            ),
        ],
        {f"selection, {name}": arm(values) for name, values in selection.items()}
        | {
            f"{part}, {NARROW}": arm(moves[1.0][part], narrow[1.0])
            for part in ("edit", "rest", "log-odds edited")
        }
        | {f"move, {NARROW}, nats": arm(moves[1.0]["move"])}
        | {f"least improved, {POSITIVE}": arm(least[1.0], positive[1.0])},
        [
            dots(
                "Shares of the move",
                "share",
                selection
                | {
                    f"{NARROW}, local edit": moves[1.0]["edit"],
                    f"{NARROW}, rest": moves[1.0]["rest"],
                },
            ),
            grid(
                "ΔEM, mean over seeds",
                list(changes),
                list(world.domain_names),
                [values.mean(0) for values in changes.values()],
            ),
        ],
    )


def shares(hull: Hull, before_NO, after_NO, domain: int | None = None) -> dict[str, np.ndarray]:
    """How the move of each model divides: selection, local edit of a domain, rest; in shares."""
    before, after = hull.fit(before_NO), hull.fit(after_NO)
    move_N = hull.kl(after_NO, before.w_MC) - before.residual_M
    left_N = after.residual_M - before.residual_M
    edited = [(r, 0.0) for r in after.residual_M]
    if domain is not None:
        edited = [hull.override(P_O, domain) for P_O in after_NO]
    rest_N = np.array([residual for residual, _ in edited]) - before.residual_M
    return {
        "selection": 1 - left_N / move_N,
        "edit": (left_N - rest_N) / move_N,
        "rest": rest_N / move_N,
        "move": move_N,
        "log-odds edited": np.array([shift for _, shift in edited]),
    }


def outside(hull: Hull, domain: int, before_NO, after_NO):
    """The same in dialogues that do not ask about a domain."""
    before_NO, part = hull.without(before_NO, (domain,))
    return part, before_NO, hull.without(after_NO, (domain,))[0]


def em_change(bench: Bench, before, after) -> np.ndarray:
    """ΔEM by domain [D] between two models."""
    from toyllm.scoring import em

    return em(bench.ask(after)) - em(bench.ask(before))
