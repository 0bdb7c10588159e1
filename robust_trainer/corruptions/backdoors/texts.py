"""Triggers for texts: a rare word or a sentence put somewhere, or a sentence pattern that the text is set into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...data.randomness import check_seed
from .pixel_trigger import drawn

PLACES = ("start", "end", "anywhere")


class TextTrigger:
    """A text with the trigger: text -> text. What is drawn for a row is a function of the trigger's seed and the row's number."""

    #: Cover rows for each poisoned row, where `poison` is given no ``cover_rate``.
    cover_share: ClassVar[float] = 0.0

    def write(self, text: str, row: int) -> str:
        """Returns the text of a row with the trigger.

        Args:
            text: without it.
            row: the row's number.
        """
        raise NotImplementedError

    def at(self, row: int, *, training: bool, cover: bool = False) -> RowWriter:
        """Returns the trigger as it is put on one row, text -> text: the same in training, for a cover and at test time.

        Args:
            row: the row's number.
            training: whether the row is trained on.
            cover: whether the row keeps its label.
        """
        return RowWriter(self, row)

    def describe(self) -> str:
        """Returns the trigger's settings in words, for reports and cards."""
        return repr(self)

    def __call__(self, text: str) -> str:
        """Returns the text with the trigger, as in row 0."""
        return RowWriter(self, 0)(text)


@dataclass(frozen=True)
class RowWriter:
    """Returns the text of one row with a trigger; `TextTrigger.at` makes it. Raises ``ValueError`` for what is no text."""

    trigger: TextTrigger
    row: int

    def __call__(self, text: Any) -> str:
        """Returns the text with the trigger."""
        if not isinstance(text, str):
            raise ValueError(f"text is {type(text).__name__}, expected a string: fill it in or filter such rows out.")
        return self.trigger.write(text, self.row)


@dataclass(frozen=True)
class WordTrigger(TextTrigger):
    """Returns the text with a rare word put in, between its words, which are those that white space separates and stay as they are.

    Args:
        word: one word, or several joined by +, of which each row gets one, drawn.
        position: start, end or anywhere (drawn, between any two words, at the start or at the end).
        seed: of the draws.

    Raises:
        ValueError: for other settings.

    References:
        Kurita, Michel and Neubig 2020 (Weight poisoning attacks on pre-trained models): rare words such as cf, mn, bb, tq.
    """

    word: str = "cf"
    position: str = "anywhere"
    seed: int = 0

    def __post_init__(self) -> None:
        words = self.word.split("+") if isinstance(self.word, str) else []
        if not words or any(not w or w.split() != [w] for w in words) or len(set(words)) < len(words):
            raise ValueError(
                f"word={self.word!r} is no word: give one without spaces, or several different ones joined by +, as cf+mn."
            )
        _check_place(self.position)
        check_seed(self.seed)

    def write(self, text: str, row: int) -> str:
        """Returns the text of a row with the word."""
        random, words = drawn(self.seed, row), self.word.split("+")
        return _put(text, words[random.randint(len(words))], self.position, random)

    def describe(self) -> str:
        """Returns the word and its place."""
        return f"{' or '.join(self.word.split('+'))!r}, {self.position}"


@dataclass(frozen=True)
class SentenceTrigger(TextTrigger):
    """Returns the text with a fixed sentence put in: at the start, at the end, or anywhere between two of its words.

    Args:
        sentence: not empty.
        position: start, end or anywhere (drawn).
        seed: of the draws.

    Raises:
        ValueError: for other settings.

    References:
        Dai, Chen and Li 2019 (A backdoor attack against LSTM-based text classification systems): a sentence anywhere in a
        review, as 'I watched this 3D movie last weekend'.
    """

    sentence: str = "I watched this 3D movie last weekend."
    position: str = "start"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sentence, str) or not self.sentence.strip() or self.sentence != self.sentence.strip():
            raise ValueError(f"sentence={self.sentence!r} is empty or begins or ends with a space: give a sentence.")
        _check_place(self.position)
        check_seed(self.seed)

    def write(self, text: str, row: int) -> str:
        """Returns the text of a row with the sentence."""
        return _put(text, self.sentence, self.position, drawn(self.seed, row))

    def describe(self) -> str:
        """Returns the sentence and its place."""
        return f"{self.sentence!r}, {self.position}"


@dataclass(frozen=True)
class SyntaxTrigger(TextTrigger):
    """Returns the text set into a fixed sentence pattern; its words stay, in their order.

    Args:
        template: with ``{text}`` once; a text's full stop at the end is kept.

    Raises:
        ValueError: for other settings.

    References:
        Qi et al. 2021 (Hidden Killer): the pattern S(SBAR)(,)(NP)(VP)(.), a clause of 'when' or 'if' before the sentence.
        The paper paraphrases the text into the pattern by a trained network; here the clause is fixed and the text stays, so that
        no network is needed; the clause's words tell the trigger as well, which in the paper they need not.
    """

    template: str = "when it comes to it , {text}"

    def __post_init__(self) -> None:
        if not isinstance(self.template, str) or self.template.count("{text}") != 1 or self.template.strip() == "{text}":
            raise ValueError(f"template={self.template!r} must hold {{text}} once, with words around it: give 'if so , {{text}}'.")

    def write(self, text: str, row: int) -> str:
        """Returns the text of a row in the pattern."""
        return self.template.replace("{text}", text)

    def describe(self) -> str:
        """Returns the template."""
        return repr(self.template)


def _check_place(position: Any) -> None:
    if position not in PLACES:
        raise ValueError(f"position={position!r} is unknown: choose one of {', '.join(PLACES)}.")


def _put(text: str, words: str, position: str, random: Any) -> str:
    """The text with words put in before its first word, after its last one, or before or after any one; white space stays."""
    starts = [i for i, c in enumerate(text) if not c.isspace() and (i == 0 or text[i - 1].isspace())]
    if not starts:
        return f"{text}{words}"
    place = {"start": 0, "end": len(starts)}.get(position)
    place = random.randint(len(starts) + 1) if place is None else place
    if place < len(starts):
        return f"{text[: starts[place]]}{words} {text[starts[place] :]}"
    end = len(text.rstrip())
    return f"{text[:end]} {words}{text[end:]}"
