"""What the names of columns mean in public data sets: questions, answers, system prompts.

Names are compared without regard to letter case, blanks and hyphens. Knows nothing of values.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

CONVERSATION = (
    "messages", "conversations", "conversation", "contents", "dialogue", "dialog", "chat", "turns"
)  # fmt: skip
PAIRS = (
    ("prompt", "completion"), ("instruction", "output"), ("question", "answer"),
    ("problem", "solution"), ("query", "response"), ("inputs", "targets"),
    ("input_text", "output_text"), ("q", "a"), ("human", "bot"), ("user", "bot"),
    ("article", "highlights"), ("document", "summary"), ("dialogue", "summary"),
    ("frage", "antwort"), ("question", "réponse"), ("question", "reponse"),
    ("pregunta", "respuesta"), ("domanda", "risposta"), ("pergunta", "resposta"),
    ("вопрос", "ответ"), ("问题", "回答"), ("问题", "答案"), ("指令", "输出"), ("質問", "回答"),
)  # fmt: skip
"""Pairs that belong together, before any other pair of a question and an answer."""
QUESTION = ("prompt", "instruction", "question", "query", "problem", "user", "human", "input")
ANSWER = (
    "completion", "output", "response", "answer", "answers", "assistant", "solution", "target"
)  # fmt: skip
TEXT = "text"
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
HISTORY = ("history",)
EXTRA = (
    "input", "context", "contexts", "document", "documents", "passage", "passages", "paragraph",
    "article", "background", "options", "choices",
)  # fmt: skip
"""Texts that belong to a question and follow it: Alpaca's input and Dolly's context."""
CHOICES = ("options", "choices")
LEAD = ("instruction", "task", "definition")
"""Texts that stand before a question that has a column of its own."""
LABELS = (
    "label_text", "label", "labels", "summary", "code", "translation", "sentiment", "category",
    "class", "intent", "emotion", "stars", "rating", "entities", "coarse_label", "fine_label",
)  # fmt: skip
"""What a text may be labelled with, so that it is hardly meant to be learned alone."""
SPEAKER = ("role", "speaker", "sender", "author", "from")
IN_A_THREAD = (
    "conversation_id", "dialogue_id", "dialog_id", "thread_id", "parent_id", "message_id", "turn_id"
)  # fmt: skip
TOOLS = ("tools",)
THOUGHTS = (
    "reasoning_content", "reasoning", "thinking", "thought", "cot", "complex_cot",
    "chain_of_thought",
)  # fmt: skip
WEIGHTS = ("weight", "loss_weight", "train", "loss")
MEDIA = (
    "images", "image", "videos", "video", "audios", "audio", "image_path", "image_url",
    "image_file", "img", "picture", "pictures", "photo", "photos", "audio_path", "video_path",
    "speech", "pixel_values",
)  # fmt: skip
RATED = (
    "label", "labels", "kto_tag", "is_safe", "is_correct", "correct", "accepted", "is_good",
    "thumbs_up", "feedback", "rating",
)  # fmt: skip
RATED_BAD = ("toxic", "is_toxic", "harmful", "is_harmful", "unsafe", "is_unsafe")
"""Ratings that are true for bad answers."""
CORRECTED = (
    "corrected_response", "corrected_output", "corrected_answer", "corrected", "revised_response",
    "revision", "improved_response",
)  # fmt: skip
"""A better answer beside the one that a model first gave."""
CHOSEN = ("chosen", "chosen_response", "preferred_output", "preferred")

NOTHING: tuple[Any, ...] = (None, "", [], {})
"""The values of a column that has nothing in a row."""


class Beside(NamedTuple):
    """The columns of a row, as they are spelt there, that may stand beside its texts."""

    system: tuple[str, ...]
    history: tuple[str, ...]
    extra: tuple[str, ...]
    lead: tuple[str, ...]
    tools: tuple[str, ...]
    thoughts: tuple[str, ...]
    weights: tuple[str, ...]
    media: tuple[str, ...]
    rated: tuple[str, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]


@lru_cache(maxsize=10_000)
def normal(name: str) -> str:
    """Return a name as it is compared."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def spelt(columns: Iterable[str]) -> dict[str, str]:
    """Return the columns' own names by their normal ones; an exact spelling comes first."""
    found: dict[str, str] = {}
    for name in columns:
        plain = normal(name)
        if plain not in found or name == plain:
            found[plain] = name
    return found


@lru_cache(maxsize=1_000)
def beside(columns: tuple[str, ...]) -> Beside:
    """Find the columns of a row that may stand beside its texts; the rows of a table are alike."""
    own = spelt(columns)

    def those(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(own[name] for name in names if name in own)

    return Beside(
        system=those(SYSTEM),
        history=those(HISTORY),
        extra=those(EXTRA),
        lead=those(LEAD),
        tools=those(TOOLS),
        thoughts=those(THOUGHTS),
        weights=those(WEIGHTS),
        media=those(MEDIA),
        rated=those((*RATED, *RATED_BAD)),
        chosen=those(CHOSEN),
        rejected=tuple(name for name in columns if is_rejected(name)),
    )


def is_rejected(name: str) -> bool:
    """Tell whether a column holds the worse answer of a preference pair."""
    plain = normal(name)
    return any(word in plain for word in ("rejected", "dispreferred", "non_preferred"))
