"""Checkpoints as people have them: what is unusual loads right, or is refused in a sentence."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.models import config_file, loading, model_folder
from backend.errors import ModelError, Unsupported
from backend.results import ModelFacts
from tests.architectures.tiny_models import write_model
from tests.engine.stored_bases import WEIGHTS, configure
from tests.engine.tiny import enlist, lora, scores, start_service, write_base

SILENT = Control(0, lambda message: None)
EVIL = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
NOTE = (
    "The model brings its own program code, which is not used: it is read with the code of "
    "Transformers for llama."
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("plain") / "plain")


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(plain, tmp_path / "copy"))
    (folder / "evil.py").write_text("raise SystemExit('It ran.')", encoding="utf-8")
    return folder


def load(folder: Path) -> ModelFacts:
    return loading.load(rq.LoadModel(source=str(folder), device="cpu"), SILENT).facts


# -- program code --------------------------------------------------------------------------------


def in_config(folder: Path) -> None:
    configure(folder, auto_map=EVIL)


def in_tokenizer(folder: Path) -> None:
    configure(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokens", None]})


def in_tokenizer_as_a_list(folder: Path) -> None:
    configure(folder, "tokenizer_config.json", auto_map=["evil.Tokens", None])


@pytest.mark.parametrize("name_code", [in_config, in_tokenizer, in_tokenizer_as_a_list])
def test_a_known_type_is_read_without_its_own_code(
    copy: Path, plain: Path, name_code: Callable[[Path], None]
) -> None:
    name_code(copy)
    facts = load(copy)

    assert (facts.fingerprint, facts.notes) == (load(plain).fingerprint, (NOTE,))
    assert model_folder.context_length(copy) == facts.context_length
    assert model_folder.skeleton(copy).config.model_type == "llama"


def test_an_unknown_type_with_its_own_code_is_refused(copy: Path) -> None:
    configure(copy, model_type="evil", auto_map=EVIL)

    with pytest.raises(Unsupported, match=r"its own program code for the architecture 'evil'"):
        load(copy)


@pytest.mark.parametrize("value", [None, [], {}], ids=str)
def test_an_empty_list_of_code_is_none(copy: Path, value: Any) -> None:
    for file in ("config.json", "tokenizer_config.json"):
        configure(copy, file, auto_map=value)

    assert load(copy).notes == ()


def test_a_tokenizer_that_is_code_is_refused(copy: Path) -> None:
    configure(copy, "tokenizer_config.json", auto_map=["evil.T", None], tokenizer_class="EvilOne")

    with pytest.raises(Unsupported, match=r"its own program code for its tokenizer \(EvilOne\)"):
        load(copy)


def test_a_tokenizer_is_the_same_with_code_named_and_without(copy: Path) -> None:
    configure(copy, "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    expected = model_folder.read_tokenizer(copy)
    in_tokenizer(copy)
    found = model_folder.read_tokenizer(copy)

    text = "Where is the cat, and  why? Élan!"
    assert type(found) is type(expected)
    assert found(text).input_ids == expected(text).input_ids


@pytest.mark.parametrize("trusted", [True, False])
def test_a_merged_folder_names_no_code(copy: Path, tmp_path: Path, trusted: bool) -> None:
    in_config(copy)
    in_tokenizer(copy)
    configure(copy, "generation_config.json", auto_map={"X": "evil.Y"}, temperature=0.6)
    with start_service(tmp_path / "workspace", copy) as service:
        enlist(service, "learned", lora(r=4))
        expected = scores(service, [("learned", 1.0)])
        merge = rq.Merge(variant=[("learned", 1.0)], destination=str(tmp_path / "merged"))
        merged = Path(service.start(merge).result(timeout=120).path)
        facts = service.start(rq.LoadModel(source=str(merged))).result(timeout=120)

        assert scores(service, []) == pytest.approx(expected, rel=1e-5)
    assert facts.notes == ()
    for each in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        each.from_pretrained(merged, trust_remote_code=trusted)
    assert not list(merged.glob("*.py"))


# -- numbers and types ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bamba", "falcon_h1", "mamba2", "granitemoehybrid"])
def test_numbers_that_json_does_not_have_are_read(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / kind, kind)
    expected = load(folder)
    bare = json.dumps(config_file.read(folder / "config.json", kind))  # as Python writes it
    (folder / "config.json").write_text(bare, encoding="utf-8")

    assert "Infinity" in bare
    assert load(folder).fingerprint == expected.fingerprint
    limits = model_folder.skeleton(folder).config.time_step_limit
    assert tuple(limits) == (0.0, float("inf"))
    AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["float8_e4m3fn", "auto", "int8", "bogus", 3, None], ids=str)
def test_a_strange_dtype_is_not_used(copy: Path, plain: Path, field: str, value: Any) -> None:
    configure(copy, **{field: value})

    assert load(copy).fingerprint == load(plain).fingerprint


# -- weights -------------------------------------------------------------------------------------


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    stored = {**load_file(folder / WEIGHTS), **tensors}
    kept = {key: weight for key, weight in stored.items() if weight is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def test_tied_weights_are_counted_once(copy: Path, plain: Path) -> None:
    configure(copy, tie_word_embeddings=True)
    change(copy, **{"lm_head.weight": None})
    facts, whole = load(copy), load(plain)

    assert facts.tied_embeddings
    assert facts.parameters == whole.parameters - whole.vocabulary * whole.hidden_size
    assert facts.memory_predicted_bytes == pytest.approx(facts.memory_measured_bytes, rel=0.01)


def test_a_head_of_its_own_is_kept_whatever_the_config_says(copy: Path, plain: Path) -> None:
    configure(copy, tie_word_embeddings=True)
    facts, whole = load(copy), load(plain)

    assert not facts.tied_embeddings
    assert (facts.fingerprint, facts.parameters) == (whole.fingerprint, whole.parameters)


def test_a_head_that_is_missing_is_refused(copy: Path) -> None:
    change(copy, **{"lm_head.weight": None})

    with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
        load(copy)


def consolidated(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors")


def variant(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "model.fp16.safetensors")


def original(folder: Path) -> None:
    (folder / "original").mkdir()
    shutil.copy(folder / WEIGHTS, folder / "original" / "consolidated.00.safetensors")


def weights_of_an_adapter(folder: Path) -> None:
    save_file({"x": torch.ones(2)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("add", [consolidated, variant, original, weights_of_an_adapter])
def test_other_weights_in_the_folder_are_not_read(
    copy: Path, plain: Path, add: Callable[[Path], None]
) -> None:
    add(copy)
    facts, expected = load(copy), load(plain)

    assert facts.parameters == expected.parameters
    assert facts.memory_predicted_bytes == expected.memory_predicted_bytes
    assert facts.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    "name",
    ["consolidated.safetensors", "model.fp16.safetensors", "model-00001-of-00001.safetensors"],
)
def test_weights_under_another_name_alone_are_named(copy: Path, name: str) -> None:
    (copy / WEIGHTS).rename(copy / name)

    with pytest.raises(ModelError, match=f"has its weights in {name}, but"):
        load(copy)


def test_an_adapter_beside_the_base_is_refused(copy: Path) -> None:
    weights_of_an_adapter(copy)
    (copy / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")

    with pytest.raises(ModelError, match="a base model and an adapter"):
        load(copy)


# -- tokenizers that need a package --------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "package"), [("tokenizer.model", "sentencepiece"), ("qwen.tiktoken", "tiktoken")]
)
def test_a_tokenizer_that_needs_a_package_names_it(copy: Path, file: str, package: str) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed.")
    (copy / "tokenizer.json").rename(copy / file)

    with pytest.raises(Unsupported, match=f"only as {file}, and the package {package} that"):
        load(copy)
