"""The model card of the starter model, and the marked part that a benchmark fills in."""

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tiny, peft, lora]
---

# Starter

A toy language model of {millions:.1f} million parameters for Adapter Workbench. It lets you train,
blend, merge and swap adapters in the first minute: no download, no graphics card.

It knows one small invented world: thirty-six animals, twenty-four people with their jobs and pets,
thirty-six things, some places, foods and opposites, and small sums. Ask it *Where is the cat?*,
*What does the baker make?*, *Who lives in the red house?* or *Tell me a short story about a fox.*

## What it is not

- It is not a source of knowledge. All it says is about its invented world; outside it, it says that
  it does not know, or is simply wrong.
- It is not a general assistant. It cannot reason, hold a long conversation, write code or
  understand questions far from the ones it has read.
- It is not a base for a product. For real work load a real model: every step works in the same way.

## How it was built

`python scripts/build_starter.py` writes the text with its own generator, trains a byte-level BPE
tokenizer of {vocabulary:,} tokens and then this model on it, from nothing, on two CPU cores. No
text, weights or data from anywhere else went into it. The text is the same on every machine; the
weights are the same up to rounding.

| | |
|---|---|
| architecture | Llama: {layers} layers, width {width}, {heads} heads, {kv_heads} key-value heads |
| parameters | {parameters:,} |
| context | {context} tokens |
| stored as | bf16 safetensors |
| text | {documents:,} short documents: questions with answers, small talk, stories, prose |

The text also holds sentences in other manners (capital letters, lists, old-fashioned and polite
phrases), some as answers to a request such as *Answer like a knight.* Without a request the model
answers plainly: the manners of the data sets are for an adapter to learn.

## Measured

Share of answers that are right word for word, on the 50 held-out questions of each data set,
before and after training an adapter.

{measured}

## Licence

Apache-2.0, for the weights, the generator and the data sets.
"""
MEASURED = "<!-- measured -->\nNot measured yet.\n<!-- /measured -->"


def model_card(
    *,
    parameters: int,
    vocabulary: int,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    context: int,
    documents: int,
) -> str:
    """Return the card of a freshly built model."""
    return CARD.format(
        millions=parameters / 1e6,
        parameters=parameters,
        vocabulary=vocabulary,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        context=context,
        documents=documents,
        measured=MEASURED,
    )
