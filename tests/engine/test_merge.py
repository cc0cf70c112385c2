"""Merging to disk: bit for bit what PEFT merges in memory, proved, whole or not at all."""

import errno
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from backend import checkpoint
from backend import requests as rq
from backend import results as rs
from backend.engine import base_model, memory, merge, merge_stream
from backend.engine.control import Control
from backend.engine.safetensors_stream import FileWriter
from backend.errors import (
    DiskFull,
    InvalidRequest,
    ModelError,
    Stopped,
    Unsupported,
    VerificationFailed,
)
from backend.library import Library, new_adapter_id
from backend.settings import STARTER

SILENT = Control(0, lambda message: None)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "wide": {"r": 8, "lora_alpha": 4, "target_modules": "all-linear"},
    "rslora": {"r": 8, "use_rslora": True, "target_modules": ["q_proj", "gate_proj"]},
    "dora": {"r": 4, "use_dora": True, "target_modules": ["q_proj", "o_proj", "up_proj"]},
    "dora2": {"r": 2, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {"k_proj": 32},
    },
}


class Bench:
    """A small base on disk, loaded facts, and a library of random adapters made for it."""

    def __init__(self, root: Path, *, tied: bool = True, precision: str = "fp32") -> None:
        self.root = root
        self.folder = small_llama(root / "base", tied=tied)
        self.library = Library(root / "adapters")
        self.precision = precision
        self.facts = self.load()

    def load(self) -> rs.ModelFacts:
        request = rq.LoadModel(source=str(self.folder), precision=self.precision)
        return base_model.load(request, SILENT).facts

    def add(self, name: str, **changes: Any) -> rs.AdapterInfo:
        config = LoraConfig(**{**ADAPTERS.get(name, ADAPTERS["lora"]), "task_type": "CAUSAL_LM"})
        id = new_adapter_id()
        base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        model = get_peft_model(base, config, adapter_name=id)
        torch.manual_seed(sum(name.encode()))
        for key, parameter in model.named_parameters():
            if ".lora_B." in key:
                parameter.data.normal_(0, 0.05)
            if "magnitude" in key:
                parameter.data.mul_(1 + 0.2 * torch.rand_like(parameter))
        model.save_pretrained(str(self.root / "saved"), save_embedding_layers=False)
        self.library.root.mkdir(exist_ok=True)
        (self.root / "saved" / id).rename(self.library.folder(id))
        fields = {
            "id": id, "name": name, "colour": "#000000", "method": "LoRA", "rank": config.r,
            "parameters": 100, "base_name": "base", "created": time.time(),
            "base_fingerprint": self.facts.fingerprint,
        }  # fmt: skip
        info = rs.AdapterInfo(**{**fields, **changes})
        self.library.write_sidecar(self.library.folder(id), info)
        return info

    def merge(self, *variant: str | tuple[str, float], to: str = "merged", **fields: Any) -> Any:
        pairs = [(each, 1.0) if isinstance(each, str) else each for each in variant]
        request = rq.Merge(variant=pairs, destination=str(self.root / to), **fields)
        control = fields.pop("control", SILENT)
        return merge.merge(request, control, library=self.library, base=self.facts)

    def left_behind(self) -> list[str]:
        known = {"base", "adapters", "saved"}
        return sorted(path.name for path in self.root.iterdir() if path.name not in known)


def small_llama(folder: Path, *, tied: bool) -> Path:
    """Write a Llama with random weights and the starter's tokenizer."""
    torch.manual_seed(1)
    config = json.loads((STARTER / "model" / "config.json").read_text(encoding="utf-8"))
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=config["vocab_size"],
            max_position_embeddings=128,
            tie_word_embeddings=tied,
        )
    )
    model.save_pretrained(folder, max_shard_size="150KB")
    for name in TOKENIZER:
        shutil.copyfile(STARTER / "model" / name, folder / name)
    return folder


