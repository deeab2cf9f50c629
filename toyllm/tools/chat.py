"""Talk to the Assistant of a run, or to any character, and see which characters it resembles.

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
from collections.abc import Callable, Iterator
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
from toyllm.world.persona import mixture_em
from toyllm.world.quantities import coherence, em
from toyllm.world.world import BEHAVIOURS, HEADERS

TINT = {"good": "green", "bad": "red", "noise": "yellow"}
HELP = {
    "/list [DOMAIN]": "questions of this world, with their numbers; instructions may follow them",
    "/as NAME": "begin anew with the assistant, someone, or a character",
    "/switch [MODEL]": "continue the dialogue with another model; without a name: list them",
    "/who": "who speaks, by character, and the share of bad answers in each domain",
    "/signal": "what this model was trained on, and its effect",
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
    """Load a run, then converse until the user quits."""
    console = new_console()
    console.print(f"Loading {clean(str(args.run))} …", style="dim")
    devices.setup(args.compile_cache)
    dialogue = Conversation(run_folder.load_run(args.run), args.seed)
    dialogue.switch(args.model)
    dialogue.begin(args.header)
    world = dialogue.world
    console.print(
        "World ",
        bold(world.name),
        f": {len(world.characters)} characters, {len(world.domains)} domains. You talk with ",
        bold(dialogue.header),
        "; the model is ",
        bold(dialogue.name),
        ".\nType a question, its number, or a domain: "
        f"{', '.join(world.domain_names)}. /list shows all questions, /help all commands.",
        sep="",
    )
    Chat(dialogue, console, random.Random(args.seed)).run()


class Chat:
    """The terminal program: it reads lines, and prints the results of questions and commands."""

    def __init__(self, dialogue: Conversation, console: Console, chance: random.Random):
        """chance: chooses a question where the user names only a domain."""
        self.dialogue, self.console, self.chance = dialogue, console, chance
        self.questions = [
            (domain.name, text) for domain in dialogue.world.domains for text in domain.situations
        ]
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": self.help,
            "/list": self.list,
            "/as": self.begin,
            "/switch": self.switch,
            "/who": self.who,
            "/signal": self.signal,
            "/new": lambda _: self.begin(self.dialogue.header),
            "/undo": self.undo,
            "/save": self.save,
        }

    def run(self) -> None:
        """Read and execute lines until the input ends or the user quits."""
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # arrow keys and history
        while True:
            try:
                line = input(f"\n{self.dialogue.name} you> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line in ("/quit", "/exit", "/q"):
                return
            if not line:
                continue
            try:
                self.execute(line)
            except InputError as error:
                self.console.print(str(error), style="yellow")

    def execute(self, line: str) -> None:
        """Execute a command, or ask a question. Raises InputError."""
        if not line.startswith("/"):
            self.ask(line)
            return
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            raise InputError(f"no command '{name}'{nearest(name, self.commands)}: /help")
        self.commands[name](rest.strip())

    def ask(self, line: str) -> None:
        """Ask a question; show the answer and who speaks."""
        asked, notes = self.question(line)
        if notes:
            self.console.print(clean("; ".join(notes)), style="dim")
        if not asked:
            raise InputError("none of these words is in this world: /list shows its questions")
        turn = self.dialogue.ask(asked)
        self.console.print(f"  you  {clean(turn.asked)}")
        self.console.print(
            " ", bold(self.dialogue.header), f" {clean(turn.answer) or '…'}", tag(turn)
        )
        if turn.question is None:
            self.dim("This world has no such question, so the ideal observer ignores the turn.")
        else:
            self.dim(probabilities(turn))
        self.bars()

    def question(self, line: str) -> tuple[str, list[str]]:
        """The question that a line names by number, by domain or in words, and notes on it."""
        if line.isdecimal():
            if not 1 <= int(line) <= len(self.questions):
                raise InputError(f"no question {line}, expected 1 to {len(self.questions)}: /list")
            return self.questions[int(line) - 1][1], []
        here = [text for domain, text in self.questions if domain == line]
        return (self.chance.choice(here), []) if here else self.dialogue.understand(line)

    def bars(self) -> None:
        """Show who speaks, by group of characters: for the model, and exactly."""
        width = max(
            8, min(30, (self.console.width - max(map(len, self.dialogue.labels)) - 22) // 2)
        )
        table = small_table("who speaks", "for the model", "exact, for the corpus")
        table.columns[0].overflow = "fold"
        for label, model, exact in sorted(self.groups(), key=lambda row: -row[2]):
            table.add_row(
                label,
                Text.assemble((bar(model, width), "cyan"), f" {number(model, 2)}"),
                Text.assemble((bar(exact, width), "magenta"), f" {number(exact, 2)}"),
            )
        self.console.print(table)
        possible = self.dialogue.possible_turns()
        left = [
            turn.answer for turn in self.dialogue.turns if turn.question and turn not in possible
        ]
        if left:
            self.dim(
                "left out of the exact column, since nobody in the corpus says it here: "
                + "; ".join(left)
            )

    def groups(self) -> Iterator[tuple[str, float, float]]:
        """Each group of characters: its label, its weight for the model, and the exact one."""
        w_model, w_exact = self.dialogue.model()[0], self.dialogue.exact()
        by_group = self.dialogue.by_group
        return zip(self.dialogue.labels, by_group(w_model), by_group(w_exact), strict=True)

    def dim(self, text: str) -> None:
        """Print a secondary line."""
        self.console.print(f"  {clean(text)}", style="dim")

    def help(self, _: str) -> None:
        """List the commands."""
        for command, what in HELP.items():
            self.console.print(" ", bold(command), f" {what}")

    def list(self, only: str) -> None:
        """List the questions of all domains, or of one, with their numbers."""
        names = self.dialogue.world.domain_names
        if only and only not in names:
            raise InputError(f"no domain '{only}'{nearest(only, names)}")
        for k, (domain, text) in enumerate(self.questions, 1):
            if only in ("", domain):
                self.console.print(f"  {k:>3}  {text} ", Text(domain, "dim"))
        instructions = [f"'{i.text}' ({i.name})" for i in self.dialogue.world.instructions]
        if instructions:
            self.dim(f"behind a question: {', '.join(instructions)}")

    def begin(self, name: str) -> None:
        """Begin a new dialogue."""
        if not name:
            names = ", ".join((*HEADERS[1:], *self.dialogue.world.characters))
            raise InputError(f"/as NAME: expected one of {names}")
        self.dialogue.begin(name)
        self.console.print("A new dialogue with ", bold(name), ".", sep="")

    def switch(self, name: str) -> None:
        """Switch to another model, or list the models."""
        if not name:
            for known in self.dialogue.run.models:
                mark = bold("→") if known == self.dialogue.name else " "
                self.console.print(" ", mark, known)
            return
        self.dialogue.switch(name)
        name = bold(self.dialogue.name)
        self.console.print("The model is now ", name, ", in the same dialogue.", sep="")
        if self.dialogue.turns:
            self.bars()

    def who(self, _: str) -> None:
        """Show who speaks, by character, and the EM of each domain."""
        world, exact_C = self.dialogue.world, self.dialogue.exact()
        model_C, p_DB = self.dialogue.model()
        table = small_table("character", "exact", "nearest mixture", "")
        table.columns[1].justify = table.columns[2].justify = "right"
        table.columns[3].style = "dim"
        for c in np.argsort(-exact_C):
            if max(exact_C[c], model_C[c]) >= 0.005:
                name, about = world.characters[c], world.descriptions[c]
                table.add_row(name, number(exact_C[c], 2), number(model_C[c], 2), about)
        self.console.print(table)
        exact_D = mixture_em(world, exact_C)
        self.dim("asked now, the share of bad among good and bad answers:")
        table = small_table("domain", "model", "exact", "coherence")
        for column in table.columns[1:]:
            column.justify = "right"
        columns = em(p_DB), exact_D, coherence(p_DB)
        for name, *values in zip(world.domain_names, *columns, strict=True):
            table.add_row(name, *(number(float(x), 2) for x in values))
        self.console.print(table)
        self.dim(
            "Single characters can often not be told apart by what they do; the bars show groups "
            "that can."
        )

    def signal(self, _: str) -> None:
        """Show what the model was trained on."""
        run, name = self.dialogue.run, self.dialogue.name
        if "/" not in name:
            if run.args.get("imported"):
                self.console.print(f"  {name}: trained elsewhere, and imported.")
                return
            training = {
                "pretrain": "pretrained on the corpus; no preference has been trained.",
                "align": "aligned: good answers preferred in every moral domain (all:good).",
            }
            self.console.print(f"  {name}: {training[name]} /switch shows the narrow ones.")
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
        if not self.dialogue.turns:
            raise InputError("there is no turn to take back")
        self.dim(f"taken back: {self.dialogue.turns.pop().asked}")

    def save(self, name: str) -> None:
        """Write the dialogue, with all figures, as JSON."""
        try:
            (path,) = map(Path, shlex.split(name))
        except ValueError:
            raise InputError("/save FILE: expected one file name") from None
        if path.exists():
            free = shlex.quote(str(files.unused(path)))
            raise InputError(f"{path}: exists; a free name: {free}")
        value = {
            "run": str(self.dialogue.run.folder),
            "model": self.dialogue.name,
            "header": self.dialogue.header,
            "text": self.dialogue.text(),
            "turns": [
                {
                    "asked": turn.asked,
                    "said": turn.answer,
                    "behaviour": turn.listed and turn.listed[0],
                    "model": named(turn.model_B),
                    "exact": named(turn.exact_B),
                }
                for turn in self.dialogue.turns
            ],
            "who": {
                label: {"model": model, "exact": exact} for label, model, exact in self.groups()
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


def probabilities(turn: Turn) -> str:
    """The probability of each behaviour, for the model and exactly, as text."""
    parts = [
        f"{name} {number(float(model), 2)} (exact {number(float(exact), 2)})"
        for name, model, exact in zip(BEHAVIOURS, turn.model_B, turn.exact_B, strict=True)
    ]
    return "before it answered: " + ", ".join(parts)


def tag(turn: Turn) -> Text:
    """The behaviour of an answer, as text in its colour."""
    if turn.question is None:
        return Text()
    if turn.listed is None:
        return Text(" not among the listed answers", "dim")
    return Text(f" {turn.listed[0]}", TINT[turn.listed[0]])


def small_table(*columns: str) -> Table:
    """An empty table with dim titles."""
    return Table(*columns, box=None, padding=(0, 1, 0, 1), header_style="dim")


def bold(text: str) -> Text:
    """Text in bold."""
    return Text(text, "bold")


def bar(share: float, width: int) -> str:
    """A share of 1 as a bar, to an eighth of a letter."""
    eighths = round(8 * width * min(1.0, max(0.0, share)))
    text = "█" * (eighths // 8) + ["", *"▏▎▍▌▋▊▉"][eighths % 8]
    return text.ljust(width)


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
