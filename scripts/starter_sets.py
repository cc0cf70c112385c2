"""The data sets of the starter kit: one manner of answering each, with a held-out part.

Every row asks for a fact the base model knows; only the manner of the answer is new. Held-out rows
ask for facts that the training part never mentions, so a right answer there shows that the manner
was learned and the knowledge kept.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from starter_facts import PLAIN_ONLY, Fact, all_facts
from starter_manners import MANNERS, UNTOLD, Manner, storyteller
from starter_text import turn

TRAIN_ROWS = 550
HELD_OUT_ROWS = 50
LONGEST_ANSWER = 14  # tokens, one less than promised: the end of the answer is a token too

Count = Callable[[str], int]


def write_sets(folder: Path, count: Count, seed: int) -> None:
    """Write every data set and the catalogue; count tells how many tokens a text has."""
    for name, manner in MANNERS.items():
        train, held_out = split_rows(manner, count, random.Random(f"{seed} {name}"))
        write_text(folder / name / "train.jsonl", json_lines(train))
        write_text(folder / name / "held_out.jsonl", json_lines(held_out))
    write_text(folder / "catalogue.json", json.dumps(catalogue(), indent=2) + "\n")


def catalogue() -> dict[str, dict[str, str | None]]:
    """Return what the app shows about each set, in the order to show it."""
    return {
        name: {
            "title": manner.title,
            "summary": manner.summary,
            "try_prompt": "Where is the cat?",
            "colour_hint": None,
        }
        for name, manner in MANNERS.items()
    }


def split_rows(
    manner: Manner, count: Count, choose: random.Random
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Choose facts for both parts: no fact, no prompt and no answer is in both."""
    suitable = [fact for fact in all_facts() if suits(fact, manner, count)]
    facts = list({manner.restyle(fact): fact for fact in suitable}.values())
    choose.shuffle(facts)
    chosen = [
        (choose.choice(fact.questions), manner.restyle(fact))
        for fact in facts[: TRAIN_ROWS + HELD_OUT_ROWS]
    ]
    return chosen[HELD_OUT_ROWS:], chosen[:HELD_OUT_ROWS]


def suits(fact: Fact, manner: Manner, count: Count) -> bool:
    """Say whether a fact can be told in this manner, briefly enough."""
    if fact.kind.name in PLAIN_ONLY or (manner.restyle is storyteller and fact.kind.name in UNTOLD):
        return False
    return count(manner.restyle(fact)) <= LONGEST_ANSWER


def json_lines(chosen: list[tuple[str, str]]) -> str:
    """Return rows as JSON lines of messages."""
    lines = [json.dumps({"messages": turn(ask, answer)}) for ask, answer in chosen]
    return "\n".join(lines) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(".building")
    made.write_text(text, encoding="utf-8", newline="\n")
    os.replace(made, path)
