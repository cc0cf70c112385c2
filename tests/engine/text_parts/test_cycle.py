"""Models with parts for pictures: trained, read back by plain PEFT, merged, loaded as a whole."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers.modeling_utils import PreTrainedModel

from backend import Service
from backend import requests as rq
from tests.engine import tiny
from tests.engine.text_parts import composite

BESIDE = ("vision", "visual", "projector")
"""What the names of tensors outside of the text part have in them, in each of these models."""


class Trained(NamedTuple):
    service: Service
    base: Path
    folder: Path
    report: Any


@pytest.fixture(
    scope="module",
    params=[composite.gemma3, composite.gemma4, composite.llama4, composite.mllama],
    ids=lambda build: build.__name__,
)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    root = tmp_path_factory.mktemp("cycle")
    build: Callable[[], PreTrainedModel] = request.param
    base = composite.write(root / "base", build())
    with tiny.start_service(root / "workspace", base) as service:
        train = rq.Train(
            name="learned", data=str(examples(root / "data.jsonl")), tokens_per_step=128,
            max_length=64, learning_rate=1e-2, adapter=rq.Lora(rank=4), precision="fp32",
        )  # fmt: skip
        report = service.start(rq.Preflight(train=train)).result(timeout=120)
        service.start(train).result(timeout=120)
        info = service.library.get("learned")
        yield Trained(service, base, service.library.folder(info.id), report)


def examples(file: Path) -> Path:
    rows = [
        {"messages": [
            {"role": "user", "content": f"What is {n} and one?"},
            {"role": "assistant", "content": f"It is {n + 1}."},
        ]}
        for n in range(16)
    ]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_what_was_trained_is_in_the_text_part_and_answers_as_in_plain_peft(
    trained: Trained,
) -> None:
    assert trained.report.problems == []
    assert any(
        "Only the language model is adapted. Not changed: " in n for n in trained.report.notes
    )
    tensors = load_file(trained.folder / "adapter_model.safetensors")
    assert not any(part in key for key in tensors for part in BESIDE)
    moved = [bool(tensor.any()) for key, tensor in tensors.items() if "lora_B" in key]
    assert sum(moved) >= len(moved) * 2 // 3  # Mllama skips a layer where there is no picture

    expected = tiny.plain_scores(trained.base, trained.folder)
    assert tiny.scores(trained.service, [("learned", 1.0)]) == pytest.approx(expected, rel=1e-5)
    alone = tiny.plain_scores(trained.base, None)
    assert tiny.scores(trained.service, []) == pytest.approx(alone, rel=1e-5)
    assert alone != pytest.approx(expected, rel=1e-3)


def test_it_chats_as_plain_peft_generates(trained: Trained) -> None:
    prompt = "What is 3 and one?"
    answers = trained.service.start(
        rq.Compare(prompts=[prompt], variants=[[("learned", 1.0)]], max_new_tokens=6)
    ).result(timeout=120)

    tokenizer = transformers.AutoTokenizer.from_pretrained(trained.base)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt",
        return_dict=False,
    )  # fmt: skip
    plain: Any = PeftModel.from_pretrained(tiny.fresh(trained.base), trained.folder).eval()
    said = plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert answers.answers[0][0] == tokenizer.decode(said, skip_special_tokens=True).strip()


def test_a_merged_folder_holds_every_tensor_and_loads_as_the_whole_model(
    trained: Trained, tmp_path: Path
) -> None:
    merged = trained.service.start(
        rq.Merge(variant=[("learned", 1.0)], destination=str(tmp_path / "merged"))
    ).result(timeout=120)

    folder = Path(merged.path)
    assert merged.notes == []  # tensor by tensor
    before = load_file(trained.base / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    beside = [key for key in before if any(part in key for part in BESIDE)]
    assert beside
    assert all(torch.equal(before[key], after[key]) for key in beside)
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (folder / name).read_bytes() == (trained.base / name).read_bytes()
    expected = tiny.plain_scores(trained.base, trained.folder)
    assert tiny.plain_scores(folder, None) == pytest.approx(expected, rel=1e-5)


def test_a_merged_folder_loads_with_the_class_that_it_names(
    trained: Trained, tmp_path: Path
) -> None:
    trained.service.start(
        rq.Merge(variant=[("learned", 1.0)], destination=str(tmp_path / "merged"))
    ).result(timeout=120)

    named = json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"][0]
    whole, report = getattr(transformers, named).from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert (report["missing_keys"], report["unexpected_keys"]) == (set(), set())
    plain: Any = PeftModel.from_pretrained(tiny.fresh(trained.base), trained.folder)
    expected = plain.merge_and_unload().state_dict()
    found = whole.state_dict()
    for key, tensor in expected.items():
        names = (key, f"language_model.{key}", key.replace("model.", "model.language_model.", 1))
        twin = next(name for name in names if name in found)
        assert torch.equal(found[twin], tensor), key


def test_blends_and_the_hot_swap_slot_change_the_text_part_alone(trained: Trained) -> None:
    service = trained.service
    learned = [("learned", 1.0)]
    service.start(
        rq.Combine(name="half", method="svd", sources=[("learned", 0.5)], rank=4)
    ).result(timeout=120)  # fmt: skip
    folder = service.library.folder(service.library.get("half").id)
    expected = tiny.plain_scores(trained.base, folder)
    assert tiny.scores(service, [("half", 1.0)]) == pytest.approx(expected, rel=1e-5)
    assert tiny.scores(service, [("learned", 0.5)]) == pytest.approx(expected, rel=1e-4)

    before = tiny.scores(service, learned)
    service.start(rq.PrepareHotswap(adapters=["half", "learned"], compile=False)).result(120)
    service.start(rq.Hotswap(adapter="learned")).result(timeout=60)
    assert tiny.scores(service, learned) == pytest.approx(before, rel=1e-6)
    service.start(rq.EndHotswap()).result(timeout=60)
    service.start(rq.DeleteAdapter(name="half")).result(timeout=60)
