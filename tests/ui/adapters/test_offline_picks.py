"""The bases that the Load tab offers without the internet."""

from pathlib import Path

import pytest

from backend import PACKAGED_MODELS
from ui.adapters.tab import offline_picks

MODEL = PACKAGED_MODELS["smollm2"]


def test_a_packaged_model_is_offered_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(MODEL), "find", lambda self: Path(self.file))

    assert offline_picks(tmp_path) == [
        ("Starter (bundled)", "starter"),
        ("SmolLM2 135M Instruct: a real chat model, 270 MB, offline", "smollm2"),
    ]


def test_elsewhere_only_the_starter_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(MODEL), "find", lambda self: None)

    assert offline_picks(tmp_path) == [("Starter (bundled)", "starter")]
