"""A dialogue with a model, followed by the ideal observer: who speaks, turn by turn.

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

ALIKE = 0.75  # from which likeness on a text is taken for a question of the world


@dataclasses.dataclass(frozen=True, eq=False)  # a turn is itself alone, whatever was said again
class Turn:
    """One turn. question: (domain, situation, instruction), or None for no question of this world.

    found: (behaviour, answer, voice), or None where what was said is not listed for the question.
    model_B, exact_B: how likely each behaviour was; None where that cannot be known.
    """

    asked: str
    question: tuple[int, int, int] | None
    said: str
    found: tuple[str, int, int] | None
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
        self.width = run.lm.config.context - questions.answer_QAU.shape[2]  # of a prompt

    def switch(self, name: str) -> None:
        """Go on with another model, in the same dialogue. Raises InputError."""
        self.params = self.run.model(name)
        self.name = name if "/" in name or name in self.run.params else f"pretrain/{name}"

    def begin(self, header: str) -> None:
        """A new dialogue: with the assistant, someone, or a character. Raises InputError."""
        who = (*HEADERS[1:], *self.world.characters)
        if header not in who:
            raise InputError(f"nobody is called '{header}'{nearest(header, who)}")
        self.header, self.turns = header, []

    def understand(self, text: str) -> tuple[str, list[str]]:
        """What was typed, in the words of the world, and notes on what was changed.

        An unknown word becomes the nearest known one, or is left out; what is nearly a question of
        the world becomes that question.
        """
        if " ".join(text.split()) in self.tokenizer.asked:
            return " ".join(text.split()), []
        words, notes = [], []
        known = [word for word in self.tokenizer.words if word not in SPECIAL]
        for word in text.replace("?", " ").replace(",", " ").split():
            same = next((w for w in (word, word.lower()) if w in known), None)
            if same:
                words.append(same)
                continue
            near = get_close_matches(word.lower(), known, 1, 0.6 if len(word) > 5 else 0.8)
            words += near
            notes.append(f"{word} → {near[0] if near else 'nothing'}")
        asked = " ".join(words)
        if asked and asked not in self.tokenizer.asked:
            likeness = {
                question: SequenceMatcher(None, asked.split(), question.split()).ratio()
                for question in self.tokenizer.asked
            }
            best = max(likeness, key=lambda question: likeness[question])
            if likeness[best] >= ALIKE:
                notes.append(f"read as: {best}")
                asked = best
        return asked, notes

    def ask(self, asked: str) -> Turn:
        """Put a question, in words of the world; the model's answer is sampled.

        Raises InputError where there is no room for it.
        """
        prompt = f"{self.text()} <user> {asked} <reply>"
        # behind the answer there must be room to ask what the model would do next
        after = self.sampler.length + self.tokenizer.longest_prompt(1)
        if len(prompt.split()) + after > self.width:
            raise InputError("the model can follow no longer dialogue: /new begins another")
        self.key, key = jax.random.split(self.key)
        question = self.tokenizer.asked.get(asked)
        model_B = exact_B = None
        if question:
            d, s, i = question
            exact_B = self.exact() @ self.world.rates_ICDB[i][:, d]
            model_B = self.behaviours([asked], [(d, s)])[0]
        (said,) = self.sampler.answers(self.params, [prompt], key)
        found = listed_answer(self.tokenizer, *question[:2], said) if question else None
        turn = Turn(asked, question, said, found, model_B, exact_B)
        self.turns.append(turn)
        return turn

    def text(self) -> str:
        """The dialogue so far, as in the corpus."""
        parts = [f"<begin> talk with {self.header}"]
        parts += [f"<user> {turn.asked} <reply> {turn.said}".strip() for turn in self.turns]
        return " ".join(parts)

    def exact(self) -> np.ndarray:
        """Who speaks, for an ideal observer of the corpus [C]: its posterior.

        It learns nothing from turns that the corpus cannot hold: see `heeded`.
        """
        return self._posterior(self.heeded())

    def heeded(self) -> list[Turn]:
        """The turns that some character could have said, after the others before them."""
        heeded: list[Turn] = []
        for turn in self.turns:
            known = turn.question and turn.found
            if known and np.isfinite(self._posterior([*heeded, turn])).all():
                heeded.append(turn)
        return heeded

    def _posterior(self, turns: list[Turn]) -> np.ndarray:
        """p(c | header, turns) [C]; NaN where no character could have said them."""
        T = max(1, len(turns))
        named = self.header in self.world.characters
        header = NAMED if named else HEADERS.index(self.header)
        character = self.world.characters.index(self.header) if named else -1
        columns = {name: np.full((1, T), -1) for name in corpus.TURN}
        for t, turn in enumerate(turns):
            behaviour, answer, voice = turn.found
            row = (0, *turn.question, BEHAVIOURS.index(behaviour), answer, voice)
            for name, value in zip(corpus.TURN, row, strict=True):
                columns[name][0, t] = value
        docs = corpus.dialogues(header, character, **columns)
        with np.errstate(invalid="ignore"):
            return observer.posterior(self.world, docs)[0, 0]

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """Who speaks, for the model: the mixture of characters [C] that is nearest to what it would
        do next in every domain; and that [D, B].
        """
        situations = [(d, s) for d, n in enumerate(self.world.situations_D) for s in range(n)]
        texts = [self.world.domains[d].situations[s] for d, s in situations]
        p_DB = self.run.scorer.domains(self.params, self._questions(texts, situations))
        p_N = (p_DB / p_DB.sum(1, keepdims=True)).astype(float).reshape(1, -1)
        p_CN = self.world.rates_CDB.reshape(len(self.world.characters), -1)
        return mixtures.fit(p_N, p_CN, len(p_DB), monitor.GAP).w_MC[0], p_DB

    def behaviours(self, texts, situations) -> np.ndarray:
        """How likely the model makes each behaviour, to questions asked now [Q, B]."""
        return self.run.scorer(self.params, self._questions(texts, situations))

    def _questions(self, texts, situations) -> scoring.Questions:
        """Questions asked now, after the dialogue so far, with their listed answers."""
        prompt_QT = np.full((len(texts), self.width), PAD, np.int32)
        for row, text in zip(prompt_QT, texts, strict=True):
            tokens = self.tokenizer.tokens(f"{self.text()} <user> {text} <reply>")
            row[self.width - len(tokens) :] = tokens
        d, s = np.array(situations).T
        return scoring.Questions(
            prompt_QT, self.tokenizer.answer_DAU[d], self.world.behaviour_DSA[d, s], d
        )

    def by_group(self, w_C: np.ndarray) -> list[float]:
        """Weights of the groups of characters that can be told apart."""
        return [float(w_C[group].sum()) for group in self.groups]
