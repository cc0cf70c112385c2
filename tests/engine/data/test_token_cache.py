"""Tokens on the disk: made once, the same as made afresh, never half, never without bound."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from backend.engine.core.job_control import Control
from backend.engine.data import dataset, tokenization
from backend.engine.data.token_cache import TokenStore
from backend.errors import Stopped
from backend.requests import Columns
from backend.settings import STARTER

ROWS = [
    *({"prompt": f"Hello {n}.", "completion": f"Good day {n}."} for n in range(30)),
    {"prompt": "Hello.", "completion": None},
]


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(STARTER / "model")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which tables were tokenised and not found."""
    seen: list[str] = []
    real = tokenization.encode_part

    def spy(part: Any, *arguments: Any) -> Any:
        seen.append(part.table.name)
        return real(part, *arguments)

    monkeypatch.setattr(tokenization, "encode_part", spy)
    return seen


def store(tmp_path: Path, **options: Any) -> TokenStore:
    return TokenStore(tmp_path / "tokens", **{"worth_bytes": 0, **options})


def tokenise(
    file: Path, tokenizer: Any, kept: TokenStore | None, *, longest: int = 64, **options: Any
) -> tokenization.Corpus:
    settings = {"eval_share": 0.2, "seed": 0, "drop_bad_rows": True, **options}
    return tokenization.tokenise(
        dataset.read(str(file), **settings), tokenizer, max_length=longest, store=kept
    )


def as_lists(corpus: tokenization.Corpus) -> list[Any]:
    return [
        [(t.ids.tolist(), t.learned.tolist(), t.cut) for t in side]
        for side in (corpus.train, corpus.held_out)
    ]


def test_what_is_kept_is_what_was_made(
    tmp_path: Path, file: Path, tokenizer: Any, made: list[str]
) -> None:
    plain = tokenise(file, tokenizer, None)
    first = tokenise(file, tokenizer, store(tmp_path))
    second = tokenise(file, tokenizer, store(tmp_path))

    assert as_lists(plain) == as_lists(first) == as_lists(second)
    assert plain.stats == first.stats == second.stats
    assert made == ["data.jsonl"] * 2  # the plain one and the first


@pytest.mark.parametrize("change", [{"longest": 12}, {"seed": 1}, {"eval_share": 0.0}])
def test_settings_of_a_run_cost_no_second_time(
    tmp_path: Path, file: Path, tokenizer: Any, made: list[str], change: dict[str, Any]
) -> None:
    tokenise(file, tokenizer, store(tmp_path))
    made.clear()

    changed = tokenise(file, tokenizer, store(tmp_path), **change)

    assert made == []
    assert as_lists(changed) == as_lists(tokenise(file, tokenizer, None, **change))


def test_other_content_columns_or_templates_are_made_afresh(
    tmp_path: Path, file: Path, tokenizer: Any, made: list[str]
) -> None:
    tokenise(file, tokenizer, store(tmp_path))
    tokenise(
        file, tokenizer, store(tmp_path), columns=Columns(prompt="completion", answer="prompt")
    )
    with file.open("a", encoding="utf-8") as more:
        more.write(json.dumps(ROWS[0]) + "\n")
    tokenise(file, tokenizer, store(tmp_path))
    tokenizer.chat_template = "!" + tokenizer.chat_template
    changed = tokenise(file, tokenizer, store(tmp_path))

    assert len(made) == 4
    assert "!" in tokenizer.decode(changed.train[0].ids)


def test_a_small_table_is_not_worth_keeping(tmp_path: Path, file: Path, tokenizer: Any) -> None:
    kept = TokenStore(tmp_path / "tokens")

    tokenise(file, tokenizer, kept)

    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("damage", ["facts.json", "ids.npy", "keys.npy", "other rows"])
def test_a_damaged_entry_is_made_afresh(
    tmp_path: Path, file: Path, tokenizer: Any, made: list[str], damage: str
) -> None:
    tokenise(file, tokenizer, store(tmp_path))
    (entry,) = (tmp_path / "tokens").iterdir()
    if damage == "other rows":
        np.save(entry / "numbers.npy", np.arange(3))
    else:
        (entry / damage).write_bytes((entry / damage).read_bytes()[:20])
    made.clear()

    again = tokenise(file, tokenizer, store(tmp_path))

    assert made == ["data.jsonl"]
    assert as_lists(again) == as_lists(tokenise(file, tokenizer, None))
    assert as_lists(again) == as_lists(tokenise(file, tokenizer, store(tmp_path)))


def test_what_was_not_used_for_longest_makes_room(
    tmp_path: Path, tokenizer: Any, file: Path
) -> None:
    entries = []
    for number in range(3):
        other = tmp_path / f"{number}.jsonl"
        other.write_text(file.read_text(encoding="utf-8") + "\n" * number, encoding="utf-8")
        before = set((tmp_path / "tokens").glob("*"))
        size = sum(each.stat().st_size for entry in entries[:1] for each in entry.iterdir())
        tokenise(other, tokenizer, store(tmp_path, limit_bytes=int(2.5 * size) or 10**9))
        (entry,) = set((tmp_path / "tokens").glob("*")) - before
        entries.append(entry)
        os.utime(entry / "facts.json", (number, number))

    assert [entry.exists() for entry in entries] == [False, True, True]


def test_a_stopped_check_keeps_nothing(tmp_path: Path, file: Path, tokenizer: Any) -> None:
    control = Control(1, lambda message: None)
    control.hear("stop")
    found = dataset.read(str(file), eval_share=0.0, seed=0)

    with pytest.raises(Stopped):
        tokenization.prepare(found, tokenizer, store=store(tmp_path), control=control)

    assert not (tmp_path / "tokens").exists()


def test_progress_is_told_in_rows(tmp_path: Path, file: Path, tokenizer: Any) -> None:
    told: list[dict[str, Any]] = []
    found = dataset.read(str(file), eval_share=0.0, seed=0)

    tokenization.prepare(found, tokenizer, control=Control(1, told.append))

    assert [(each["text"], each["fraction"]) for each in told] == [("31 of 31 rows read", 1.0)]


def test_a_disk_that_is_full_costs_time_alone(
    tmp_path: Path, file: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)

    corpus = tokenise(file, tokenizer, store(tmp_path))

    assert corpus.stats.examples == 24
    assert list((tmp_path / "tokens").iterdir()) == []
