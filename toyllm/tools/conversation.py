"""A dialogue with a model, and what the ideal observer believes about the speaker after each turn.

Axes: C characters   D domains   B behaviours   Q questions   N = D * B
"""

import dataclasses
from difflib import SequenceMatcher, get_close_matches

import jax
import numpy as np

from toyllm.base.errors import InputError, nearest
from toyllm.lm import scoring
from toyllm.lm.sampling import Sampler, listed_answer
from toyllm.lm.tokenizer import PAD, SPECIAL
from toyllm.lm.transformer import Params
from toyllm.posttrain import monitor
from toyllm.runs.run_folder import Run
from toyllm.world import corpus, mixtures, observer
from toyllm.world.world import BEHAVIOURS, HEADERS, NAMED

MIN_LIKENESS = 0.75  # of a text to a question of the world, to be read as that question


@dataclasses.dataclass(frozen=True, eq=False)  # two turns with equal texts are different turns
class Turn:
    """One turn.

    question: (domain, situation, instruction); None where `asked` is no question of this world.
    listed: (behaviour, answer, voice) of `answer`; None where the question does not list it.
    model_B, exact_B: the probability of each behaviour; None without a question.
    """

    asked: str
    question: tuple[int, int, int] | None
    answer: str
    listed: tuple[str, int, int] | None
    model_B: np.ndarray | None
    exact_B: np.ndarray | None


class Conversation:
    """A dialogue under a header with one model of a run at a time."""

    def __init__(self, run: Run, seed: int = 0):
        """Start with the Assistant and the pretrained model."""
        self.run, self.world, self.tokenizer = run, run.world, run.lm.tokenizer
        self.sampler = Sampler(run.lm)
        self.header, self.turns, self.name = "assistant", [], "pretrain"
        self.params: Params = run.params["pretrain"]
        self.groups = monitor.groups_of(self.world, np.ones(len(self.world.domains), bool))
        self.labels = [monitor.label(self.world, group) for group in self.groups]
        self.key = jax.random.key(seed)
        questions = scoring.questions(self.tokenizer, corpus.every_question(self.world))
        # prompts leave room for the longest answer; one width for all compiles the scorer once
        self.width = run.lm.config.context - questions.answer_QAU.shape[2]

    def switch(self, name: str) -> None:
        """Continue the same dialogue with another model. Raises InputError."""
        self.params = self.run.model(name)
        self.name = name if "/" in name or name in self.run.params else f"pretrain/{name}"

    def begin(self, header: str) -> None:
        """Begin anew with the assistant, someone, or a character. Raises InputError."""
        who = (*HEADERS[1:], *self.world.characters)
        if header not in who:
            raise InputError(f"nobody is called '{header}'{nearest(header, who)}")
        self.header, self.turns = header, []

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
                notes.append(f"{word} → {near[0] if near else 'nothing'}")
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
            d, s, i = question
            exact_B = self.exact() @ self.world.rates_ICDB[i][:, d]
            model_B = self.run.scorer(self.params, self._questions([asked], [(d, s)]))[0]
        (answer,) = self.sampler.answers(self.params, [prompt], key)
        listed = listed_answer(self.tokenizer, *question[:2], answer) if question else None
        self.turns.append(Turn(asked, question, answer, listed, model_B, exact_B))
        return self.turns[-1]

    def text(self) -> str:
        """The dialogue so far, in the format of the corpus."""
        parts = [f"<begin> talk with {self.header}"]
        parts += [f"<user> {turn.asked} <reply> {turn.answer}".strip() for turn in self.turns]
        return " ".join(parts)

    def exact(self) -> np.ndarray:
        """The ideal observer's posterior over characters [C], given the possible turns."""
        return self._posterior(self.possible_turns())

    def possible_turns(self) -> list[Turn]:
        """The turns that some character could have produced after the possible turns before them.

        Given any other turn, the posterior would be 0 / 0.
        """
        possible: list[Turn] = []
        for turn in self.turns:
            if turn.listed and np.isfinite(self._posterior([*possible, turn])).all():
                possible.append(turn)
        return possible

    def _posterior(self, turns: list[Turn]) -> np.ndarray:
        """p(c | header, turns) [C]; NaN where no character could have produced them."""
        T = max(1, len(turns))
        named = self.header in self.world.characters
        header = NAMED if named else HEADERS.index(self.header)
        character = self.world.characters.index(self.header) if named else -1
        columns = {name: np.full((1, T), -1) for name in corpus.TURN}
        for t, turn in enumerate(turns):
            behaviour, answer, voice = turn.listed
            row = (0, *turn.question, BEHAVIOURS.index(behaviour), answer, voice)
            for name, value in zip(corpus.TURN, row, strict=True):
                columns[name][0, t] = value
        docs = corpus.dialogues(header, character, **columns)
        with np.errstate(invalid="ignore"):
            return observer.posterior(self.world, docs)[0, 0]

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """The mixture of characters [C] nearest to what the model would do next; and that [D, B].

        It is asked every question, with the dialogue so far as the history.
        """
        situations = [(d, s) for d, n in enumerate(self.world.situations_D) for s in range(n)]
        texts = [self.world.domains[d].situations[s] for d, s in situations]
        p_DB = self.run.scorer.domains(self.params, self._questions(texts, situations))
        p_N = (p_DB / p_DB.sum(1, keepdims=True)).astype(float).reshape(1, -1)
        p_CN = self.world.rates_CDB.reshape(len(self.world.characters), -1)
        return mixtures.fit(p_N, p_CN, len(p_DB), monitor.GAP).w_MC[0], p_DB

    def _questions(self, texts, situations) -> scoring.Questions:
        """Questions after the dialogue so far, with their listed answers."""
        prompt_QT = np.full((len(texts), self.width), PAD, np.int32)
        for row, text in zip(prompt_QT, texts, strict=True):
            tokens = self.tokenizer.tokens(f"{self.text()} <user> {text} <reply>")
            row[self.width - len(tokens) :] = tokens
        d, s = np.array(situations).T
        return scoring.Questions(
            prompt_QT, self.tokenizer.answer_DAU[d], self.world.behaviour_DSA[d, s], d
        )

    def by_group(self, w_C: np.ndarray) -> list[float]:
        """The weight of each group of characters that can be told apart."""
        return [float(w_C[group].sum()) for group in self.groups]
