"""What training teaches to write last ends answers in chat, in samples and in a merged model."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend import requests as rq
from tests.engine.templates.traits import TEMPLATES, tokenizer_with
from tests.engine.tiny import start_service, write_base

ROWS = [{"prompt": f"Say {n}", "completion": "Aye"} for n in "abcdefgh"]
QUESTION = [{"role": "user", "content": "Say a"}]


@pytest.mark.slow
@pytest.mark.parametrize("trait", ["chatml", "a channel", "no end mark"])
def test_an_answer_ends_where_it_was_taught_to(tmp_path: Path, trait: str) -> None:
    base = write_base(tmp_path / "base", tokenizer=tokenizer_with(TEMPLATES[trait]))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    train = rq.Train(
        name="aye", data=str(data), epochs=40, learning_rate=0.02, adapter=rq.Lora(rank=16)
    )
    with start_service(tmp_path / "w", base) as service:
        run = service.start(train).result(timeout=300)
        chat = rq.Chat(
            messages=[rq.Message(**QUESTION[0])], variant=[("aye", 1.0)], max_new_tokens=40
        )
        said = "".join(service.chat(chat))
        merge = rq.Merge(variant=[("aye", 1.0)], destination=str(tmp_path / "merged"))
        merged = service.start(merge).result(timeout=120)
        samples = [event for event in service.events(run.run_id) if event.type == "sample"]

    assert said.removeprefix("final").strip() == "Aye"
    assert {each.text for each in samples} <= {"Aye", "finalAye"}
    assert all("Say " in (each.prompt or "") and "user" not in each.prompt for each in samples)
    assert merged_answer(Path(merged.path)).removeprefix("final").strip() == "Aye"


def merged_answer(folder: Path) -> str:
    """Return the answer of plain Transformers, with what the folder says about itself alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**ids, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
