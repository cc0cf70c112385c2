"""From documents to token ids, with a mask of the tokens that are learned.

In conversations the assistant's turns are learned, each up to and with its end mark. Where they lie
is found by rendering the conversation turn by turn and comparing, which needs no marks in the chat
template and is checked for each example. In plain text everything is learned.
"""

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.engine.data import DataSet, Document
from backend.engine.generate import plain_prompt
from backend.errors import DataError
from backend.results import DataStats

Span = tuple[int, int]
BATCH = 256


@dataclass
class Tokens:
    """One tokenised document. `learned[i]` says whether token i is learned."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    cut: bool = False

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Corpus:
    """A data set as the model sees it."""

    train: list[Tokens]
    held_out: list[Tokens]
    stats: DataStats


def tokenise(data: DataSet, tokenizer: Any, *, max_length: int) -> Corpus:
    """Tokenise a data set; raises DataError where nothing is left to learn."""
    data.require_good()
    train, dropped = _usable(encode(data.train, tokenizer, max_length))
    held_out, dropped_held_out = _usable(encode(data.held_out, tokenizer, max_length))
    if not train:
        raise DataError(
            f"None of the {data.rows} examples has anything to learn: the answers are empty "
            f"or lie beyond the first {max_length} tokens.",
            cure="Give the examples answers, or raise the longest example.",
        )
    lengths = [len(t) for t in train]
    everything = [*train, *held_out]
    stats = DataStats(
        shape=data.shape,
        shape_reason=data.shape_reason,
        rows=data.rows,
        examples=len(train),
        held_out=len(held_out),
        tokens=sum(lengths),
        learned_tokens=int(sum(t.learned.sum() for t in train)),
        longest=max(len(t) for t in everything),
        median=int(statistics.median(lengths)),
        cut=sum(t.cut for t in everything),
        dropped=dropped + dropped_held_out,
    )
    return Corpus(train, held_out, stats)


def encode(documents: list[Document], tokenizer: Any, max_length: int) -> list[Tokens]:
    """Tokenise documents, in order, cut to `max_length` tokens from the start."""
    encoded: list[Tokens] = []
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        rendered = [_render(document, tokenizer) for document in batch]
        output = tokenizer(
            [text for text, _ in rendered],
            add_special_tokens=not tokenizer.chat_template or not batch[0].turns,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        for (_, spans), ids, offsets in zip(
            rendered, output["input_ids"], output["offset_mapping"], strict=True
        ):
            encoded.append(_to_tokens(ids, offsets, spans, max_length))
    return encoded


def _render(document: Document, tokenizer: Any) -> tuple[str, list[Span]]:
    """Return a document's text and the spans of characters that are learned."""
    end = tokenizer.eos_token or ""
    if not document.turns:
        text = document.text + end
        return text, [(0, len(text))]
    if not any(t["role"] == "assistant" and t["content"].strip() for t in document.turns):
        return tokenizer.bos_token or " ", []  # nothing to learn: dropped and counted
    if tokenizer.chat_template:
        return _render_chat(document, tokenizer)
    if len(document.turns) != 2:
        raise DataError(
            f"Row {document.row} is a conversation, and this base has no chat template.",
            cure="Use a base with a chat template, or data with prompt and completion.",
        )
    prompt = plain_prompt(document.turns[0]["content"])
    text = prompt + document.turns[1]["content"] + end
    return text, [(len(prompt), len(text))]


def _render_chat(document: Document, tokenizer: Any) -> tuple[str, list[Span]]:
    """Render a conversation and find its assistant turns by rendering its beginnings.

    A turn is what the whole text has beyond the prompt that asks for it. A template for which that
    does not hold cannot be masked right, so the row is refused rather than learned wrong.
    """
    turns = document.turns
    full = _template(tokenizer, turns)
    spans: list[Span] = []
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _template(tokenizer, turns[:index], add_generation_prompt=True)
        upto = _template(tokenizer, turns[: index + 1]).rstrip()
        if not (full.startswith(before) and full.startswith(upto) and len(before) < len(upto)):
            raise DataError(
                f"Row {document.row}: this base's chat template does not show where the answer "
                "begins, so the answer alone cannot be learned.",
                cure="Use a base with another template, or data in the text shape.",
            )
        spans.append((len(before), len(upto)))
    return full, spans


def _template(tokenizer: Any, turns: Any, *, add_generation_prompt: bool = False) -> str:
    if not turns:  # an assistant opens the conversation
        return str(tokenizer.bos_token or "")
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except Exception as error:
        raise DataError(
            f"This base's chat template refuses an example: {error}.",
            cure="Some templates want user and assistant in turn, without a system message.",
        ) from error


def _to_tokens(ids: list[int], offsets: list[Span], spans: list[Span], max_length: int) -> Tokens:
    learned = np.zeros(len(ids), dtype=bool)
    starts = np.array([start for start, _ in offsets])
    ends = np.array([end for _, end in offsets])
    for begin, finish in spans:
        learned |= (starts >= begin) & (ends <= finish) & (ends > starts)
    cut = len(ids) > max_length
    return Tokens(np.array(ids[:max_length], dtype=np.int32), learned[:max_length], cut)


def _usable(documents: list[Tokens]) -> tuple[list[Tokens], int]:
    """Leave out documents of which nothing is learned; a first token has nothing before it."""
    kept = [d for d in documents if len(d) > 1 and d.learned[1:].any()]
    return kept, len(documents) - len(kept)
