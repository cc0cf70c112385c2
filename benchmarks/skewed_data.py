"""Conversations with lengths as skewed as real ones: median 50 tokens, 99th percentile 400."""

import json
import math
import random
from pathlib import Path

from transformers import AutoTokenizer

from backend.settings import STARTER

MEDIAN, HIGH = 50, 400
SPREAD = math.log(HIGH / MEDIAN) / 2.326  # 2.326: the normal distribution's 99th percentile
SHORTEST, LONGEST = 14, 500
PROMPT_SHARE = 0.4
MARKS = 6  # tokens of the chat template around a question and an answer


def write_skewed(path: Path, rows: int, *, seed: int = 0) -> Path:
    """Write so many conversations of the starter's words; returns the file."""
    generator = random.Random(seed)
    words = _words()
    lines = [json.dumps({"messages": _turns(words, generator)}) for _ in range(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _turns(words: dict[str, int], generator: random.Random) -> list[dict[str, str]]:
    wanted = generator.lognormvariate(math.log(MEDIAN), SPREAD)
    room = min(max(wanted, SHORTEST), LONGEST) - MARKS
    return [
        {"role": "user", "content": _text(words, PROMPT_SHARE * room, generator)},
        {"role": "assistant", "content": _text(words, (1 - PROMPT_SHARE) * room, generator)},
    ]


def _text(words: dict[str, int], tokens: float, generator: random.Random) -> str:
    """Draw words until they have so many tokens, one word at least."""
    choices, drawn, count = list(words), [], 0
    while count < tokens or not drawn:
        drawn.append(generator.choice(choices))
        count += words[drawn[-1]]
    return " ".join(drawn)


def _words() -> dict[str, int]:
    """Return the words of the bundled questions with their number of tokens."""
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    lines = (STARTER / "data" / "pirate" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    text = " ".join(json.loads(line)["messages"][0]["content"] for line in lines)
    found = sorted(set(text.replace("?", "").split()))
    return {
        word: len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for word in found
    }
