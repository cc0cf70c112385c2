"""A base whose chat template is edited in place, and one with several templates and no default."""

import json
from pathlib import Path

from backend import requests as rq
from backend.engine.models import model_folder
from tests.engine.templates.traits import TEMPLATES
from tests.engine.tiny import start_service, write_base


def test_a_preview_shows_the_template_that_is_loaded_now(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "Hello?", "completion": "Hello."}) + "\n")
    texts = []
    with start_service(tmp_path / "w", base) as service:
        for word in ("FIRST", "SECOND"):
            template = TEMPLATES["chatml"].replace("'<|im_start|>' +", f"'{word} ' +", 1)
            (base / "chat_template.jinja").write_text(template, encoding="utf-8")
            service.start(rq.LoadModel(source=str(base))).result(timeout=60)
            preview = service.start(rq.PreviewData(data=str(data))).result(timeout=60)
            texts.append("".join(text for text, _ in preview.examples[0].pieces))

    assert ["FIRST" in texts[0], "SECOND" in texts[1]] == [True, True]


def test_the_first_of_several_templates_stands_for_a_missing_default(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    folder = base / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_text(TEMPLATES["chatml"], encoding="utf-8")

    tokenizer = model_folder.read_tokenizer(base)

    turns = [{"role": "user", "content": "Hello?"}]
    assert "Hello?" in tokenizer.apply_chat_template(turns, tokenize=False)
