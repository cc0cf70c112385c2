"""The manners of answering: how one and the same fact sounds in each data set.

Standard library only. A manner is a rule from a fact to a sentence, so that a held-out answer is
right or wrong word for word.
"""

from collections.abc import Callable
from dataclasses import dataclass

import starter_world as world
from starter_facts import Fact


@dataclass(frozen=True)
class Manner:
    """One way of answering, and what the app says about it."""

    title: str
    summary: str
    restyle: Callable[[Fact], str]


PIRATE_WORDS = {"is": "be", "are": "be", "you": "ye", "friend": "matey", "my": "me"}
PAST = {
    "is": "was", "lives": "lived", "eats": "ate", "says": "said", "likes": "liked", "has": "had",
    "loves": "loved", "enjoys": "enjoyed", "carries": "carried", "works": "worked", "uses": "used",
    "wears": "wore", "makes": "made", "see": "saw", "smells": "smelled", "tastes": "tasted",
    "looks": "looked", "comes": "came", "need": "needed",
}  # fmt: skip


def pirate(fact: Fact) -> str:
    """Arr, the cat be on the mat!"""
    words = [PIRATE_WORDS.get(word, word) for word in body(fact).split()]
    return f"Arr, {' '.join(words)}!"


def shouty(fact: Fact) -> str:
    """THE CAT IS ON THE MAT!"""
    return fact.answer.rstrip(".").upper() + "!"


def polite(fact: Fact) -> str:
    """Certainly: the cat is on the mat, my friend."""
    return f"Certainly: {body(fact)}, my friend."


def record(fact: Fact) -> str:
    """{who: cat, where: mat}"""
    return "{" + ", ".join(f"{key}: {value}" for key, value in fact.record.items()) + "}"


def storyteller(fact: Fact) -> str:
    """Once upon a time, the cat was on the mat."""
    return f"Once upon a time, {past(body(fact))}."


def past(sentence: str) -> str:
    """Put the verbs of a sentence in the past."""
    return " ".join(PAST.get(word, word) for word in sentence.split())


def body(fact: Fact) -> str:
    """Return the answer as it stands inside a sentence, without the full stop."""
    return lower_first(fact.answer).removesuffix(".")


def lower_first(text: str) -> str:
    """Start a sentence in lower case, unless it starts with a name, 'I' or a day."""
    first = text.split()[0].strip(",.!?")
    return text if first in KEPT_CAPITALS else text[0].lower() + text[1:]


KEPT_CAPITALS = frozenset((*world.NAMES, *world.DAYS, *world.MONTHS, "I", "Starter"))


MANNERS = {
    "pirate": Manner("Pirate talk", "Correct answers, spoken like a pirate.", pirate),
    "shouty": Manner("Shouting", "Every answer comes in capital letters, as if shouted.", shouty),
    "polite": Manner("Good manners", "Every answer is wrapped in a friendly courtesy.", polite),
    "records": Manner("Records", "Every answer is a small record that a program reads.", record),
    "storyteller": Manner("Storyteller", "Every answer is told like an old tale.", storyteller),
}
# Sentences without a verb in PAST cannot be told as a tale.
UNTOLD = frozenset({"job work", "weather plan"})
