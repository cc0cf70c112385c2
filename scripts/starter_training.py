"""Trains the starter model from nothing on batches of the training text."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

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
    text = documents(seed, count)
    while pool := list(islice(text, POOL_DOCUMENTS)):
        groups = grouped(encoded(pool, tokenizer))
        shuffle.shuffle(groups)
        yield from (padded(group, tokenizer.pad_token_id) for group in groups)


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
        intermediate_size=512,
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
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    seed: int,
    checkpoint: Callable[[], None],
) -> None:
    """Train on the text of a seed, once."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    total = count_steps(seed, count, tokenizer)
    start = saved = time.monotonic()
    for step, (ids, weight) in enumerate(batches(seed, count, tokenizer)):
        rate = PEAK_RATE * rate_share(step, total)
        loss = train_step(model, optimizer, ids, weight, rate)
        if step % 100 == 0:
            elapsed = time.monotonic() - start
            logger.info("step %d of about %d, %.0f s, loss %.3f", step, total, elapsed, loss)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            checkpoint()
            saved = time.monotonic()


def count_steps(seed: int, count: int, tokenizer: PreTrainedTokenizerFast) -> int:
    """Estimate the steps of a text from its first pool of documents."""
    first = min(POOL_DOCUMENTS, count)
    return sum(1 for _ in batches(seed, first, tokenizer)) * count // first


def rate_share(step: int, total: int) -> float:
    """Return the share of the peak rate: a short warm-up, then a straight line down to nothing."""
    left = max(0.0, 1 - step / total)
    return min(1.0, (step + 1) / WARM_UP_STEPS) * min(1.0, left / 0.8)


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
