"""Answers by `generate`: company, sampling, and lists of adapters."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer, TextStreamer

from tests.engine.tiny import fresh, lora
from tests.engine.upstream.plain_models import IDS, Write, distance, load, logits
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def test_an_answer_depends_on_its_company(base: Path) -> None:
    """The same seed and prompt, alone and as the second row of a batch."""
    model = fresh(base)

    def answer(rows: int) -> list[int]:
        ids = IDS.expand(rows, -1)
        torch.manual_seed(0)
        settings = {"do_sample": True, "max_new_tokens": 12, "pad_token_id": 0}
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return list(output[-1, IDS.shape[1] :].tolist())

    assert answer(1) == answer(1)
    assert_still(answer(2) != answer(1), "seeds in batches", "sampling.py (Sampler)", transformers)


def test_a_batch_cannot_be_streamed(base: Path) -> None:
    streamer = TextStreamer(AutoTokenizer.from_pretrained(base))
    ids = IDS.expand(2, -1)
    try:
        fresh(base).generate(ids, attention_mask=torch.ones_like(ids), streamer=streamer)
        wrong = False
    except ValueError as error:
        wrong = "batch size 1" in str(error)
    assert_still(wrong, "streaming of batches", "text_streaming.py (TextStream)", transformers)


def test_a_call_that_raises_lets_its_adapters_answer_the_next(base: Path, write: Write) -> None:
    """Its hooks stay, and choose for calls that name no adapter."""
    model = load(base, write("one", lora(r=2)), "one")
    model.load_adapter(write("two", lora(r=2), 1), "two")
    right = logits(model)
    with pytest.raises(IndexError):
        model(input_ids=IDS + 10_000_000, adapter_names=["two"])

    stale = logits(model)

    model.set_adapter("two")
    for module in model.modules():
        module._forward_pre_hooks.clear()
    wrong = distance(stale, right) > 1e-2 and distance(stale, logits(model)) < 1e-5
    assert_still(wrong, "hooks after an error (issue 3475)", "batched_decoding.py (Routing)")
