"""An `svd` blend of two adapters against PEFT's `add_weighted_adapter`: same product, less time."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from backend import requests as rq
from backend.engine.blending.blend_methods import blend_layer
from backend.engine.methods import low_rank, peft_io
from backend.engine.methods.low_rank import Factor
from backend.engine.models.linear_layers import Target
from benchmarks.interleave import interleaved
from benchmarks.report import Report, flags, read_flags

BAR, CLOSE = 50.0, 1e-5
WEIGHTS = (0.7, 0.3)
IDS = ("ad_first", "ad_second")
REQUEST = rq.Combine(
    name="blend", sources=list(zip(IDS, WEIGHTS, strict=True)), method="svd", rank=16
)


class Layers(nn.Module):
    """Seven blocks of two linear layers: side x side, and side x inner."""

    def __init__(self, side: int, inner: int, blocks: int) -> None:
        super().__init__()
        for number in range(blocks):
            self.add_module(f"square{number}", nn.Linear(side, side, bias=False))
            self.add_module(f"wide{number}", nn.Linear(inner, side, bias=False))


def main(arguments: list[str] | None = None) -> int:
    """Measure both ways in turns and compare their products."""
    parser = flags(__doc__, repeats="pairs")
    parser.set_defaults(pairs=3)  # each of PEFT's takes a minute
    chosen, words = read_flags(parser, arguments, pairs=1)
    side, inner, blocks = (64, 96, 1) if chosen.quick else (1024, 2816, 7)
    report = Report("svd_blend", "An svd blend against add_weighted_adapter", words)
    model = adapted(side, inner, blocks)
    with tempfile.TemporaryDirectory() as name:
        folders = [write(model, each, Path(name) / each) for each in IDS]
        found = interleaved(
            lambda: timed(lambda: ours(folders, Path(name) / "blend")),
            lambda: timed(lambda: by_peft(model)),
            pairs=chosen.pairs,
        )
        apart = distance(model, low_rank.read(Path(name) / "blend", "blend").layers)
    ratio = found.ratios(lambda seconds: 1 / seconds)
    judged = not chosen.quick
    report.add(
        "PEFT's time / ours", f"{ratio:.0f}", f">= {BAR:.0f}" if judged else "",
        ratio.median >= BAR if judged else None,
    )  # fmt: skip
    report.add("distance of the products", f"{apart:.1e}", f"<= {CLOSE:.0e}", apart <= CLOSE)
    report.notes.append(
        f"{2 * blocks} layers of {side} x {side} and {side} x {inner}, two adapters of rank 16 "
        f"into one of rank 16. Last pair: PEFT {found.peer[-1]:.2f} s, ours "
        f"{found.ours[-1]:.3f} s, which reads both adapters' files and writes the blend's.\n"
    )
    report.facts = {"threads": f"{torch.get_num_threads()} on both sides, which take turns"}
    return report.finish(save=chosen.save)


def adapted(side: int, inner: int, blocks: int) -> PeftModel:
    """Return layers with two random adapters of rank 16."""
    torch.manual_seed(0)
    layers = Layers(side, inner, blocks)
    targets = [name for name, _ in layers.named_children()]
    config = {"r": 16, "lora_alpha": 32, "target_modules": targets}
    model = get_peft_model(layers, LoraConfig(**config), adapter_name=IDS[0])
    model.add_adapter(IDS[1], LoraConfig(**config))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, std=0.02)
    return model


def write(model: PeftModel, adapter_id: str, folder: Path) -> Path:
    """Write an adapter as the library keeps it."""
    folder.mkdir()
    peft_io.write(model, adapter_id, folder)
    return folder


def timed(work: Callable[[], None]) -> float:
    """Return how many seconds something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ours(folders: list[Path], destination: Path) -> None:
    """Blend from file to file."""
    first, second = (low_rank.read(folder, folder.name) for folder in folders)
    with torch.no_grad():
        layers = {
            name: blend_layer([factor, second.layers[name]], WEIGHTS, REQUEST, 16)
            for name, factor in first.layers.items()
        }
    targets = [
        Target(name, factor.a.shape[1], factor.b.shape[0]) for name, factor in layers.items()
    ]
    destination.mkdir(exist_ok=True)
    low_rank.write(layers, targets, "", destination)


def by_peft(model: PeftModel) -> None:
    """Blend as PEFT does, with its default settings."""
    if "ad_peft" in model.peft_config:
        model.delete_adapter("ad_peft")
    model.base_model.add_weighted_adapter(list(IDS), list(WEIGHTS), "ad_peft", "svd", svd_rank=16)


def distance(model: PeftModel, layers: dict[str, Factor]) -> float:
    """Return |ours - PEFT's| / |PEFT's| over all layers."""
    gap = size = 0.0
    for name, factor in layers.items():
        change = model.base_model.model.get_submodule(name).get_delta_weight("ad_peft").detach()
        gap += float((factor.change() - change).double().square().sum())
        size += float(change.double().square().sum())
    return (gap / size) ** 0.5


if __name__ == "__main__":
    raise SystemExit(main())
