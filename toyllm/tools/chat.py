"""Talk to the Assistant of a run, or to any character, and watch who the model thinks it is.

uv run -m toyllm.tools.chat                    runs/default
uv run -m toyllm.tools.chat runs/mine --model align/code:bad

Type a question, its number, or a domain's name. Commands: /help /list /as /switch /who /signal /new
/undo /save /quit. Lines may also come from a pipe.
"""

import contextlib
import dataclasses
import importlib
import json
import random
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toyllm import measures
from toyllm.base import devices, files
from toyllm.base.errors import InputError, clean, nearest
from toyllm.base.scripts import run_script
from toyllm.runs import run_folder
from toyllm.show.tables import new_console, number
from toyllm.tools.conversation import Conversation, Turn
from toyllm.world.quantities import em
from toyllm.world.world import BEHAVIOURS, HEADERS

TINT = {"good": "green", "bad": "red", "noise": "yellow"}
HELP = {
    "/list [DOMAIN]": "questions of this world, with their numbers; instructions may follow them",
    "/as NAME": "begin anew with the assistant, someone, or a character",
    "/switch [MODEL]": "go on with another model in the same dialogue; alone: which there are",
    "/who": "who speaks, character by character, and what each domain may expect",
    "/signal": "what this model was trained on, and what that did",
    "/new, /undo": "begin anew; take the last turn back",
    "/save FILE": "write the dialogue, with all figures, as JSON",
    "/quit": "leave (also Ctrl-D)",
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Talk to the Assistant of a run."""

    run: tyro.conf.Positional[Path] = Path("runs/default")
    """A finished run."""
    model: str = "pretrain"
    """Begin with this model: pretrain, align, or START/SIGNAL, such as align/code:bad (seed 0)."""
    header: str = "assistant"
    """Talk with: assistant, someone, or a character's name."""
    seed: int = 0
    """Seed of the answers."""
    compile_cache: bool = True
    """Keep compiled programs for the next start."""


def main(args: Args) -> None:
    """Load, then talk until the end."""
    console = new_console()
    console.print(f"Loading {clean(str(args.run))} …", style="dim")
    devices.setup(args.compile_cache)
    talk = Conversation(run_folder.load_run(args.run), args.seed)
    talk.switch(args.model)
    talk.begin(args.header)
    world = talk.world
    console.print(
        "World ",
        bold(world.name),
        f": {len(world.characters)} characters, {len(world.domains)} domains. You talk with ",
        bold(talk.header),
        "; the model is ",
        bold(talk.name),
        ".\nType a question, its number, or a domain: "
        f"{', '.join(world.domain_names)}. /list shows all questions, /help all commands.",
        sep="",
    )
    Chat(talk, console, random.Random(args.seed)).run()


class Chat:
    """Reads lines, does what they say, and shows what came of it."""

    def __init__(self, talk: Conversation, console: Console, chance: random.Random):
        """Nothing is read yet."""
        self.talk, self.console, self.chance = talk, console, chance
        self.questions = [
            (domain.name, text) for domain in talk.world.domains for text in domain.situations
        ]
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": self.help,
            "/list": self.list,
            "/as": self.begin,
            "/switch": self.switch,
            "/who": self.who,
            "/signal": self.signal,
            "/new": lambda _: self.begin(self.talk.header),
            "/undo": self.undo,
            "/save": self.save,
        }

    def run(self) -> None:
        """One line after another."""
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # arrow keys and history
        while True:
            try:
                line = input(f"\n{self.talk.name} you> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line in ("/quit", "/exit", "/q"):
                return
            if not line:
                continue
            try:
                self.do(line)
            except InputError as error:
                self.console.print(str(error), style="yellow")

    def do(self, line: str) -> None:
        """A command, or a question."""
        if not line.startswith("/"):
            self.ask(line)
            return
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            raise InputError(f"no command '{name}'{nearest(name, self.commands)}: /help")
        self.commands[name](rest.strip())

    def ask(self, line: str) -> None:
        """Put a question; show the answer and who it makes the speaker."""
        asked, notes = self.question(line)
        if notes:
            self.console.print(clean("; ".join(notes)), style="dim")
        if not asked:
            raise InputError("none of these words is in this world: /list shows its questions")
        turn = self.talk.ask(asked)
        self.console.print(f"  you  {clean(turn.asked)}")
        self.console.print(" ", bold(self.talk.header), f" {clean(turn.said) or '…'}", tag(turn))
        if turn.question is None:
            self.dim("That is no question of this world: the ideal observer cannot follow.")
        else:
            self.dim(chances(turn))
        self.bars()

    def question(self, line: str) -> tuple[str, list[str]]:
        """What a line asks: a number, a domain's name, or words."""
        if line.isdecimal():
            if not 1 <= int(line) <= len(self.questions):
                raise InputError(f"no question {line}, expected 1 to {len(self.questions)}: /list")
            return self.questions[int(line) - 1][1], []
        here = [text for domain, text in self.questions if domain == line]
        return (self.chance.choice(here), []) if here else self.talk.understand(line)

    def bars(self) -> None:
        """Who speaks, in groups: for the model, and exactly."""
        model_C, _ = self.talk.model()
        rows = list(
            zip(
                self.talk.labels,
                self.talk.by_group(model_C),
                self.talk.by_group(self.talk.exact()),
                strict=True,
            )
        )
        width = max(8, min(30, (self.console.width - max(map(len, self.talk.labels)) - 22) // 2))
        table = Table(box=None, padding=(0, 1, 0, 1), header_style="dim", show_header=True)
        table.add_column("who speaks", overflow="fold")
        table.add_column("for the model")
        table.add_column("exact, for the corpus")
        for label, model, exact in sorted(rows, key=lambda row: -row[2]):
            table.add_row(
                label,
                Text.assemble((bar(model, width), "cyan"), f" {number(model, 2)}"),
                Text.assemble((bar(exact, width), "magenta"), f" {number(exact, 2)}"),
            )
        self.console.print(table)
        heeded = self.talk.heeded()
        left = [turn for turn in self.talk.turns if turn.question and turn not in heeded]
        if left:
            self.dim(
                "left out of the exact column, since nobody in the corpus says it here: "
                + "; ".join(turn.said for turn in left)
            )

    def dim(self, text: str) -> None:
        """Print what is beside the point."""
        self.console.print(f"  {clean(text)}", style="dim")

    def help(self, _: str) -> None:
        """All commands."""
        for command, what in HELP.items():
            self.console.print(" ", bold(command), f" {what}")

    def list(self, only: str) -> None:
        """The questions, with their numbers."""
        names = self.talk.world.domain_names
        if only and only not in names:
            raise InputError(f"no domain '{only}'{nearest(only, names)}")
        for k, (domain, text) in enumerate(self.questions, 1):
            if only in ("", domain):
                self.console.print(f"  {k:>3}  {text} ", Text(domain, "dim"))
        told = [f"'{i.text}' ({i.name})" for i in self.talk.world.instructions]
        if told:
            self.dim(f"behind a question: {', '.join(told)}")

    def begin(self, name: str) -> None:
        """A new dialogue."""
        if not name:
            names = ", ".join((*HEADERS[1:], *self.talk.world.characters))
            raise InputError(f"/as NAME: expected one of {names}")
        self.talk.begin(name)
        self.console.print("A new dialogue with ", bold(name), ".", sep="")

    def switch(self, name: str) -> None:
        """Another model."""
        if not name:
            for known in self.talk.run.models:
                mark = bold("→") if known == self.talk.name else " "
                self.console.print(" ", mark, known)
            return
        self.talk.switch(name)
        name = bold(self.talk.name)
        self.console.print("The model is now ", name, ", in the same dialogue.", sep="")
        if self.talk.turns:
            self.bars()

    def who(self, _: str) -> None:
        """Character by character, then domain by domain."""
        world, exact_C = self.talk.world, self.talk.exact()
        model_C, p_DB = self.talk.model()
        table = Table(box=None, padding=(0, 1, 0, 1), header_style="dim")
        table.add_column("character")
        for title in ("exact", "nearest mixture"):
            table.add_column(title, justify="right")
        table.add_column("", style="dim")
        for c in np.argsort(-exact_C):
            if max(exact_C[c], model_C[c]) >= 0.005:
                name, about = world.characters[c], world.descriptions[c]
                table.add_row(name, number(exact_C[c], 2), number(model_C[c], 2), about)
        self.console.print(table)
        exact_D = em(exact_C @ world.rates_CDB.transpose(1, 0, 2))
        self.dim("asked now, the share of bad among good and bad answers:")
        table = Table(box=None, padding=(0, 1, 0, 1), header_style="dim")
        for title in ("domain", "model", "exact", "coherence"):
            table.add_column(title, justify="left" if title == "domain" else "right")
        for d, name in enumerate(world.domain_names):
            values = em(p_DB[d]), exact_D[d], p_DB[d].sum()
            table.add_row(name, *(number(float(x), 2) for x in values))
        self.console.print(table)
        self.dim(
            "Single characters can often not be told apart by what they do; the bars show groups "
            "that can."
        )

    def signal(self, _: str) -> None:
        """What the model was trained on."""
        run, name = self.talk.run, self.talk.name
        if "/" not in name:
            if run.args.get("imported"):
                self.console.print(f"  {name}: trained elsewhere, and imported.")
                return
            told = {
                "pretrain": "pretrained on the corpus; no preference has been trained.",
                "align": "aligned: good answers preferred in every moral domain (all:good).",
            }
            self.console.print(f"  {name}: {told[name]} /switch shows the narrow ones.")
            return
        start, _, signal = name.partition("/")
        block = measures.take(run, "generalization")[start]
        spread, status = block["spread"][signal], block["status"][signal]
        moved = f"spread {number(spread, 3, True)}" if spread is not None else status
        self.console.print(
            "  trained on ",
            bold(signal),
            f", from {start}: {moved} (mean change of the share "
            "of bad answers in moral domains that were not trained)",
            sep="",
        )

    def undo(self, _: str) -> None:
        """Take the last turn back."""
        if not self.talk.turns:
            raise InputError("there is no turn to take back")
        gone = self.talk.turns.pop()
        self.dim(f"taken back: {gone.asked}")

    def save(self, name: str) -> None:
        """Write the dialogue."""
        try:
            (place,) = shlex.split(name)
        except ValueError:
            raise InputError("/save FILE: expected one file name") from None
        path = Path(place)
        if path.exists():
            free = shlex.quote(str(files.unused_file(path)))
            raise InputError(f"{path}: exists; a free name: {free}")
        talk = self.talk
        model_C, _ = talk.model()
        value = {
            "run": str(talk.run.folder),
            "model": talk.name,
            "header": talk.header,
            "text": talk.text(),
            "turns": [
                {
                    "asked": turn.asked,
                    "said": turn.said,
                    "behaviour": turn.found and turn.found[0],
                    "model": named(turn.model_B),
                    "exact": named(turn.exact_B),
                }
                for turn in talk.turns
            ],
            "who": {
                label: {"model": model, "exact": exact}
                for label, model, exact in zip(
                    talk.labels, talk.by_group(model_C), talk.by_group(talk.exact()), strict=True
                )
            },
        }
        try:
            files.write_text(path, json.dumps(files.plain(value), indent=1) + "\n")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        self.console.print(f"Saved in {clean(str(path))}.")


def named(p_B: np.ndarray | None) -> dict | None:
    """{behaviour: probability}."""
    return None if p_B is None else dict(zip(BEHAVIOURS, map(float, p_B), strict=True))


def chances(turn: Turn) -> str:
    """How likely each behaviour was, for the model and exactly."""
    parts = [
        f"{name} {number(float(model), 2)} (exact {number(float(exact), 2)})"
        for name, model, exact in zip(BEHAVIOURS, turn.model_B, turn.exact_B, strict=True)
    ]
    return "before it answered: " + ", ".join(parts)


def tag(turn: Turn) -> Text:
    """What an answer was."""
    if turn.question is None:
        return Text()
    if turn.found is None:
        return Text(" not among the listed answers", "dim")
    return Text(f" {turn.found[0]}", TINT[turn.found[0]])


def bold(text: str) -> Text:
    """A name that stands out."""
    return Text(text, "bold")


def bar(share: float, width: int) -> str:
    """A share of 1 as a bar, to an eighth of a letter."""
    eighths = round(8 * width * min(1.0, max(0.0, share)))
    text = "█" * (eighths // 8) + ["", *"▏▎▍▌▋▊▉"][eighths % 8]
    return text.ljust(width)


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
