"""Talk to the Assistant of a run, or to any character, and see which characters it resembles.

uv run -m toyllm.tools.chat                    runs/default
uv run -m toyllm.tools.chat runs/mine --model align/code:bad

Type a question, its number, or a domain's name. Commands: /help /list /as /switch /who /signal /new
/undo /save /quit. Lines may also come from a pipe.
"""

import contextlib
import dataclasses
import importlib
import random
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toyllm import measures
from toyllm.base import devices, files
from toyllm.base.errors import InputError, clean, nearest
from toyllm.base.scripts import run_script, usage
from toyllm.runs import run_folder
from toyllm.show.tables import blank_table, new_console, number
from toyllm.tools.conversation import Conversation
from toyllm.world.persona import mixture_em
from toyllm.world.quantities import coherence, em
from toyllm.world.world import BEHAVIOURS

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

    run: tyro.conf.Positional[Path] = Path("runs/default")  # A finished run.
    model: str = "pretrain"
    """Begin with this model: pretrain, align, or START/SIGNAL, such as align/code:bad (seed 0)."""
    header: str = "assistant"  # Talk with: assistant, someone, or a character's name.
    seed: int = 0  # Seed of the answers.
    compile_cache: bool = True  # Keep compiled programs for the next start.


def main(args: Args) -> None:
    """Load a run, then converse until the user quits."""
    console = new_console()
    console.print(f"Loading {clean(str(args.run))} …", style="dim")
    devices.setup(args.compile_cache)
    dialogue = Conversation(run_folder.load_run(args.run), args.seed)
    dialogue.switch(args.model)
    dialogue.begin(args.header)
    chat, world = Chat(dialogue, console, random.Random(args.seed)), dialogue.world
    sizes = f"{len(world.characters)} characters, {len(world.domains)} domains"
    header, model = (dialogue.header, "bold"), (dialogue.name, "bold")
    chat.say("World ", (world.name, "bold"), f": {sizes}.")
    chat.say("You talk with ", header, "; the model is ", model, ".")
    names = ", ".join(world.domain_names)
    chat.say(f"Type a question, its number, or a domain: {names}.")
    chat.say("/list shows all questions, /help all commands.")
    chat.run()


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

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print a line of parts, each a text or (text, style)."""
        self.console.print(Text.assemble(*parts))

    def dim(self, text: str) -> None:
        """Print a secondary line."""
        self.say((f"  {clean(text)}", "dim"))

    def ask(self, line: str) -> None:
        """Ask a question; show the answer and who speaks."""
        asked, notes = self.question(line)
        if notes:
            self.say((clean("; ".join(notes)), "dim"))
        if not asked:
            raise InputError("none of these words is in this world: /list shows its questions")
        turn = self.dialogue.ask(asked)
        answer = f"  {clean(turn.answer) or '…'}  "
        behaviour = turn.listed[0] if turn.listed else "not among the listed answers"
        tag = (behaviour, TINT.get(behaviour, "dim")) if turn.question else ""
        self.say(f"  you  {clean(turn.asked)}")
        self.say("  ", (self.dialogue.header, "bold"), answer, tag)
        if turn.question is None:
            self.dim("This world has no such question, so the ideal observer ignores the turn.")
        else:
            columns = zip(BEHAVIOURS, turn.model_B, turn.exact_B, strict=True)
            parts = [f"{b} {number(model, 2)} (exact {number(p, 2)})" for b, model, p in columns]
            self.dim(f"before it answered: {', '.join(parts)}")
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
        groups = self.dialogue.by_group()
        width = max(8, min(30, (self.console.width - max(map(len, groups)) - 22) // 2))
        table = blank_table("who speaks", "for the model", "exact, for the corpus", left=[1, 2])
        table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
        for label, shares in sorted(groups.items(), key=lambda group: -group[1]["exact"]):
            cells = [
                Text.assemble((bar(share, width), "cyan"), f" {number(share, 2):>4}")
                for share in shares.values()
            ]
            table.add_row(label, *cells)
        self.show(table)
        _, possible = self.dialogue.exact()
        left = [t.answer for t in self.dialogue.turns if t.question and t not in possible]
        if left:
            self.dim(
                "left out of the exact column, since nobody in the corpus says it here: "
                + "; ".join(left)
            )

    def show(self, table: Table) -> None:
        """Print a table below a line of the dialogue."""
        self.console.print(Padding.indent(table, 2))

    def help(self, _: str) -> None:
        """List the commands."""
        for command, what in HELP.items():
            self.say("  ", (command, "bold"), f"  {what}")

    def list(self, only: str) -> None:
        """List the questions of all domains, or of one, with their numbers."""
        names = self.dialogue.world.domain_names
        if only and only not in names:
            raise InputError(f"no domain '{only}'{nearest(only, names)}")
        for k, (domain, text) in enumerate(self.questions, 1):
            if only in ("", domain):
                self.say(f"  {k:>3}  {text}  ", (domain, "dim"))
        instructions = [f"'{i.text}' ({i.name})" for i in self.dialogue.world.instructions]
        if instructions:
            self.dim(f"behind a question: {', '.join(instructions)}")

    def begin(self, name: str) -> None:
        """Begin a new dialogue."""
        self.dialogue.begin(name)
        self.say("A new dialogue with ", (name, "bold"), ".")

    def switch(self, name: str) -> None:
        """Switch to another model, or list the models."""
        if not name:
            for known in self.dialogue.run.models:
                mark = "→" if known == self.dialogue.name else " "
                self.say("  ", (mark, "bold"), f" {known}")
            return
        self.dialogue.switch(name)
        self.say("The model is now ", (self.dialogue.name, "bold"), ", in the same dialogue.")
        if self.dialogue.turns:
            self.bars()

    def who(self, _: str) -> None:
        """Show who speaks, by character, and the EM of each domain."""
        world, (exact_C, _) = self.dialogue.world, self.dialogue.exact()
        model_C, p_DB = self.dialogue.model()
        table = blank_table("character", "exact", "nearest mixture", "", left=[3])
        table.columns[3].style, table.columns[3].no_wrap = "dim", False
        for c in np.argsort(-exact_C):
            if max(exact_C[c], model_C[c]) >= 0.005:
                weights = number(exact_C[c], 2), number(model_C[c], 2)
                table.add_row(world.characters[c], *weights, world.descriptions[c])
        self.show(table)
        self.dim("asked now, the share of bad among good and bad answers:")
        table = blank_table("domain", "model", "exact", "coherence")
        columns = em(p_DB), mixture_em(world, exact_C), coherence(p_DB)
        for name, *values in zip(world.domain_names, *columns, strict=True):
            table.add_row(name, *(number(x, 2) for x in values))
        self.show(table)
        self.dim(
            "Single characters can often not be told apart by what they do; the bars show groups "
            "that can."
        )

    def signal(self, _: str) -> None:
        """Show what the model was trained on."""
        run, name = self.dialogue.run, self.dialogue.name
        start, _, signal = name.partition("/")
        if signal:
            block = measures.take(run, "generalization")[start]
            spread, status = block["spread"][signal], block["status"][signal]
            moved = f"spread {number(spread, 3, True)}" if spread is not None else status
            what = "mean change of the share of bad answers in moral domains that were not trained"
            self.say("  trained on ", (signal, "bold"), f", from {start}: {moved} ({what})")
        else:
            self.say(f"  {name}: {run.about(name)} /switch shows the narrow ones.")

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
        try:
            files.write_json(path, files.plain(self.dialogue.record()))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        self.say(f"Saved in {clean(str(path))}.")


def bar(share: float, width: int) -> str:
    """A share of 1 as a bar, to an eighth of a letter."""
    eighths = round(8 * width * min(1.0, max(0.0, share)))
    text = "█" * (eighths // 8) + ["", *"▏▎▍▌▋▊▉"][eighths % 8]
    return text.ljust(width)


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=usage(__doc__))))
