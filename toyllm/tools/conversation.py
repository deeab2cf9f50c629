"""A dialogue with a model, and what the ideal observer believes about the speaker after each turn.

Axes: C characters   D domains   B behaviours   Q questions   N = D * B
"""

import dataclasses
from difflib import SequenceMatcher, get_close_matches
from functools import cached_property

import jax
import numpy as np

from toyllm.base.errors import InputError, nearest
from toyllm.lm import scoring
from toyllm.lm.sampling import Sampler, listed_answer
from toyllm.lm.tokenizer import SPECIAL, padded
from toyllm.lm.transformer import Params
from toyllm.posttrain import monitor
from toyllm.runs.run_folder import Run
from toyllm.world import corpus, mixtures, observer
from toyllm.world.world import BEHAVIOURS, HEADERS, NAMED

MIN_LIKENESS = 0.75  # of a text to a question of the world, to be read as that question


@dataclasses.dataclass(frozen=True, eq=False)  # two turns with equal texts are different turns
class Turn:
    """One turn. Where what is asked is no question of this world, its question is None."""

    asked: str
    question: tuple[int, int, int] | None  # domain, situation, instruction
    answer: str
    listed: tuple[str, int, int] | None  # behaviour, answer, voice; None: the question lacks it
    model_B: np.ndarray | None  # the probability of each behaviour; None without a question
    exact_B: np.ndarray | None


