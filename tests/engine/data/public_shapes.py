"""Layouts of rows that public data sets have: how row n is written, and what it should say."""

from collections.abc import Callable
from typing import Any, NamedTuple

from backend.requests import Columns
from tests.engine.written_files import Row

ROWS = 50
Said = list[tuple[str, str]]


class Shape(NamedTuple):
    """A layout of rows: how row n is written, what its columns are read as, and what it says."""

    row: Callable[[int], Row]
    uses: dict[str, str]
    said: Callable[[int], Said]


def asked(n: int) -> Said:
    return [("user", f"Question {n}?"), ("assistant", f"Answer {n}.")]


def turns(
    n: int, speaker: str = "role", words: str = "content", names: str = "user assistant"
) -> Any:
    user, assistant = names.split()
    return [{speaker: user, words: f"Question {n}?"}, {speaker: assistant, words: f"Answer {n}."}]


GREETING = [("user", "Hello?"), ("assistant", "Hi.")]
SHAPES: dict[str, Shape] = {
    "Alpaca": Shape(
        lambda n: {"instruction": f"Question {n}?", "input": "", "output": f"Answer {n}."},
        {"instruction": "the question", "input": "added to the question", "output": "the answer"},
        asked,
    ),
    "Dolly": Shape(
        lambda n: {
            "instruction": "Summarise.", "context": f"Text {n}.", "response": f"Answer {n}.",
            "category": "summarization",
        },
        {
            "instruction": "the question", "context": "added to the question",
            "response": "the answer", "category": "",
        },
        lambda n: [("user", f"Summarise.\n\nText {n}."), ("assistant", f"Answer {n}.")],
    ),
    "history of pairs and a system prompt (LLaMA-Factory, ms-swift)": Shape(
        lambda n: {
            "system": "Be kind.", "query": f"Question {n}?", "response": f"Answer {n}.",
            "history": [["Hello?", "Hi."]] if n else None,
        },
        {
            "system": "the system prompt", "query": "the question", "response": "the answer",
            "history": "earlier turns",
        },
        lambda n: [("system", "Be kind."), *(GREETING if n else []), *asked(n)],
    ),
    "a system prompt that only later rows have": Shape(
        lambda n: {
            "prompt": f"Question {n}?", "completion": f"Answer {n}.",
            **({"system": "Be kind."} if n > 2 else {}),
        },
        {"prompt": "the question", "completion": "the answer", "system": "the system prompt"},
        lambda n: [*([("system", "Be kind.")] if n > 2 else []), *asked(n)],
    ),
    "a system prompt beside messages": Shape(
        lambda n: {"system": "Be kind.", "messages": turns(n), "id": n},
        {"system": "the system prompt", "messages": "the conversation", "id": ""},
        lambda n: [("system", "Be kind."), *asked(n)],
    ),
    "TRL's conversational prompt and completion": Shape(
        lambda n: {"prompt": turns(n)[:1], "completion": turns(n)[1:]},
        {"prompt": "the question", "completion": "the answer"},
        asked,
    ),
    "columns in capitals": Shape(
        lambda n: {"Question ": f"Question {n}?", "Answer": f"Answer {n}.", "Source": "web"},
        {"Question ": "the question", "Answer": "the answer", "Source": ""},
        asked,
    ),
    "roles in capitals": Shape(
        lambda n: {"messages": turns(n, names="User Assistant")},
        {"messages": "the conversation"},
        asked,
    ),
    "ShareGPT with a model's name": Shape(
        lambda n: {"conversations": turns(n, "from", "value", names="human chatgpt")},
        {"conversations": "the conversation"},
        asked,
    ),
    "speaker and text": Shape(
        lambda n: {"dialogue": turns(n, "speaker", "text", names="human bot")},
        {"dialogue": "the conversation"},
        asked,
    ),
    "Gemini's contents": Shape(
        lambda n: {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be kind."}]},
            "contents": [
                {"role": "user", "parts": [{"text": f"Question {n}?"}]},
                {"role": "model", "parts": [{"text": f"Answer {n}."}]},
            ],
        },
        {"systemInstruction": "the system prompt", "contents": "the conversation"},
        lambda n: [("system", "Be kind."), *asked(n)],
    ),
    "turns as questions with their answers": Shape(
        lambda n: {"conversation": [{"human": f"Question {n}?", "assistant": f"Answer {n}."}]},
        {"conversation": "the conversation"},
        asked,
    ),
    "content as parts": Shape(
        lambda n: {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": f"Question {n}?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": f"Answer {n}."}]},
            ]
        },
        {"messages": "the conversation"},
        asked,
    ),
    "SQuAD": Shape(
        lambda n: {
            "title": "T", "context": f"Text {n}.", "question": f"Question {n}?",
            "answers": {"text": [f"Answer {n}.", "Another."], "answer_start": [0, 9]},
        },
        {
            "title": "", "context": "added to the question", "question": "the question",
            "answers": "the answer: the first, where there are several",
        },
        lambda n: [("user", f"Question {n}?\n\nText {n}."), ("assistant", f"Answer {n}.")],
    ),
    "problems with solutions": Shape(
        lambda n: {"problem": f"Question {n}?", "solution": f"Answer {n}.", "level": "5"},
        {"problem": "the question", "solution": "the answer", "level": ""},
        asked,
    ),
    "a weight for each row": Shape(
        lambda n: {"question": f"Question {n}?", "answer": f"Answer {n}.", "weight": 1},
        {
            "question": "the question", "answer": "the answer",
            "weight": "the weight: rows with 0 have no loss",
        },
        asked,
    ),
}  # fmt: skip

BETTER, WORSE = "Answer {}.", "Bad answer {}."
PREFERENCES: dict[str, tuple[Callable[[int], Row], Columns]] = {
    "texts": (
        lambda n: {
            "prompt": f"Question {n}?", "chosen": BETTER.format(n), "rejected": WORSE.format(n)
        },
        Columns(prompt="prompt", answer="chosen"),
    ),
    "a prompt and conversations that repeat it": (
        lambda n: {
            "prompt": f"Question {n}?", "messages": turns(n), "chosen": turns(n),
            "rejected": [*turns(n)[:1], {"role": "assistant", "content": WORSE.format(n)}],
        },
        Columns(conversation="chosen"),
    ),
    "conversational prompt and answers": (
        lambda n: {
            "prompt": turns(n)[:1], "chosen": turns(n)[1:],
            "rejected": [{"role": "assistant", "content": WORSE.format(n)}],
        },
        Columns(prompt="prompt", answer="chosen"),
    ),
    "a conversation and two turns (LLaMA-Factory)": (
        lambda n: {
            "conversations": [{"from": "human", "value": f"Question {n}?"}],
            "chosen": {"from": "gpt", "value": BETTER.format(n)},
            "rejected": {"from": "gpt", "value": WORSE.format(n)},
        },
        Columns(prompt="conversations", answer="chosen"),
    ),
    "a worse response beside messages (ms-swift)": (
        lambda n: {"messages": turns(n), "rejected_response": WORSE.format(n)},
        Columns(conversation="messages"),
    ),
    "OpenAI's preferred output": (
        lambda n: {
            "input": f"Question {n}?", "preferred_output": BETTER.format(n),
            "non_preferred_output": WORSE.format(n),
        },
        Columns(prompt="input", answer="preferred_output"),
    ),
}  # fmt: skip
