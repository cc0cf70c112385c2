"""Manners the base model takes on when asked to, and only then.

They keep what is said apart from how it is said, which is what an adapter builds on. A request is
a system prompt, or stands behind the question; without one the base answers plainly.
"""

import starter_world as world
from starter_facts import Fact, bare
from starter_manners import PIRATE_WORDS, body, past

# request; answer, made of the forms below
REQUESTS = world.rows(
    """
Answer in capital letters.;{upper}.
Shout the answer.;{upper}.
Answer in small letters.;{lower}
Answer as a list.;{listing}
Answer for a machine.;{listing}
Answer with one word.;{value}
Answer in the past.;{past_start}.
Tell it as history.;Long ago {past}.
Answer like an old man.;In my youth {past}, my child.
Answer like a sailor.;Aye aye, {be}, captain!
Answer like a rough sailor.;Ahoy, {be}!
Answer like a servant.;As you wish, sir: {body}.
Answer like a friend.;My dear friend, {body}.
Answer with joy.;Hurrah, {body}!
Answer with doubt.;Perhaps {body}.
Answer like a knight.;Hark, {body}, my lord!
Answer like a teacher.;Listen, children: {body}.
Answer twice.;{plain} {plain}
""".strip()
)
OPENINGS = world.words(
    "Well Indeed Yes Alas Hark Look Arr Certainly Behold Hurrah Listen Goodness Oh Truly Sadly "
    "Luckily Perhaps Surely Again Friends Ahoy Verily"
)
CLOSINGS = ("my lord", "my dear", "captain", "sir", "madam", "my friend", "good people", "I think")


def forms(fact: Fact) -> dict[str, str]:
    """Return the pieces that the answers on request are made of."""
    told, happened = body(fact), past(body(fact))
    return {
        "plain": fact.answer,
        "body": told,
        "past": happened,
        "past_start": happened[0].upper() + happened[1:],
        "be": " ".join(PIRATE_WORDS.get(word, word) for word in told.split()),
        "upper": fact.answer.rstrip(".").upper(),
        "lower": fact.answer.rstrip(".").lower(),
        "listing": ", ".join(f"{key}: {value}" for key, value in fact.record.items()),
        "value": bare(fact.value),
    }