class Conversation:
    """A dialogue under a header with one model of a run at a time."""

    def __init__(self, run: Run, seed: int = 0):
        """Start with the Assistant and the pretrained model."""
        self.run, self.world, self.tokenizer = run, run.world, run.lm.tokenizer
        self.sampler = Sampler(run.lm)
        self.key = jax.random.key(seed)
        # prompts leave room for the longest answer; one width for all compiles the scorer once
        self.width = run.lm.config.context - self.tokenizer.answer_DAU.shape[2]
        self.begin("assistant")
        self.switch("pretrain")

    def switch(self, name: str) -> None:
        """Continue the same dialogue with another model. Raises InputError."""
        self.params: Params = self.run.model(name)
        self.name = self.run.full_name(name)

    def begin(self, header: str) -> None:
        """Begin anew with the assistant, someone, or a character. Raises InputError."""
        who = (*HEADERS[1:], *self.world.characters)
        if header not in who:
            near = nearest(header, who)
            raise InputError(f"nobody is called '{header}'{near}, expected one of {', '.join(who)}")
        self.header: str = header
        self.turns: list[Turn] = []

    def understand(self, text: str) -> tuple[str, list[str]]:
        """What was typed, in words of the world, and notes on what was changed.

        An unknown word becomes the nearest known one or is left out, and a text that is nearly a
        question of the world becomes that question.
        """
        questions = self.tokenizer.asked
        if (asked := " ".join(text.split())) in questions:
            return asked, []
        words, notes = [], []
        known = [word for word in self.tokenizer.words if word not in SPECIAL]
        for word in text.replace("?", " ").replace(",", " ").split():
            near = [spelling for spelling in (word, word.lower()) if spelling in known][:1]
            if not near:
                # in a short word, one letter is a larger part of the likeness
                near = get_close_matches(word.lower(), known, 1, 0.6 if len(word) > 5 else 0.8)
                notes.append(
                    f"{word} → {near[0]}" if near else f"{word}: no word of this world, left out"
                )
            words += near
        if not words or (asked := " ".join(words)) in questions:
            return " ".join(words), notes

        def likeness(question: str) -> float:
            return SequenceMatcher(None, words, question.split()).ratio()

        best = max(questions, key=likeness)
        if likeness(best) < MIN_LIKENESS:
            return asked, notes
        return best, [*notes, f"read as: {best}"]

    def ask(self, asked: str) -> Turn:
        """Ask a question, in words of the world, and sample the model's answer.

        Raises InputError where the context has no room for it.
        """
        prompt = f"{self.text()} <user> {asked} <reply>"
        # after the answer there must be room to ask what the model would do next
        after = self.sampler.length + self.tokenizer.longest_prompt(1)
        if len(prompt.split()) + after > self.width:
            raise InputError("the model can follow no longer dialogue: /new begins another")
        self.key, key = jax.random.split(self.key)
        question = self.tokenizer.asked.get(asked)
        model_B = exact_B = None
        if question:
            d, _, i = question
            exact_B = self.exact()[0] @ self.world.rates_ICDB[i][:, d]
            model_B = self.run.scorer(self.params, self._questions([asked]))[0]
        (answer,) = self.sampler.answers(self.params, [prompt], key)
        listed = listed_answer(self.tokenizer, *question[:2], answer) if question else None
        self.turns.append(Turn(asked, question, answer, listed, model_B, exact_B))
        return self.turns[-1]

    def text(self) -> str:
        """The dialogue so far, in the format of the corpus."""
        parts = [f"<begin> talk with {self.header}"]
        parts += [f"<user> {turn.asked} <reply> {turn.answer}".strip() for turn in self.turns]
        return " ".join(parts)

    def exact(self) -> tuple[np.ndarray, list[Turn]]:
        """The ideal observer's posterior over characters [C]; and the turns that it rests on.

        Left out is every turn that no character could have produced after the turns before it:
        given such a turn, the posterior would be 0 / 0.
        """
        possible: list[Turn] = []
        for turn in self.turns:
            if turn.listed and np.isfinite(self._posterior([*possible, turn])).all():
                possible.append(turn)
        return self._posterior(possible), possible

    def _posterior(self, turns: list[Turn]) -> np.ndarray:
        """p(c | header, turns) [C]; NaN where no character could have produced them."""
        named = self.header in self.world.characters
        header = NAMED if named else HEADERS.index(self.header)
        character = self.world.characters.index(self.header) if named else -1
        said = [(*turn.question, *turn.listed[1:]) for turn in turns]
        docs = corpus.spoken(self.world, [(header, character)], [said])
        with np.errstate(invalid="ignore"):
            return observer.posterior(self.world, docs)[0, 0]

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """The mixture of characters [C] nearest to what the model would do next; and that [D, B].

        It is asked every question, with the dialogue so far as the history.
        """
        asked = [text for domain in self.world.domains for text in domain.situations]
        p_DB = self.run.scorer.domains(self.params, self._questions(asked))
        p_N = (p_DB / p_DB.sum(1, keepdims=True)).astype(float).reshape(1, -1)
        p_CN = self.world.rates_CDB.reshape(len(self.world.characters), -1)
        return mixtures.fit(p_N, p_CN, len(p_DB), monitor.GAP).w_MC[0], p_DB

    def _questions(self, asked: list[str]) -> scoring.Questions:
        """Questions of the world after the dialogue so far, with their listed answers."""
        texts = [f"{self.text()} <user> {text} <reply>" for text in asked]
        prompt_QT = padded(list(map(self.tokenizer.tokens, texts)), self.width, left=True)
        d, s, _ = np.array([self.tokenizer.asked[text] for text in asked]).T
        return scoring.Questions(
            prompt_QT, self.tokenizer.answer_DAU[d], self.world.behaviour_DSA[d, s], d
        )

    @cached_property
    def _groups(self) -> dict[str, np.ndarray]:
        """The characters of each group that can be told apart, by the group's label."""
        groups = monitor.groups_of(self.world, np.ones(len(self.world.domains), bool))
        return {monitor.label(self.world, group): group for group in groups}

    def by_group(self) -> dict[str, dict[str, float]]:
        """Who speaks: the weight of each group of characters, for the model and exactly."""
        model_C, exact_C = self.model()[0], self.exact()[0]
        return {
            label: {"model": float(model_C[group].sum()), "exact": float(exact_C[group].sum())}
            for label, group in self._groups.items()
        }

    def record(self) -> dict:
        """The dialogue with all figures."""

        def named(p_B: np.ndarray | None) -> dict | None:
            return None if p_B is None else dict(zip(BEHAVIOURS, p_B, strict=True))

        return {
            "run": str(self.run.folder),
            "model": self.name,
            "header": self.header,
            "text": self.text(),
            "turns": [
                {
                    "asked": turn.asked,
                    "said": turn.answer,
                    "behaviour": turn.listed and turn.listed[0],
                    "model": named(turn.model_B),
                    "exact": named(turn.exact_B),
                }
                for turn in self.turns
            ],
            "who": self.by_group(),
        }
