"""The packs of `plain_peft_script` where each example is a row of its own, or is computed alone.

What is between the marks replaces the same part of that script; the rest is there, too.
"""

import random
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy, pad

Example = tuple[list[int], list[int]]
Pack = dict[str, Any]
TOKENS_PER_STEP, COMPUTE_PRECISION = 512, "fp32"


def compute_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Open the compute precision, as in the script."""
    raise NotImplementedError


# <layout>

LAYOUT = "rows"
WINDOW = 16


def passes(lengths: list[int], epochs: float, generator: random.Random) -> list[list[int]]:
    """Every epoch sees each example once, in a new order; a fractional epoch sees its share."""
    packs: list[list[int]] = []
    while epochs > 0:
        order = list(range(len(lengths)))
        generator.shuffle(order)
        order = order[: max(1, round(len(order) * min(epochs, 1.0)))]
        packs += rows(lengths, order, generator) if LAYOUT == "rows" else filled(lengths, order)
        epochs -= 1
    return packs


def filled(lengths: list[int], order: list[int]) -> list[list[int]]:
    """Fill packs in order; a pack is closed when the next example does not fit."""
    packs: list[list[int]] = []
    room = 0
    for number in order:
        if lengths[number] > room:
            packs.append([])
            room = TOKENS_PER_STEP
        packs[-1].append(number)
        room -= lengths[number]
    return packs


def rows(lengths: list[int], order: list[int], generator: random.Random) -> list[list[int]]:
    """Fill packs with examples of similar length, so that little is padding.

    Examples are sorted within windows of `WINDOW` packs' worth of tokens; the packs of a window
    come in random order.
    """
    packs: list[list[int]] = []
    window: list[int] = []
    tokens = 0
    for number in order:
        window.append(number)
        tokens += lengths[number]
        if tokens >= WINDOW * TOKENS_PER_STEP or number == order[-1]:
            inside = of_similar_length(lengths, window)
            generator.shuffle(inside)
            packs += inside
            window, tokens = [], 0
    return packs


def of_similar_length(lengths: list[int], window: list[int]) -> list[list[int]]:
    """Fill packs, the longest examples first; padding counts as tokens of a pack, too."""
    packs: list[list[int]] = []
    for number in sorted(window, key=lambda each: lengths[each], reverse=True):
        if not packs or (len(packs[-1]) + 1) * lengths[packs[-1][0]] > TOKENS_PER_STEP:
            packs.append([])
        packs[-1].append(number)
    return packs


def lay_out(examples: list[Example]) -> Pack:
    """Return the examples of a pack as the model gets them: together, or one after the other."""
    examples = sorted(examples, key=lambda example: len(example[0]), reverse=True)
    if LAYOUT == "rows":
        return in_rows(examples)
    alone = [in_rows([each]) for each in examples]
    for each in alone:
        del each["attention_mask"]
    return {"alone": alone, "labels": torch.cat([each["labels"] for each in alone])}


def in_rows(examples: list[Example]) -> Pack:
    """Put each example in a row of its own, padded at the end; nothing predicts its first token.

    input_ids, attention_mask: (rows, longest), int64; kept: (kept,), int64, positions counted
    through all rows; labels: (kept,), int64, the tokens they predict.
    """
    ids = torch.zeros(len(examples), len(examples[0][0]), dtype=torch.int64)
    mask, learned = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (tokens, flags) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        learned[row, : len(tokens)] = torch.tensor([0, *flags[1:]])
    targets = learned.reshape(-1).nonzero().reshape(-1)
    labels = ids.reshape(-1)[targets]
    return {"input_ids": ids, "attention_mask": mask, "kept": targets - 1, "labels": labels}


def loss_sum(model: PeftModel, pack: Pack) -> torch.Tensor:
    """Return the summed loss (nats) of a pack over its tokens with loss."""
    labels = pack["labels"].to(model.device)
    with compute_precision(model.device):
        logits = torch.cat([logits_of(model, each) for each in pack.get("alone", [pack])])
    return cross_entropy(logits.float(), labels, reduction="sum")


def logits_of(model: PeftModel, pack: Pack) -> torch.Tensor:
    """Return the logits that predict tokens with loss: (kept, vocabulary)."""
    inputs = {name: value.to(model.device) for name, value in pack.items()}
    del inputs["labels"]
    kept, width = inputs.pop("kept"), inputs["input_ids"].shape[1]
    if fills_up(model) and "attention_mask" in inputs:
        fill_up(model, inputs)
    logits = model(**inputs).logits
    return logits[kept // width, kept % width]


def fills_up(model: PeftModel) -> bool:
    """Tell whether rows are padded: a processor in half precision compiles for each length."""
    half = COMPUTE_PRECISION != "fp32" or next(model.parameters()).dtype != torch.float32
    return half and model.device.type == "cpu"


def fill_up(model: PeftModel, inputs: Pack) -> None:
    """Pad rows to the next of a few lengths, of which the model reads at most `longest`."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0
    width = inputs["input_ids"].shape[1]
    step = max(8, (1 << width.bit_length()) // 16)
    wider = -(-width // step) * step
    wider = max(width, min(wider, longest)) if longest else wider
    for name in ("input_ids", "attention_mask"):
        inputs[name] = pad(inputs[name], (0, wider - width))


# </layout>
