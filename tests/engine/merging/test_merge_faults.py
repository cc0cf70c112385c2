"""Merges that cannot be right, or that break on the way: refused or undone, nothing is left."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.merging import merge, safetensors_io, streaming
from backend.engine.merging.safetensors_io import FileWriter
from backend.errors import (
    DiskFull,
    InvalidRequest,
    ModelError,
    Stopped,
    Unsupported,
    VerificationFailed,
)
from backend.files import safetensors_header
from tests.engine.merge_bench import (
    ADAPTERS,
    Bench,
)


@pytest.fixture
def tied(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


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
        (refuse_pissa, "lora", 1.0, Unsupported, r"pissa_niter_4\) changed the base"),
        (refuse_nan, "lora", 1.0, ModelError, "not finite"),
        (refuse_foreign_weights, "lora", 1.0, ModelError, "does not fit this base"),
        (refuse_tied_head, "head", 1.0, Unsupported, "tied embeddings"),
        (refuse_quantised_files, "lora", 1.0, Unsupported, "already quantised"),
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

    with pytest.raises(InvalidRequest, match=r"not an empty folder| is the |is inside|contains"):
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
    usage = shutil.disk_usage(tied.root)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(DiskFull, match=r"needs \d MB of disk space, but only 977 KB are free"):
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

    assert len(calls) in (6, 7)  # the next one may be on its way
    assert tied.left_behind() == []


def test_numbers_that_fp16_cannot_hold_are_found(tied: Bench) -> None:
    tied.add("lora")

    with pytest.raises(VerificationFailed, match="not finite after merging"):
        tied.merge(("lora", 1e7), precision="fp16")

    assert tied.left_behind() == []


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("harm", ["left out", "of the wrong sign", "of another adapter"])
def test_a_weak_adapter_that_is_merged_wrong_is_found(
    tied: Bench, monkeypatch: pytest.MonkeyPatch, precision: Any, harm: str
) -> None:
    """It changes less than bf16 rounds in a row's largest number, but not in each of them."""
    tied.add("lora")
    original = streaming.StreamedMerge.change

    def wrong(self: Any, key: str, weight: torch.Tensor) -> torch.Tensor:
        before = weight.clone()
        change = original(self, key, weight) - before
        if harm == "of the wrong sign":
            return before - change
        return before if harm == "left out" else before + change.roll(1, -1)

    tied.merge(("lora", 0.03), to="right", precision=precision)
    monkeypatch.setattr(streaming.StreamedMerge, "change", wrong)
    with pytest.raises(VerificationFailed, match="A recomputed row"):
        tied.merge(("lora", 0.03), precision=precision)


def test_a_weight_that_is_not_what_the_formula_gives_is_found(
    tied: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied.add("lora")
    original = streaming.StreamedMerge.change

    def wrong(self: Any, key: str, weight: torch.Tensor) -> torch.Tensor:
        return original(self, key, weight) * 1.001

    monkeypatch.setattr(streaming.StreamedMerge, "change", wrong)
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
    with pytest.raises(VerificationFailed, match="reads back differently"):
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
    """When a weight is read, one is being changed and one written; those before are gone."""
    import weakref

    tied.add("wide")
    alive: list[int] = []
    known: list[weakref.ref[torch.Tensor]] = []
    original = safetensors_io.read

    def counting(stored: safetensors_header.StoredTensor) -> torch.Tensor:
        alive.append(sum(ref() is not None for ref in known))
        tensor = original(stored)
        known.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(safetensors_io, "read", counting)
    tied.merge("wide")

    assert 1 <= max(alive) <= 2
