"""Two short passes through a loaded base: does it run at all, and does it continue text?

Transformers lists types such as BERT and XLM as causal language models, which they are only with
certain settings. Without them each word sees the words after it: training would fall to a loss of
nearly zero, and answers would mean nothing.
"""

import torch
from transformers.modeling_utils import PreTrainedModel

from backend.errors import ModelError, Unsupported

TOKENS = 5
CHANGED = 1e-2
"""How much earlier scores may change with a later token, relative to the largest: rounding only."""


def require_continues_text(
    model: PreTrainedModel, vocabulary: int, name: str, *, quantized: bool = False
) -> None:
    """Raise where a short text cannot be computed, or where its scores depend on later tokens.

    `vocabulary` is the number of known tokens. Raises ModelError or Unsupported.
    """
    middle = vocabulary // 2  # special tokens, such as padding, are at the ends
    first = (torch.arange(TOKENS)[None] + middle) % max(vocabulary, 1)
    other = torch.where(torch.arange(TOKENS) < TOKENS - 1, first, middle)
    try:
        with torch.inference_mode():
            before, after = (
                model(input_ids=each.to(model.device)).logits[0, :-1].float()
                for each in (first, other)
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise ModelError(
            f"{name} cannot compute a short text{' when it is quantised' if quantized else ''}: "
            f"{reason.rstrip('.')}.",
            cure=(
                "Load it without quantisation."
                if quantized
                else "It cannot be used here. Choose another base."
            ),
            details=f"{type(error).__name__}: {error}",
        ) from error
    if bool((before - after).abs().amax() > CHANGED * before.abs().amax()):
        raise Unsupported(
            f"{name} reads text in both directions, so it cannot continue text.",
            cure="Choose a causal language model, such as Llama, Qwen or Gemma.",
        )
