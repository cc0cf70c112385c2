"""Merging to disk: bit for bit what PEFT merges in memory, in a folder that loads like any base."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend import results as rs
from backend.engine.core import memory
from backend.engine.merging import in_memory, streaming
from backend.errors import Unsupported
from backend.settings import STARTER
from tests.architectures.tiny_models import write_model
from tests.engine.merge_bench import (
    ADAPTERS,
    SILENT,
    TOKENIZER,
    Bench,
    assert_same_bits,
    plain_peft,
    written,
)


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


@pytest.mark.parametrize("block_bytes", [3_000, 50_000])
def test_merging_in_blocks_of_rows_keeps_every_bit(
    tied: Bench, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", block_bytes)
    variant = [("lora", 0.5), ("patterns", 2.0)]
    for name, _ in variant:
        tied.add(name)

    merged = tied.merge(*variant)

    assert merged.notes == []
    assert_same_bits(written(merged.path), plain_peft(tied, variant, torch.float32))


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

    facts = tied.facts.model_dump() | {"precision": "bf16", "quantization": "nf4"}
    tied.facts = Quantised(**facts)
    merged = tied.merge("lora")

    assert merged.precision == "fp32"
    assert_same_bits(written(merged.path), plain_peft(tied, [("lora", 1.0)], torch.float32))
    assert "quantization_config" not in (Path(merged.path) / "config.json").read_text()


def mixtral(tmp_path: Path) -> Bench:
    """A base whose experts Transformers 5 fuses into one parameter when it loads them."""
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
    return bench


@pytest.mark.parametrize("streamed", [True, False])
def test_weights_beside_those_that_transformers_fuses_are_merged_as_peft_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    bench = mixtral(tmp_path)
    ADAPTERS["attention"] = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    bench.add("attention")
    if not streamed:
        monkeypatch.setattr(streaming.StreamedMerge, "obstacle", lambda *_: "a reason")

    merged = bench.merge("attention")

    assert bool(merged.notes) != streamed
    assert streamed or "Merged in memory" in merged.notes[0]
    assert written(merged.path).keys() == written(bench.folder).keys()
    model = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    assert_same_bits(model.state_dict(), plain_peft(bench, [("attention", 1.0)], torch.float32))


def test_a_fused_weight_that_peft_changed_is_written_as_its_parts(tmp_path: Path) -> None:
    bench = mixtral(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(bench.folder, dtype=torch.float32)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    merged.get_parameter(name).data.add_(0.25)
    (tmp_path / "new").mkdir()

    proof = in_memory.write(
        merged, bench.folder, tmp_path / "new", dtype=torch.float32, shard_bytes=500_000,
        control=SILENT,
    )  # fmt: skip

    assert proof.startswith("4 tensors were changed")  # two matrices of each of two experts
    before, after = written(bench.folder), written(tmp_path / "new")
    assert before.keys() == after.keys()
    shutil.copyfile(bench.folder / "config.json", tmp_path / "new" / "config.json")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.float32)
    assert_same_bits(model.state_dict(), merged.state_dict())


def test_a_linear_weight_that_transformers_makes_of_others_is_merged_and_written_back(
    tmp_path: Path,
) -> None:
    """The files of HRM hold query, key and value of a layer as one tensor."""
    bench = Bench(tmp_path)
    shutil.rmtree(bench.folder)
    write_model(bench.folder, "hrm_text")
    bench.facts = bench.load()
    ADAPTERS["attention"] = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    bench.add("attention")

    merged = bench.merge("attention")

    assert "as one tensor" in merged.notes[0]
    assert written(merged.path).keys() == written(bench.folder).keys()
    model = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    assert_same_bits(model.state_dict(), plain_peft(bench, [("attention", 1.0)], torch.float32))


def test_files_of_another_model_with_fused_weights_are_not_merged(tmp_path: Path) -> None:
    bench = mixtral(tmp_path)
    ADAPTERS["attention"] = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    bench.add("attention")
    model = AutoModelForCausalLM.from_pretrained(bench.folder, dtype=torch.float32)
    model.get_parameter("model.layers.1.mlp.experts.down_proj").data.mul_(2)
    model.save_pretrained(bench.folder)

    with pytest.raises(Unsupported, match="have changed since it was loaded"):
        bench.merge("attention")


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
    assert "lora at strength 0.5 (LoRA, rank 4, trained on starter:pirate)" in text
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
        "Answers were not compared (this needs 288 MB of memory, and 977 KB are free)"
        in merged.verified
    )
    assert "two rows of each of the 6 changed weights" in merged.verified
