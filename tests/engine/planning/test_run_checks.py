"""What a run checks at its start is checked before it says Ready."""

from pathlib import Path

import numpy as np
import pytest

from backend import requests as rq
from backend.engine.data.token_arrays import Tokens
from backend.engine.methods import peft_io
from backend.engine.models.linear_layers import linear_layers
from backend.engine.models.loading import Base
from backend.engine.models.model_skeleton import skeleton
from backend.engine.planning import run_checks
from backend.engine.steps.packing import Packs
from backend.library import Library
from backend.results import AdapterInfo
from tests.architectures.tiny_models import write_model
from tests.engine.architectures import load


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load(write_model(tmp_path_factory.mktemp("mamba") / "mamba", "mamba"))


def lora(base: Base, *targets: str) -> peft_io.LoraConfig:
    return peft_io.configure(rq.Lora(targets=list(targets)), linear_layers(base.model), "mamba")


def test_layers_that_peft_refuses_are_reported_before_the_run(mamba: Base) -> None:
    config = lora(mamba, "in_proj")
    config.target_modules = {"out_proj"}

    said = [*run_checks.refused_by_peft(config, mamba.facts)]

    assert len(said) == 1
    assert said[0].what.startswith("PEFT cannot put this adapter on the base: ")
    assert "out_proj" in said[0].what


def test_a_trial_leaves_the_skeleton_as_it_was(mamba: Base) -> None:
    before = [*skeleton(mamba.facts).state_dict()]

    assert [*run_checks.refused_by_peft(lora(mamba, "in_proj"), mamba.facts)] == []
    assert [*skeleton(mamba.facts).state_dict()] == before


def test_a_single_example_has_no_note_on_others(mamba: Base) -> None:
    facts = mamba.facts.model_copy(update={"layout": "rows", "layout_reason": "others leak"})
    one = Tokens(np.arange(5, dtype=np.int32), np.ones(5, dtype=bool))

    (said,) = run_checks.about_layout(facts, Packs([one, one], [[0, 1]], layout="rows"))

    assert said == "Each example is trained in a row of its own, because others leak."
    assert run_checks.about_layout(facts, Packs([one], [[0], [0]], layout="rows")) == []


def test_an_adapter_of_another_base_cannot_be_continued(mamba: Base, tmp_path: Path) -> None:
    library = Library(tmp_path)
    info = AdapterInfo(
        id="ad_1", name="pirate", colour="#000000", method="LoRA", rank=1, strength="any",
        targets=("q_proj",), parameters=1, base_name="starter", base_fingerprint="other",
        created=0.0,
    )  # fmt: skip
    folder = library.folder("ad_1")
    folder.mkdir(parents=True)
    library.write_sidecar(folder, info)

    said = [*run_checks.problems(rq.Train(name="more", start_from="pirate"), mamba.facts, library)]

    assert "was made for the base 'starter'" in said[0].what


def test_checkpointing_is_turned_off_only_where_it_is_not_supported(
    mamba: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = rq.Train(name="lean", gradient_checkpointing=True)

    assert run_checks.settled(asked, mamba.model) == (asked, [])
    monkeypatch.setattr(mamba.model, "supports_gradient_checkpointing", False, raising=False)
    settled, notes = run_checks.settled(asked, mamba.model)

    assert not settled.gradient_checkpointing
    assert len(notes) == 1
