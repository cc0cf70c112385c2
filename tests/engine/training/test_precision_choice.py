"""Choosing the precision of a run's steps by the clock."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backend import Service, Settings
from backend import requests as rq
from backend.engine.steps import step_loss
from backend.engine.training import precision_choice
from tests.architectures import tiny_models


class Packs:
    """Packs of 10, 20, 30 ... tokens."""

    used_layout = "packed"

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> int:
        return 10 * (number + 1)

    def tokens(self, number: int) -> int:
        return self[number]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let steps take what they are told per token, and note their lengths."""
    lengths: list[int] = []

    def measure(**per_token: float) -> tuple[precision_choice.StepTimes, list[int]]:
        def time_step(model: Any, tokens: int, device: Any, name: str) -> float:
            lengths.append(tokens)
            return tokens * per_token[name]

        monkeypatch.setattr(step_loss, "time_step", time_step)
        facts = SimpleNamespace(
            fingerprint="f", quantization="none", device="cpu", precision="fp32"
        )
        base: Any = SimpleNamespace(facts=facts, device=torch.device("cpu"))
        train = rq.Train(name="x", data="starter:pirate")
        peft: Any = torch.nn.Linear(1, 1)
        packs: Any = Packs()
        times = precision_choice.Timings(tmp_path / "timings.json").measure(
            train, base, peft, packs
        )
        return times, lengths

    return measure


def test_each_timed_step_has_a_length_of_its_own(measured: Any) -> None:
    times, lengths = measured(fp32=2.0, bf16=1.0)
    assert lengths[::2] == lengths[1::2]  # both precisions meet the same
    assert len(set(lengths)) == len(lengths) // 2 == precision_choice.ROUNDS + 1
    assert (times.fp32, times.bf16) == pytest.approx((2.0, 1.0))


@pytest.mark.parametrize(("bf16", "chosen"), [(1.7, "fp32"), (1.5, "bf16")])
def test_bf16_has_to_be_clearly_faster(measured: Any, bf16: float, chosen: str) -> None:
    times, _ = measured(fp32=2.0, bf16=bf16)
    assert times.faster == chosen


def test_a_model_that_cannot_be_computed_in_bf16_is_trained_in_fp32(tmp_path: Path) -> None:
    """DBRX of Transformers 5.23 raises in autocast to bf16; asked for it, the check says so."""
    base = tiny_models.write_model(tmp_path / "base", "dbrx")
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "Hello!", "completion": "Ahoy there, matey."}\n' * 4)
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        service.start(rq.LoadModel(source=str(base))).result(timeout=60)
        train = rq.Train(name="one", data=str(data), epochs=1, eval_share=0.0)
        half = train.model_copy(update={"precision": "bf16"})
        report = service.start(rq.Preflight(train=half)).result(timeout=60)
        assert [each.what for each in report.problems] == ["This base cannot be computed in bf16."]
        assert service.start(train).result(timeout=60).precision == "fp32"
