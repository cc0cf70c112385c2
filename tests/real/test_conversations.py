"""Conversations as people have them, on the real model's own template: tools, turns, thoughts."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from backend import Service
from backend import requests as rq
from backend import results as rs
from tests.real.conftest import load
from tests.real.test_smollm2 import folder_of

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

TOOL = {
    "type": "function",
    "function": {
        "name": "find_book",
        "description": "Finds a book by its title.",
        "parameters": {"type": "object", "properties": {"title": {"type": "string"}}},
    },
}


def calling(title: str) -> dict[str, Any]:
    """Return a row in which the assistant calls a tool and tells what it found."""
    call = {"name": "find_book", "arguments": json.dumps({"title": title})}
    return {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": f"Do you have {title}?"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
            {"role": "tool", "content": "shelf 4"},
            {"role": "assistant", "content": f"Yes, {title} is on shelf 4."},
        ],
    }


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(file)


def learned(service: Service, data: str) -> list[list[str]]:
    """Return the pieces with loss of each example of a preview."""
    preview: rs.DataPreview = service.start(rq.PreviewData(data=data)).result(timeout=120)
    assert preview.problems == []
    return [[text for text, has_loss in each.pieces if has_loss] for each in preview.examples]


@pytest.fixture
def service(real_service: Service) -> Service:
    load(real_service, quantization="none")
    return real_service


def test_calls_of_tools_are_learned_and_trained(service: Service, tmp_path: Path) -> None:
    titles = ("Dune", "Emma", "Ulysses", "Momo", "Heidi", "Ivanhoe")
    data = write(tmp_path / "tools.jsonl", [calling(title) for title in titles])
    train = rq.Train(
        name="librarian", data=data, max_steps=2, tokens_per_step=512, eval_share=0,
        precision="fp32",
    )  # fmt: skip
    report: rs.PreflightReport = service.start(rq.Preflight(train=train, measure=False)).result(120)
    run: rs.RunResult = service.start(train).result(timeout=300)

    assert report.problems == []
    assert learned(service, data)[0] == [
        '<tool_call>[{"name": "find_book", "arguments": {"title": "Dune"}}]</tool_call><|im_end|>',
        "Yes, Dune is on shelf 4.<|im_end|>",
    ]
    assert run.state == "finished"
    assert run.final_loss is not None


def test_every_answer_of_a_conversation_is_learned_as_the_template_shows_it(
    service: Service, tmp_path: Path
) -> None:
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Now we read."},
    ]
    data = write(tmp_path / "turns.jsonl", [{"messages": turns}] * 2)
    tokenizer = AutoTokenizer.from_pretrained(folder_of(service))
    preview: rs.DataPreview = service.start(rq.PreviewData(data=data)).result(timeout=120)
    shown = "".join(text for text, _ in preview.examples[0].pieces)

    assert learned(service, data)[0] == ["Hello.<|im_end|>", "Now we read.<|im_end|>"]
    assert shown == tokenizer.apply_chat_template(turns, tokenize=False)


def test_a_thought_that_the_template_does_not_show_is_reported(
    service: Service, tmp_path: Path
) -> None:
    turns = [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."},
    ]
    data = write(tmp_path / "thoughts.jsonl", [{"messages": turns}] * 3)
    preview: rs.DataPreview = service.start(rq.PreviewData(data=data)).result(timeout=120)

    assert preview.stats is not None
    assert {group.kind: group.count for group in preview.stats.groups}["no_thought"] == 3
