"""A base that cannot compute a text, or that reads it in both directions, is refused at load."""

from pathlib import Path

import pytest

from backend.errors import ModelError, Unsupported
from tests.architectures import tiny_models
from tests.engine.architectures import load

BOTH = {
    "bert": {"is_decoder": False},
    "xlm-roberta": {"is_decoder": False},
    "xlm": {"causal": False},
    "xlnet": {"attn_type": "bi"},
}


@pytest.mark.parametrize("kind", BOTH)
def test_a_model_that_reads_in_both_directions_is_refused(kind: str, tmp_path: Path):
    folder = tiny_models.write_model(tmp_path / "both", kind, **BOTH[kind])
    with pytest.raises(Unsupported, match="reads text in both directions"):
        load(folder)


@pytest.mark.parametrize("kind", ["bert", "xlm"])
def test_the_same_type_is_loaded_where_it_reads_in_one_direction(kind: str, tmp_path: Path):
    base = load(tiny_models.write_model(tmp_path / "one", kind))
    assert base.facts.architecture == kind


def test_a_model_that_cannot_compute_a_text_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tiny_models.write_model(tmp_path / "model", "llama")
    layer = "transformers.models.llama.modeling_llama.LlamaMLP.forward"

    def broken(*_: object) -> None:
        raise RuntimeError("the sizes do not fit")

    monkeypatch.setattr(layer, broken)
    with pytest.raises(ModelError, match="cannot compute a short text: the sizes do not fit"):
        load(folder)
