"""A slot on a base in 4 bits: the same swaps, the same answers, and the base unchanged after it."""

from collections.abc import Iterator
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from backend import Service
from backend import requests as rq
from tests.engine.hotswap.conftest import FIVE, ask, folder, start
from tests.engine.tiny import TEXTS, enlist, scores, start_service

CHOSEN = ("en", "en_formal", "layers")


@pytest.fixture(scope="module")
def nf4(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with start_service(tmp_path_factory.mktemp("nf4"), base) as service:
        for seed, name in enumerate(CHOSEN):
            enlist(service, name, FIVE[name], seed=seed)
        loaded = start(service, rq.LoadModel(source=str(base), quantization="nf4"))
        assert loaded.quantization == "nf4"
        yield service


def plain_nf4_scores(base: Path, adapter: Path | None) -> list[float]:
    """Score the texts with plain PEFT on the base as bitsandbytes quantises it."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    ).eval()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # a fault of its own, tested elsewhere
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            chances = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        found.append(chances.gather(1, ids[0, 1:, None]).sum().item())
    return found


def test_a_slot_on_an_nf4_base_answers_as_plain_peft_does_and_leaves_no_trace(
    nf4: Service, base: Path
) -> None:
    before = {name: scores(nf4, [(name, 1.0)]) for name in CHOSEN}
    bare = scores(nf4, [])

    prepared = start(nf4, rq.PrepareHotswap(adapters=list(CHOSEN), compile=False))
    for name in (*CHOSEN, CHOSEN[0]):
        swapped = start(nf4, rq.Hotswap(adapter=name))
        assert swapped.max_difference <= 1e-5
        expected = plain_nf4_scores(base, folder(nf4, name))
        assert scores(nf4, [(name, 1.0)]) == pytest.approx(expected, rel=1e-5)
        start(nf4, ask("Hello!", [(name, 1.0)]))
    start(nf4, rq.Hotswap(adapter=""))
    assert scores(nf4, []) == pytest.approx(plain_nf4_scores(base, None), rel=1e-5)
    left = start(nf4, rq.EndHotswap())

    assert prepared.rank == 16
    assert left.max_difference == 0.0
    assert scores(nf4, []) == bare
    assert {name: scores(nf4, [(name, 1.0)]) for name in CHOSEN} == before
    assert len({tuple(each) for each in (bare, *before.values())}) == 4
