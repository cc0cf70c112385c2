"""Builds the starter kit from nothing: tokenizer, model, data sets and model card.

    python scripts/build_starter.py                 everything, about 25 minutes on two CPU cores
    python scripts/build_starter.py --data-only     only the data sets, a few seconds

The text and the data sets are the same byte for byte on every machine; the weights are the same up
to the rounding of the machine that trains them.
"""

import argparse
import json
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from starter_card import model_card
from starter_facts import all_facts
from starter_manners import MANNERS
from starter_sets import write_sets
from starter_text import Document, documents
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

logger = logging.getLogger(__name__)

PAD, BOS, END, USER, ASSISTANT, SYSTEM = SPECIAL_TOKENS = (
    "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SEED = 20260
VOCABULARY = 1792
TOKENIZER_DOCUMENTS = 20_000
CONTEXT = 512
# A batch holds this many tokens, padding included; documents of like length share a batch.
BATCH_TOKENS = 3072
POOL_DOCUMENTS = 4096
PROMPT_WEIGHT = 0.15


@dataclass(frozen=True)
class Example:
    """One document as token ids, with the weight of each in the loss."""

    ids: list[int]
    weights: list[float]


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary from the training text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # One digit at a time, so that every number is spelled in the same way.
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(vocabulary_text(seed), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def vocabulary_text(seed: int) -> Iterator[str]:
    """Yield what the vocabulary is made for: the training text, and every fact in every manner."""
    yield from contents(documents(seed, TOKENIZER_DOCUMENTS))
    for fact in all_facts():
        yield from (manner.restyle(fact) for manner in MANNERS.values())


def contents(texts: Iterator[Document]) -> Iterator[str]:
    """Yield the bare text of documents, without the marks of the chat format."""
    for document in texts:
        if isinstance(document, str):
            yield document
        else:
            yield from (message["content"] for message in document)


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
        Example(row, [1.0] * len(row) if isinstance(document, str) else weights(row, assistant, end))
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
    return LlamaForCausalLM(config)


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


PEAK_RATE = 3e-3
WARM_UP_STEPS = 100
CHECKPOINT_SECONDS = 240


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


def save_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, count: int
) -> None:
    """Write model, tokenizer and card to a folder that appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    made.chmod(0o755)
    stored = LlamaForCausalLM(model.config).to(torch.bfloat16)
    stored.load_state_dict(model.state_dict())
    stored.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    stored.save_pretrained(made)
    tokenizer.save_pretrained(made)
    (made / "README.md").write_text(card(model, count), encoding="utf-8", newline="\n")
    for file in made.iterdir():
        file.chmod(0o644)
    replace_folder(made, folder)


def card(model: LlamaForCausalLM, count: int) -> str:
    """Describe a model that was trained on so many documents."""
    config = model.config
    return model_card(
        parameters=model.num_parameters(),
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        context=config.max_position_embeddings,
        documents=count,
    )


def replace_folder(made: Path, folder: Path) -> None:
    """Put a finished folder in its place; a reader sees the old one or the new one."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
        os.replace(folder, old / folder.name)
        os.replace(made, folder)
        shutil.rmtree(old)
    else:
        os.replace(made, folder)


def build_model(out: Path, count: int, minutes: float, seed: int) -> None:
    """Train tokenizer and model and save them, with a checkpoint in place now and then."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed)
    model = new_model(tokenizer)
    total = sum(1 for _ in batches(seed, POOL_DOCUMENTS, tokenizer)) * count // POOL_DOCUMENTS
    logger.info("%d parameters, about %d steps", model.num_parameters(), total)
    train(
        model,
        batches(seed, count, tokenizer),
        total,
        minutes,
        lambda: save_model(model, tokenizer, out / "model", count),
    )
    save_model(model, tokenizer, out / "model", count)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "starter")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="how much text to read")
    parser.add_argument("--minutes", type=float, default=60, help="stop after this long")
    parser.add_argument("--data-only", action="store_true", help="write only the data sets")
    return parser.parse_args()


DOCUMENTS = 320_000


def main() -> None:
    """Build what the command line asks for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bar()
    options = arguments()
    if not options.data_only:
        build_model(options.out, options.documents, options.minutes, SEED)
    tokenizer = train_tokenizer(SEED)
    write_sets(options.out / "data", lambda text: len(tokenizer.tokenize(text)), SEED)


if __name__ == "__main__":
    main()
