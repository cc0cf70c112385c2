"""Adapters of mlx-lm become PEFT's, compared with its formula in plain torch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from backend import requests as rq
from backend.errors import WorkbenchError
from tests.engine import tiny
from tests.engine.adapters.lifecycle.conftest import Bench, do

RANK = 3
Tensors = dict[str, torch.Tensor]


def random_weights(base: Path, *keys: str, dora: bool = False) -> Tensors:
    """Return lora_a (inputs, rank) and lora_b (rank, outputs) of these layers, and m (outputs,)."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for name, module in tiny.fresh(base).named_modules():
        if not name.endswith(keys):
            continue
        outputs, inputs = module.weight.shape
        tensors[f"{name}.lora_a"] = 0.1 * torch.randn(inputs, RANK, generator=generator)
        tensors[f"{name}.lora_b"] = 0.1 * torch.randn(RANK, outputs, generator=generator)
        if dora:
            length = module.weight.detach().norm(dim=1)
            tensors[f"{name}.m"] = length * (1 + 0.1 * torch.rand(outputs, generator=generator))
    return tensors


def write(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir()
    said = {
        "fine_tune_type": "lora",
        "model": "mlx-community/tiny-4bit",
        "num_layers": 16,
        "lora_parameters": {"rank": RANK, "scale": 2.5, "dropout": 0.1, "keys": ["x"]},
        "iters": 100,
        "optimizer_config": {"adam": {}},
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    return folder


def in_plain_torch(base: Path, tensors: Tensors, scale: float) -> list[float]:
    """Score with mlx-lm's own formula: y + scale * (x @ lora_a @ lora_b), and DoRA's lengths."""
    model, tokenizer = tiny.fresh(base), AutoTokenizer.from_pretrained(base)

    def follow(name: str) -> Any:
        down, up = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        sizes = tensors.get(f"{name}.m")

        def add(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            out = output + scale * (inputs[0] @ down @ up)
            if sizes is None:
                return out
            return out * sizes / (module.weight + scale * (down @ up).T).norm(dim=1)

        return add

    for name in {key.rsplit(".", 1)[0] for key in tensors}:
        model.get_submodule(name).register_forward_hook(follow(name))
    scores = []
    for text in tiny.TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            chances = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        scores.append(chances.gather(1, ids[0, 1:, None]).sum().item())
    return scores


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("scale", [20.0, 0.7])
def test_an_mlx_adapter_answers_as_its_formula_says(
    bench: Bench, tmp_path: Path, kind: str, scale: float
) -> None:
    tensors = random_weights(bench.base, "q_proj", "down_proj", dora=kind == "dora")
    tensors = {key: tensor * (0.1 if "lora_b" in key else 1) for key, tensor in tensors.items()}
    source = write(
        tmp_path / "mlx",
        tensors,
        fine_tune_type=kind,
        lora_parameters={"rank": RANK, "scale": scale, "dropout": 0.0},
    )

    report = do(bench, rq.InspectAdapter(source=str(source)))
    added = do(bench, rq.LoadAdapter(source=str(source), name="newcomer"))

    expected = in_plain_torch(bench.base, tensors, scale)
    assert expected != pytest.approx(tiny.plain_scores(bench.base, None), rel=2e-4)
    assert tiny.scores(bench.service, [("newcomer", 1.0)]) == pytest.approx(expected, rel=1e-5)
    kept = bench.service.library.folder(added.adapter.id)
    assert tiny.plain_scores(bench.base, kept) == pytest.approx(expected, rel=1e-5)
    assert (report.method, report.rank) == ("DoRA" if kind == "dora" else "LoRA", RANK)
    assert report.alpha == pytest.approx(scale * RANK)
    assert report.made_for == "mlx-community/tiny-4bit"
    assert report.notes[0].startswith("It is an MLX adapter and was converted to PEFT's form")
    assert report.notes[0] in added.notes


@pytest.mark.parametrize(
    ("parameters", "scale"),
    [
        ({"rank": RANK, "alpha": 6}, 6 / RANK),
        ({"rank": RANK, "alpha": RANK, "scale": 2.0}, 2.0),
        ({"scale": 2.0}, 2.0),
    ],
)
def test_the_scale_is_read_from_what_the_configuration_gives(
    bench: Bench, tmp_path: Path, parameters: dict[str, Any], scale: float
) -> None:
    tensors = random_weights(bench.base, "q_proj")
    source = write(tmp_path / "mlx", tensors, lora_parameters=parameters)

    do(bench, rq.LoadAdapter(source=str(source), name="newcomer"))

    expected = in_plain_torch(bench.base, tensors, scale)
    assert tiny.scores(bench.service, [("newcomer", 1.0)]) == pytest.approx(expected, rel=1e-5)


def test_an_older_mlx_adapter_without_a_kind_is_lora(bench: Bench, tmp_path: Path) -> None:
    tensors = random_weights(bench.base, "v_proj")
    source = write(tmp_path / "mlx", tensors, lora_layers=2)
    path = source / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["fine_tune_type"]
    path.write_text(json.dumps(config))
    (source / "0000100_adapters.safetensors").write_bytes(b"earlier")

    added = do(bench, rq.LoadAdapter(source=str(source), name="newcomer"))

    assert added.notes[0].endswith("left out: 0000100_adapters.safetensors.")

    expected = in_plain_torch(bench.base, tensors, 2.5)
    assert tiny.scores(bench.service, [("newcomer", 1.0)]) == pytest.approx(expected, rel=1e-5)


Q = "model.layers.0.self_attn.q_proj"
REFUSED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "the whole base": ({f"{Q}.weight": torch.ones(64, 64)}, {"fine_tune_type": "full"},
        "is not an adapter: MLX trained the whole base"),
    "another kind": ({}, {"fine_tune_type": "prompt"}, "an MLX adapter of the kind 'prompt'"),
    "whole layers inside": ({"model.embed_tokens.weight": torch.ones(4, 64)}, {},
        "'model.embed_tokens.weight', which is not an adapter weight of MLX"),
    "DoRA without magnitudes": ({}, {"fine_tune_type": "dora"}, "without its magnitudes"),
    "no scale": ({}, {"lora_parameters": {"rank": RANK}}, "does not say its scale"),
    "no parameters": ({}, {"lora_parameters": None}, "without its lora_parameters"),
    "scale and alpha": ({}, {"lora_parameters": {"rank": RANK, "scale": 10.0, "alpha": 16}},
        "gives both scale 10 and alpha 16"),
    "another rank": ({}, {"lora_parameters": {"rank": 8, "scale": 1}}, "says rank 8, but its"),
    "scale of words": ({}, {"lora_parameters": {"scale": "2"}}, "has scale = 2"),
    "scale is NaN": ({}, {"lora_parameters": {"scale": float("nan")}}, "has scale = nan"),
    "experts": ({f"{Q}.lora_a": torch.ones(2, RANK, 64)}, {}, "the experts of a mixture"),
    "embeddings": ({"model.embed_tokens.lora_a": torch.ones(64, RANK),
                    "model.embed_tokens.lora_b": torch.ones(RANK, 64)}, {},
        "changes the output head or the embeddings"),
    "NaN": ({f"{Q}.lora_a": torch.full((64, RANK), float("nan"))}, {}, "are not finite"),
    "half a layer": ({"model.layers.1.self_attn.q_proj.lora_a": torch.ones(64, RANK)}, {},
        "lacks a part of model.layers.1"),
    "another base": ({f"{Q}.lora_a": torch.ones(32, RANK)}, {}, "do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    bench: Bench, tmp_path: Path, case: str
) -> None:
    more, config, sentence = REFUSED[case]
    tensors = {key: t for key, t in random_weights(bench.base, "q_proj").items() if ".0." in key}
    source = write(tmp_path / "mlx", tensors | more, **config)

    report = do(bench, rq.InspectAdapter(source=str(source)))
    with pytest.raises(WorkbenchError) as refused:
        do(bench, rq.LoadAdapter(source=str(source)))

    assert report.verdict == "cannot"
    assert sentence in report.reasons[0].what
    assert sentence in str(refused.value)


def test_older_weights_and_cut_off_ones_are_said(bench: Bench, tmp_path: Path) -> None:
    source = write(tmp_path / "mlx", random_weights(bench.base, "q_proj"))
    weights = source / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(WorkbenchError, match="damaged or cut off"):
        do(bench, rq.LoadAdapter(source=str(source)))
    weights.rename(source / "adapters.npz")
    with pytest.raises(WorkbenchError, match=r"only as adapters\.npz"):
        do(bench, rq.LoadAdapter(source=str(source)))
