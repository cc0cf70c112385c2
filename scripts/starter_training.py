"""Trains the starter model from nothing on batches of the training text."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from starter_text import Document, documents
from starter_tokenizer import ASSISTANT, BOS, CONTEXT, END

logger = logging.getLogger(__name__)

# A batch holds this many tokens, padding included; documents of like length share a batch.
BATCH_TOKENS = 3072
POOL_DOCUMENTS = 4096
PROMPT_WEIGHT = 0.15

PEAK_RATE = 3e-3
WARM_UP_STEPS = 100
CHECKPOINT_SECONDS = 300


@dataclass(frozen=True)
class Example:
    """One document as token ids, with the weight of each in the loss."""

    ids: list[int]
    weights: list[float]


def rendered(document: Document) -> str:
    """Return a document as the model reads it."""
    if isinstance(document, str):
        return f"{BOS}{document}{END}"
    return BOS + "".join(f"<|{part['role']}|>{part['content']}{END}" for part in document)


def encoded(batch: list[Document], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """Turn documents into token ids and weights: answers and prose count, prompts little."""
    texts = [rendered(document) for document in batch]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    return [
        Example(
            row, [1.0] * len(row) if isinstance(document, str) else weights(row, assistant, end)
        )
        for document, row in zip(batch, ids, strict=True)
        if len(row) <= CONTEXT
    ]


def weights(ids: list[int], assistant: int, end: int) -> list[float]:
    """Return the weight of each token of a conversation."""
    result, answering = [], False
    for token in ids:
        result.append(1.0 if answering else PROMPT_WEIGHT)
        answering = token == assistant or (answering and token != end)
    return result


def batches(
    seed: int, count: int, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield padded batches of ids and weights, like lengths together, in random order."""
    shuffle = random.Random(seed)
    pool: list[Document] = []
    for index, document in enumerate(documents(seed, count), start=1):
        pool.append(document)
        if len(pool) == POOL_DOCUMENTS or index == count:
            groups = grouped(encoded(pool, tokenizer))
            shuffle.shuffle(groups)
            yield from (padded(group, tokenizer.pad_token_id) for group in groups)
            pool = []


def grouped(examples: list[Example]) -> list[list[Example]]:
    """Sort examples by length and cut them into groups of BATCH_TOKENS."""
    groups: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda item: len(item.ids)):
        if (len(groups[-1]) + 1) * len(example.ids) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(example)
    return groups


def padded(group: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack a group into two tensors."""
    width = max(len(example.ids) for example in group)
    ids = [example.ids + [pad] * (width - len(example.ids)) for example in group]
    weight = [example.weights + [0.0] * (width - len(example.ids)) for example in group]
    return torch.tensor(ids), torch.tensor(weight)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the untrained model: every dimension a multiple of 64."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    model = LlamaForCausalLM(config)
    # The backward pass of fused attention is slow in bf16 on CPUs; texts are short anyway.
    model.set_attn_implementation("eager")
    return model


def train(
    model: LlamaForCausalLM,
    steps: Iterator[tuple[torch.Tensor, torch.Tensor]],
    total: int,
    minutes: float,
    checkpoint: Callable[[], None],
) -> None:
    """Train to the end of the text, or until the minutes are over."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    start = saved = time.monotonic()
    for step, (ids, weight) in enumerate(steps):
        elapsed = time.monotonic() - start
        share = max(step / total, elapsed / (60 * minutes))
        if share >= 1:
            break
        loss = train_step(model, optimizer, ids, weight, rate_at(step, share))
        if step % 100 == 0:
            logger.info("step %d of %d, %.0f s, loss %.3f", step, total, elapsed, loss)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            checkpoint()
            saved = time.monotonic()


def rate_at(step: int, share: float) -> float:
    """Return the learning rate: a short warm-up, then a straight line down to nothing."""
    return PEAK_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * min(1.0, (1 - share) / 0.8)


def train_step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    ids: torch.Tensor,
    weight: torch.Tensor,
    rate: float,
) -> float:
    """Take one optimizer step and return the loss before it."""
    optimizer.param_groups[0]["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    targets, weight = ids[:, 1:].flatten(), weight[:, 1:].flatten()
    losses = functional.cross_entropy(logits.float().flatten(0, 1), targets, reduction="none")
    loss = (losses * weight).sum() / weight.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())