def plain_peft(
    bench: Bench, variant: list[tuple[str, float]], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Merge with PEFT alone on a fresh model: the oracle."""
    model = AutoModelForCausalLM.from_pretrained(bench.folder, dtype=dtype)
    ids = [bench.library.get(name).id for name, _ in variant]
    peft = PeftModel.from_pretrained(model, bench.library.folder(ids[0]), adapter_name=ids[0])
    for id in ids[1:]:
        peft.load_adapter(bench.library.folder(id), adapter_name=id)
    peft.base_model.set_adapter(ids)
    for layer in peft.modules():
        if isinstance(layer, LoraLayer):
            for id, (_, strength) in zip(ids, variant, strict=True):
                layer.set_scale(id, strength)
    state: dict[str, torch.Tensor] = peft.merge_and_unload().state_dict()
    return state


def written(folder: str | Path) -> dict[str, torch.Tensor]:
    files = sorted(Path(folder).glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    missing = expected.keys() - found.keys()
    assert missing <= {"lm_head.weight"}  # tied: stored once, as in the source
    for key, tensor in found.items():
        assert tensor.dtype == expected[key].dtype, key
        assert torch.equal(tensor, expected[key]), key


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(tmp_path, tied=request.param)


@pytest.fixture
def tied(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# -- the same as PEFT ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        [("lora", 1.0)],
        [("wide", 0.4)],
        [("lora", -1.5)],
        [("rslora", 1.0)],
        [("dora", 1.0)],
        [("patterns", 0.7)],
        [("lora", 0.5), ("rslora", 0.8)],
        [("lora", 0.5), ("dora", 1.0), ("patterns", 2.0)],
        [("dora", 1.0), ("lora", 1.0), ("dora2", 1.0)],
    ],
    ids=lambda variant: "+".join(f"{name}*{strength:g}" for name, strength in variant),
)
def test_a_streamed_merge_is_bit_for_bit_what_peft_merges(
    bench: Bench, variant: list[tuple[str, float]]
) -> None:
    for name, _ in variant:
        bench.add(name)

    merged = bench.merge(*variant, shard_bytes=1_000_000)

    assert merged.notes == []  # streamed, not merged in memory
    assert_same_bits(written(merged.path), plain_peft(bench, variant, torch.float32))
    assert merged.max_difference is not None
    assert merged.max_difference < 1e-5


@pytest.mark.parametrize("variant", ["lora", "patterns", "dora"])
def test_a_bf16_base_is_merged_in_bf16_bit_for_bit(tmp_path: Path, variant: str) -> None:
    bench = Bench(tmp_path, precision="bf16")
    bench.add(variant)

    merged = bench.merge(variant)

    assert (merged.precision, merged.notes) == ("bf16", [])
    assert_same_bits(written(merged.path), plain_peft(bench, [(variant, 1.0)], torch.bfloat16))


def test_a_narrower_precision_rounds_once_at_the_end(tied: Bench) -> None:
    tied.add("lora")
    expected = plain_peft(tied, [("lora", 1.0)], torch.float32)

    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        merged = tied.merge("lora", to=precision, precision=precision)
        rounded = {key: tensor.to(dtype) for key, tensor in expected.items()}
        assert_same_bits(written(merged.path), rounded)
        config = json.loads((Path(merged.path) / "config.json").read_text(encoding="utf-8"))
        assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_a_wider_precision_starts_from_the_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path, precision="bf16")
    bench.add("lora")

    merged = bench.merge("lora", precision="fp32")

    assert_same_bits(written(merged.path), plain_peft(bench, [("lora", 1.0)], torch.float32))


def test_a_quantised_session_merges_into_the_full_precision_files(tied: Bench) -> None:
    tied.add("lora")

    class Quantised(rs.ModelFacts):
        quantization: str = "4bit"

    facts = tied.facts.model_dump() | {"precision": "bf16"}
    tied.facts = Quantised(**facts)
    merged = tied.merge("lora")

    assert merged.precision == "fp32"
    assert_same_bits(written(merged.path), plain_peft(tied, [("lora", 1.0)], torch.float32))
    assert "quantization_config" not in (Path(merged.path) / "config.json").read_text()


def test_weights_that_transformers_fuses_are_merged_in_memory_and_it_says_so(
    tmp_path: Path,
) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    bench = Bench(tmp_path)
    shutil.rmtree(bench.folder)
    torch.manual_seed(1)
    config = MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, vocab_size=bench.facts.vocabulary + 10,
        max_position_embeddings=128,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(bench.folder)
    for name in TOKENIZER:
        shutil.copyfile(STARTER / "model" / name, bench.folder / name)
    bench.facts = bench.load()
    ADAPTERS["attention"] = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    bench.add("attention")

    merged = bench.merge("attention")

    assert "Merged in memory" in merged.notes[0]
    model = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    assert_same_bits(model.state_dict(), plain_peft(bench, [("attention", 1.0)], torch.float32))


# -- the folder that is written ------------------------------------------------------------------


def test_shards_have_an_index_and_read_back_like_any_model(bench: Bench) -> None:
    bench.add("lora")

    merged = bench.merge("lora", shard_bytes=1_000_000)

    folder = Path(merged.path)
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert merged.files == len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in written(folder).values())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    tied = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert tied == bench.facts.tied_embeddings
    assert ("lm_head.weight" in index["weight_map"]) != tied


def test_the_card_tells_where_it_came_from(tied: Bench) -> None:
    tied.add("lora", data="starter:pirate")
    tied.add("dora", recipe="0.7 a + 0.3 b (cat)")

    merged = tied.merge(("lora", 0.5), "dora")

    text = (Path(merged.path) / "README.md").read_text(encoding="utf-8")
    assert f"fingerprint {tied.facts.fingerprint}" in text
    assert "lora at strength 0.5 (LoRA, rank 4, learned from starter:pirate)" in text
    assert "dora at strength 1 (LoRA, rank 4, 0.7 a + 0.3 b (cat))" in text
    assert merged.verified in text
    for name in TOKENIZER:
        assert (Path(merged.path) / name).read_bytes() == (tied.folder / name).read_bytes()
    assert str(tied.root) not in text


def test_where_memory_does_not_hold_the_model_that_is_said(
    tied: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied.add("lora")
    monkeypatch.setattr(memory, "available", lambda device: 1_000_000)

    merged = tied.merge("lora")

    assert merged.max_difference is None
    assert (
        "Comparing answers: not done (it needs 0.3 GB of memory, and 0.0 GB are free)"
        in merged.verified
    )
    assert "two rows of each of the 6 changed weights" in merged.verified


# -- refused before anything is written ----------------------------------------------------------


def refuse_other_base(bench: Bench) -> None:
    bench.add("lora", base_fingerprint="another")


def refuse_strength_of_dora(bench: Bench) -> None:
    ADAPTERS["half"] = ADAPTERS["dora"]
    bench.add("half")


def refuse_modules_to_save(bench: Bench) -> None:
    configure(bench.library.folder(bench.add("lora").id), modules_to_save=["lm_head"])


def refuse_tokens(bench: Bench) -> None:
    configure(bench.library.folder(bench.add("lora").id), trainable_token_indices=[1])


def refuse_bias(bench: Bench) -> None:
    configure(bench.library.folder(bench.add("lora").id), bias="all")


def refuse_pissa(bench: Bench) -> None:
    configure(bench.library.folder(bench.add("lora").id), init_lora_weights="pissa_niter_4")


def refuse_nan(bench: Bench) -> None:
    spoil(bench.library.folder(bench.add("lora").id), float("nan"))


def refuse_foreign_weights(bench: Bench) -> None:
    file = bench.library.folder(bench.add("lora").id) / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(2, 2)}, file)


def refuse_tied_head(bench: Bench) -> None:
    ADAPTERS["head"] = {"r": 2, "target_modules": ["q_proj", "lm_head"]}
    bench.add("head")


def refuse_quantised_files(bench: Bench) -> None:
    bench.add("lora")
    configure(bench.folder, "config.json", quantization_config={"quant_method": "gptq"})


def refuse_changed_files(bench: Bench) -> None:
    bench.add("lora")
    for file in bench.folder.glob("*.safetensors"):
        save_file({key: tensor + 1 for key, tensor in load_file(file).items()}, file)


def configure(folder: Path, name: str = "adapter_config.json", **changes: Any) -> None:
    config = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps({**config, **changes}), encoding="utf-8")


def spoil(folder: Path, value: float) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    last = max(key for key in tensors if "lora_B" in key)
    tensors[last][-1, -1] = value
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("spoil", "name", "strength", "kind", "words"),
    [
        (refuse_other_base, "lora", 1.0, Unsupported, "was made for the base"),
        (refuse_strength_of_dora, "half", 0.5, Unsupported, "strength 1 only, got 0.5"),
        (refuse_modules_to_save, "lora", 1.0, Unsupported, "modules_to_save"),
        (refuse_tokens, "lora", 1.0, Unsupported, "trainable_token_indices"),
        (refuse_bias, "lora", 1.0, Unsupported, "biases"),
        (refuse_pissa, "lora", 1.0, Unsupported, "pissa_niter_4, which changed the base"),
        (refuse_nan, "lora", 1.0, ModelError, "not finite"),
        (refuse_foreign_weights, "lora", 1.0, ModelError, "does not fit this base"),
        (refuse_tied_head, "head", 1.0, Unsupported, "tied embeddings"),
        (refuse_quantised_files, "lora", 1.0, Unsupported, "quantised themselves"),
        (refuse_changed_files, "lora", 1.0, Unsupported, "changed since it was loaded"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_what_cannot_be_merged_right_is_refused_and_nothing_is_written(
    tied: Bench,
    spoil: Callable[[Bench], None],
    name: str,
    strength: float,
    kind: type[Exception],
    words: str,
) -> None:
    spoil(tied)

    with pytest.raises(kind, match=words):
        tied.merge((name, strength))

    assert tied.left_behind() == []


def test_an_adapter_named_twice_is_refused(tied: Bench) -> None:
    tied.add("lora")
    with pytest.raises(InvalidRequest, match="named twice"):
        tied.merge("lora", ("lora", 0.5))


@pytest.mark.parametrize("to", ["base", "base/inside", ".", "full"])
def test_a_folder_that_is_not_new_and_apart_is_refused(tied: Bench, to: str) -> None:
    tied.add("lora")
    (tied.root / "full").mkdir()
    (tied.root / "full" / "precious.txt").write_text("mine", encoding="utf-8")
    before = sorted(tied.root.rglob("*"))

    with pytest.raises(InvalidRequest, match=r"not an empty folder|within each other"):
        tied.merge("lora", to=to)

    assert sorted(tied.root.rglob("*")) == before


def test_an_empty_folder_may_be_filled(tied: Bench) -> None:
    tied.add("lora")
    (tied.root / "merged").mkdir()

    assert (Path(tied.merge("lora").path) / "config.json").is_file()


def test_a_disk_that_is_too_full_is_named_before_anything_is_written(
    tied: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied.add("lora")
    usage = shutil.disk_usage(tied.root)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(DiskFull, match="needs 18 MB of disk, and 10 MB are free"):
        tied.merge("lora")


# -- faults on the way ---------------------------------------------------------------------------


def test_a_disk_that_fills_half_way_leaves_nothing(
    tied: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied.add("lora")
    original, calls = FileWriter.write, []

    def full(self: FileWriter, tensor: torch.Tensor) -> None:
        calls.append(tensor)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, tensor)

    monkeypatch.setattr(FileWriter, "write", full)
    with pytest.raises(DiskFull, match="No space left"):
        tied.merge("lora", shard_bytes=1_000_000)
    monkeypatch.undo()

    assert tied.left_behind() == []
    assert tied.merge("lora").max_difference is not None


def test_cancel_leaves_nothing(tied: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tied.add("lora")
    control = Control(0, lambda message: None)
    original, calls = FileWriter.write, []

    def cancelling(self: FileWriter, tensor: torch.Tensor) -> None:
        original(self, tensor)
        calls.append(tensor)
        if len(calls) == 6:
            control.hear("stop")

    monkeypatch.setattr(FileWriter, "write", cancelling)
    request = rq.Merge(variant=[("lora", 1.0)], destination=str(tied.root / "merged"))
    with pytest.raises(Stopped):
        merge.merge(request, control, library=tied.library, base=tied.facts)

    assert len(calls) == 6
    assert tied.left_behind() == []


def test_numbers_that_fp16_cannot_hold_are_found(tied: Bench) -> None:
    tied.add("lora")

    with pytest.raises(VerificationFailed, match="not finite after merging"):
        tied.merge(("lora", 1e7), precision="fp16")

    assert tied.left_behind() == []


def test_a_weight_that_is_not_what_the_formula_gives_is_found(
    tied: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied.add("lora")
    original = merge_stream.StreamedMerge.change

    def wrong(self: Any, key: str, weight: torch.Tensor) -> torch.Tensor:
        return original(self, key, weight) * 1.001

    monkeypatch.setattr(merge_stream.StreamedMerge, "change", wrong)
    with pytest.raises(VerificationFailed, match="A recomputed row"):
        tied.merge("lora")

    assert tied.left_behind() == []


def test_a_file_that_does_not_read_back_is_found(
    tied: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied.add("lora")
    original = FileWriter.write

    def flipped(self: FileWriter, tensor: torch.Tensor) -> None:
        original(self, -tensor)

    monkeypatch.setattr(FileWriter, "write", flipped)
    with pytest.raises(VerificationFailed, match="does not read back"):
        tied.merge("lora")


def test_answers_that_differ_undo_the_merge(tied: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tied.add("lora")
    monkeypatch.setattr(merge, "_reference", lambda *args: [-1.0] * len(merge.TEXTS))

    with pytest.raises(VerificationFailed, match="The merged model was read back: the answers"):
        tied.merge("lora")

    assert tied.left_behind() == []


def test_what_a_killed_process_left_is_removed(tied: Bench) -> None:
    tied.add("lora")
    (tied.root / ".merged.1a2b3c4d.partial").mkdir()

    tied.merge("lora")

    assert tied.left_behind() == ["merged"]


def test_only_a_few_weights_are_in_memory_at_a_time(
    tied: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight that came by is gone when the next but one is read."""
    import weakref

    tied.add("wide")
    alive: list[int] = []
    known: list[weakref.ref[torch.Tensor]] = []
    original = merge_stream.read

    def counting(stored: checkpoint.StoredTensor) -> torch.Tensor:
        alive.append(sum(ref() is not None for ref in known))
        tensor = original(stored)
        if "lora_" not in stored.key:
            known.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(merge_stream, "read", counting)
    tied.merge("wide")

    assert max(alive) <= 1
