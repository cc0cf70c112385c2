"""Loading a base: what cannot be loaded right is refused in a sentence, and the old base stays."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from backend import Service
from backend import requests as rq
from backend.engine.core import dtypes, memory
from backend.engine.core.job_control import Control
from backend.engine.models import fingerprint, loading, model_folder
from backend.errors import ModelError, NotFound, OutOfMemory, Unsupported, WorkbenchError
from backend.settings import STARTER

TEXTS = ["Where is the cat?", "Hello!"]
SILENT = Control(0, lambda message: None)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the starter model, for a test to spoil."""
    copy = tmp_path / "spoilt"
    shutil.copytree(STARTER / "model", copy)
    return copy


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")


def layers() -> int:
    config = json.loads((STARTER / "model" / "config.json").read_text(encoding="utf-8"))
    return int(config["num_hidden_layers"])


def scores(service: Service) -> list[float]:
    job = service.start(rq.Score(texts=TEXTS, variants=[[]]))
    values: list[float] = job.result(timeout=60).scores[0]
    return values


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100_000])


def cut_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:6])


def missing_shard(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def damaged_index(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text('{"weights": {}}', encoding="utf-8")


def index_that_leads_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    weight_map = {"a": "../elsewhere.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def config_of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text("[]", encoding="utf-8")


def unknown_architecture(folder: Path) -> None:
    configure(folder, model_type="foo", architectures=["FooForCausalLM"])


def another_task(folder: Path) -> None:
    configure(folder, model_type="t5", architectures=["T5ForConditionalGeneration"])


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


def other_shapes(folder: Path) -> None:
    configure(folder, intermediate_size=64)


def more_layers(folder: Path) -> None:
    configure(folder, num_hidden_layers=layers() + 1)


def fewer_layers(folder: Path) -> None:
    configure(folder, num_hidden_layers=layers() - 1)


DAMAGED = "model.safetensors is damaged or cut off ("
SPOILT: list[tuple[Callable[[Path], None], type[WorkbenchError], str]] = [
    (
        without_weights,
        ModelError,
        "spoilt has a config.json but no weights (no model.safetensors). "
        "Only safetensors files are read: choose another base, or convert it first.",
    ),
    (
        pickle_only,
        Unsupported,
        "spoilt has its weights only as pytorch_model.bin, a format that can run code. "
        "Convert it to safetensors first.",
    ),
    (
        truncated,
        ModelError,
        DAMAGED + "a tensor is outside of it). Download it again.",
    ),
    (cut_header, ModelError, DAMAGED + "its header cannot be read). Download it again."),
    (
        missing_shard,
        ModelError,
        "spoilt lacks 1 of 2 weight files: model-00002-of-00002.safetensors... Download it again.",
    ),
    (
        damaged_index,
        ModelError,
        "spoilt/model.safetensors.index.json is not a list of weight files. Download it again.",
    ),
    (
        index_that_leads_out,
        ModelError,
        "spoilt names a weight file outside its folder: ../elsewhere.safetensors.",
    ),
    (
        adapter,
        ModelError,
        "spoilt holds a base model and an adapter, which Transformers would load as one. Move "
        "adapter_config.json and adapter_model.safetensors to another folder, then load the base "
        "and add the adapter.",
    ),
    (without_config, ModelError, "spoilt has no config.json, so it is not a model folder."),
    (
        broken_config,
        ModelError,
        "spoilt/config.json is not valid JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1).",
    ),
    (config_of_another_kind, ModelError, "spoilt/config.json is not a JSON object."),
    (
        unknown_architecture,
        Unsupported,
        f"spoilt has the architecture 'foo', not known to Transformers {transformers.__version__}. "
        "Choose a base with a known architecture, such as Llama, Qwen or Gemma.",
    ),
    (
        another_task,
        Unsupported,
        "spoilt is a t5 model, which does not continue text. "
        "Choose a causal language model, such as Llama, Qwen or Gemma.",
    ),
    (without_tokenizer, ModelError, "spoilt has no readable tokenizer."),
    (other_shapes, ModelError, "The weights in spoilt do not match its config.json."),
    (
        more_layers,
        ModelError,
        "The weights in spoilt do not match its config.json: "
        f"model.layers.{layers()}.input_layernorm.weight is missing.",
    ),
    (
        fewer_layers,
        ModelError,
        "The weights in spoilt do not match its config.json: there is no place for "
        f"model.layers.{layers() - 1}.input_layernorm.weight.",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "kind", "sentence"), SPOILT, ids=[spoil.__name__ for spoil, _, _ in SPOILT]
)
def test_a_spoilt_folder_is_refused_in_words_and_the_old_base_stays(
    base_only: Service,
    folder: Path,
    spoil: Callable[[Path], None],
    kind: type[WorkbenchError],
    sentence: str,
) -> None:
    before = scores(base_only)
    spoil(folder)

    with pytest.raises(kind) as caught:
        base_only.start(rq.LoadModel(source=str(folder))).result(timeout=120)

    assert str(caught.value) == sentence
    base = base_only.snapshot().base
    assert base is not None
    assert base.name == "starter"
    assert scores(base_only) == before


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            rq.LoadModel(source="./not/here"),
            f"There is no folder {str(Path('not/here').absolute())!r}. "
            "Check the path; a Hub id looks like HuggingFaceTB/SmolLM2-135M.",
        ),
        (
            rq.LoadModel(source="starter", device="cuda"),
            "This machine has no NVIDIA GPU that PyTorch can use. Use cpu.",
        ),
        (
            rq.LoadModel(source="starter", device="cpu", precision="fp16"),
            "fp16 is slow and imprecise on a processor. Use bf16, which has the same size.",
        ),
    ],
    ids=["path", "device", "precision"],
)
def test_what_this_machine_cannot_do_is_refused_and_the_old_base_stays(
    base_only: Service,
    request_: rq.LoadModel,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # whatever machine this is
    before = scores(base_only)

    with pytest.raises((NotFound, Unsupported)) as caught:
        base_only.start(request_).result(timeout=120)

    assert str(caught.value) == sentence
    assert scores(base_only) == before


def test_the_active_adapter_comes_back_with_the_old_base(base_only: Service, folder: Path) -> None:
    train = rq.Train(name="still active", max_steps=2, tokens_per_step=128, precision="fp32")
    base_only.start(train).result(timeout=120)
    base_only.start(rq.SetActive(adapters=[("still active", 0.5)])).result(timeout=60)
    variant = rq.Score(texts=TEXTS, variants=[[("still active", 0.5)]])
    before = base_only.start(variant).result(timeout=60)
    more_layers(folder)

    with pytest.raises(ModelError):
        base_only.start(rq.LoadModel(source=str(folder))).result(timeout=120)

    assert base_only.snapshot().active == [("still active", 0.5)]
    assert base_only.start(variant).result(timeout=60) == before


def test_too_little_memory_is_known_before_a_weight_is_read(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores(base_only)
    little = iter([10_000_000])  # for the new base; the old one comes back to the real figure
    real = memory.available
    monkeypatch.setattr(memory, "available", lambda device: next(little, None) or real(device))

    with pytest.raises(OutOfMemory) as caught:
        base_only.start(rq.LoadModel(source="starter", precision="fp32")).result(timeout=120)

    assert str(caught.value) == (
        "starter in fp32 needs about 15 MB of memory, but only 10 MB are free. "
        "Choose a smaller model or bf16, or close other programs."
    )
    assert scores(base_only) == before


def test_code_in_a_model_folder_never_runs(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer |= {"auto_map": {"AutoTokenizer": ["evil.Tok", None]}, "tokenizer_class": "Tok"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "evil.py").write_text("raise SystemExit('It ran.')", encoding="utf-8")

    with pytest.raises(Unsupported, match="its own program code for its tokenizer"):
        loading.load(rq.LoadModel(source=str(folder)), SILENT)


def test_the_facts_are_those_of_the_files(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    count = sum(tensor.numel() for tensor in stored.values())

    facts = loading.load(rq.LoadModel(source=str(folder), device="cpu"), SILENT).facts

    assert (facts.name, facts.source, facts.path) == ("spoilt", str(folder), str(folder))
    assert (facts.architecture, facts.layers, facts.chat_template) == ("llama", layers(), True)
    assert (facts.precision, facts.device) == ("fp32", "cpu")
    assert facts.parameters == count
    assert facts.memory_predicted_bytes == 4 * count
    assert facts.vocabulary <= stored["model.embed_tokens.weight"].shape[0]


@pytest.mark.parametrize(("precision", "bytes_each"), [("bf16", 2), ("fp32", 4)])
def test_weights_are_stored_in_the_precision_that_was_asked_for(
    precision: Any, bytes_each: int
) -> None:
    request = rq.LoadModel(source="starter", precision=precision, device="cpu")

    base = loading.load(request, SILENT)

    parameters = list(base.model.parameters())
    assert {p.dtype for p in parameters} == {dtypes.DTYPES[precision]}
    assert base.facts.memory_predicted_bytes == bytes_each * sum(p.numel() for p in parameters)
    assert (base.facts.precision, base.facts.precision_reason) == (precision, "as chosen")
    assert not base.model.training
    assert not any(p.requires_grad for p in parameters)


def test_other_safetensors_in_a_folder_are_not_counted(folder: Path) -> None:
    before, _ = fingerprint.predict(folder, torch.float32)

    save_file({"x": torch.zeros(1000)}, folder / "consolidated.safetensors")

    assert fingerprint.predict(folder, torch.float32)[0] == before


def test_a_base_in_several_files_is_the_same_base(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2]}
    parts["model-00002-of-00002.safetensors"] = names[1::2]
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file, {"format": "pt"})
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    (folder / WEIGHTS).unlink()

    split = loading.load(rq.LoadModel(source=str(folder)), SILENT).facts
    whole = loading.load(rq.LoadModel(source="starter"), SILENT).facts

    assert split.fingerprint == whole.fingerprint
    assert split.parameters == whole.parameters


def test_the_fingerprint_tells_bases_apart_and_not_their_precision(folder: Path) -> None:
    fp32 = loading.load(rq.LoadModel(source=str(folder), precision="fp32"), SILENT)
    bf16 = loading.load(rq.LoadModel(source=str(folder), precision="bf16"), SILENT)
    tensors = load_file(folder / WEIGHTS)
    tensors["model.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    changed = loading.load(rq.LoadModel(source=str(folder)), SILENT)

    assert fp32.facts.fingerprint == bf16.facts.fingerprint
    assert fp32.facts.fingerprint != changed.facts.fingerprint


def test_the_fingerprint_of_a_wrapped_base_is_that_of_the_base() -> None:
    base = loading.load(rq.LoadModel(source="starter"), SILENT)

    wrapped = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))

    assert fingerprint.fingerprint(base.model) == base.facts.fingerprint
    assert fingerprint.fingerprint(wrapped) == base.facts.fingerprint


def test_a_model_in_the_hub_cache_is_called_by_its_id(tmp_path: Path) -> None:
    cached = tmp_path / "models--someone--starter" / "snapshots" / ("a" * 40)
    cached.mkdir(parents=True)

    with pytest.raises(ModelError, match=r"someone/starter has no config\.json"):
        model_folder.check_folder(cached)
