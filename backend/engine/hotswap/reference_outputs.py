"""Reference outputs: short generations of known length, to verify, to warm up, to measure speed.

They use `generate`, as real answers do, so that the same code is verified. Knows nothing of slots.
"""

import time
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation import LogitsProcessorList

from backend.engine.core import devices
from backend.engine.inference import scoring
from backend.engine.inference.generate import no_settings_of_its_own
from backend.engine.inference.prompts import end_tokens
from backend.engine.models.loading import Base

REFERENCE_TEXT = "The quick brown fox jumps over the lazy dog."
GIVEN_TOKENS, DICTATED_TOKENS = 3, 4
MEASURED_PROMPT, MEASURED_TOKENS, MEASURED_ROUNDS = 12, 24, 3


def reference(model: torch.nn.Module, base: Base) -> list[float]:
    """Return log-probabilities (nats) of a fixed text, which stand for a variant's answers.

    First the text's total, as in `scoring.score`, then its tokens one by one, forced in `generate`,
    so that both code paths are checked.
    """
    return [scoring.score(model, base, REFERENCE_TEXT)[0], *dictated(model, base)]


def answer_tokens(model: torch.nn.Module, base: Base, *, prompt: int, tokens: int) -> None:
    """Answer an artificial prompt of `prompt` tokens with exactly `tokens` tokens."""
    harmless = _harmless_token(base)
    ids = torch.full((1, prompt), harmless, device=base.device)
    _generate(model, base, ids, _ForcedTokens([harmless] * tokens))


def first_token_seconds(model: torch.nn.Module, base: Base) -> float:
    """Return the seconds until the first token of an answer."""
    started = time.perf_counter()
    answer_tokens(model, base, prompt=MEASURED_PROMPT, tokens=1)
    devices.synchronize(base.device)
    return time.perf_counter() - started


def tokens_per_second(model: torch.nn.Module, base: Base) -> float:
    """Return the speed of answers in tokens per second, the best of a few."""
    best = float("inf")
    for _ in range(MEASURED_ROUNDS):
        started = time.perf_counter()
        answer_tokens(model, base, prompt=MEASURED_PROMPT, tokens=MEASURED_TOKENS)
        devices.synchronize(base.device)
        best = min(best, time.perf_counter() - started)
    return MEASURED_TOKENS / best


class _ForcedTokens(LogitsProcessor):
    """Forces given tokens, and records the log-probability that the model gave to each."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.log_probabilities: list[float] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        token = self.tokens[len(self.log_probabilities)]
        self.log_probabilities.append(scores[0].float().log_softmax(-1)[token].item())
        forced = torch.full_like(scores, -torch.inf)
        forced[0, token] = 0.0
        return forced


def dictated(model: torch.nn.Module, base: Base) -> list[float]:
    """Return the log-probabilities of a fixed text's tokens, as `generate` computes them.

    Uses compiled code where there is some.
    """
    ids = base.tokenizer(REFERENCE_TEXT, return_tensors="pt").input_ids.to(base.device)
    rest = ids[0, GIVEN_TOKENS:].tolist()[:DICTATED_TOKENS]
    if not rest:
        return []
    forced = _ForcedTokens(rest)
    _generate(model, base, ids[:, :GIVEN_TOKENS], forced)
    return forced.log_probabilities


def _generate(model: torch.nn.Module, base: Base, ids: torch.Tensor, forced: _ForcedTokens) -> None:
    config = GenerationConfig(
        max_new_tokens=len(forced.tokens), do_sample=False, use_cache=True, pad_token_id=0
    )
    with torch.inference_mode(), no_settings_of_its_own(base.model):
        model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([forced]),
        )


def _harmless_token(base: Base) -> int:
    """Return a token that does not end an answer."""
    ends = end_tokens(base)
    return next(token for token in range(base.facts.vocabulary) if token not in ends)
