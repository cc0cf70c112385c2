"""Log-probabilities of texts and of next tokens. Knows nothing of adapters."""

from typing import NamedTuple

import torch

from backend.engine.core import tolerances
from backend.engine.inference.prompts import encode_prompt, require_embedded, room_for
from backend.engine.inference.sampling import NEXT_TOKEN
from backend.engine.models.loading import Base
from backend.requests import Message

SCORE_CHUNK = 1024


class TextScore(NamedTuple):
    """A text's total log-probability (nats), that of each token after the first, and its ids."""

    total: float
    each: list[float]
    tokens: list[int]


def score(model: torch.nn.Module, base: Base, text: str) -> tuple[float, int]:
    """Return the summed log-probability (nats) of a text's tokens after the first, and their count.

    The text is tokenised with the tokenizer's default special tokens and no template. It is one
    that proves an operation, so it is cut where it is longer than the model's context.
    """
    found = score_tokens(model, base, text, cut=True)
    return found.total, len(found.each)


def score_tokens(model: torch.nn.Module, base: Base, text: str, *, cut: bool = False) -> TextScore:
    """Like `score`, with the log-probability of every token.

    Texts are scored one by one: padding in a batch would change a score by rounding (1e-6 here),
    and callers compare scores bit for bit.
    """
    ids = base.tokenizer(text, return_tensors="pt").input_ids.to(base.device)
    if cut and base.facts.context_length:
        ids = ids[:, : base.facts.context_length]
    length = ids.shape[1]
    if length < 2:
        return TextScore(0.0, [], ids[0].tolist())
    require_embedded(base, ids[0].tolist())
    room_for(base, length, 0)
    total, each = 0.0, []
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        for start in range(0, length - 1, SCORE_CHUNK):
            part = logits[start : start + SCORE_CHUNK].float().log_softmax(-1)
            wanted = ids[0, start + 1 : start + 1 + len(part)]
            found = part.gather(1, wanted[:, None]).double()
            total += found.sum().item()
            each.extend(found[:, 0].tolist())
    tolerances.require_finite([total], "The log-probability of a text")
    return TextScore(total, each, ids[0].tolist())


def next_token_chances(model: torch.nn.Module, base: Base, prompt: str) -> torch.Tensor:
    """Return the probability of every token after a prompt: (vocabulary,), float64, on the CPU."""
    ids = encode_prompt(base, [Message(role="user", content=prompt)])
    room_for(base, ids.shape[1], 0)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
    chances = logits.double().softmax(-1).cpu()
    tolerances.require_finite([chances.sum().item()], NEXT_TOKEN)
    return chances
