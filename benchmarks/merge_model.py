"""Merge and save a large model tensor by tensor, against `merge_and_unload` and `save_pretrained`.

Each side runs in a process of its own, so that its highest memory is its own. Ours is timed with
its proofs (rows recomputed in float64, files read back) and without comparing answers, which loads
the model afterwards and is told apart.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from backend.service.worker_process import STREAMING
from benchmarks import models
from benchmarks.interleave import interleaved
from benchmarks.report import Report, flags, read_flags

BAR, TENSORS = 0.6, 8
LARGE = models.Size(width=2048, inner=5632, layers=8, heads=16)
SHARD_BYTES = {True: 1_000_000, False: 300_000_000}


def main(arguments: list[str] | None = None) -> int:
    """Measure and report."""
    chosen, words = read_flags(flags(__doc__, repeats="pairs"), arguments, pairs=1)
    report = Report("merge_model", "Merging a model to disk against PEFT in memory", words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = models.random_llama(folder / "base", models.TINY if chosen.quick else LARGE)
        adapter = write_adapter(base, folder / "adapter")
        run = Sides(folder, base, adapter, SHARD_BYTES[chosen.quick])
        found = interleaved(lambda: run("ours"), lambda: run("peer"), pairs=chosen.pairs)
        tell(found.ours, found.peer, report, judged=not chosen.quick)
        report.facts = {"model": models.describe(base), "runs": f"{chosen.pairs} pairs"}
    return report.finish(save=chosen.save)


class Sides:
    """Runs one side in a new process and checks that both wrote the same bits."""

    def __init__(self, folder: Path, base: Path, adapter: Path, shard_bytes: int) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._base, self._adapter = base, adapter

    def __call__(self, side: str) -> dict[str, Any]:
        target = self._folder / side
        shutil.rmtree(target, ignore_errors=True)
        order = [side, self._base, self._adapter, target, self._shard_bytes]
        command = [sys.executable, "-m", "benchmarks.merge_model", "--side", *map(str, order)]
        own = STREAMING if side == "ours" else {}  # as the app starts a merge
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **own}
        ).stdout
        return dict(json.loads(output.splitlines()[-1]))


def tell(
    ours: list[dict[str, Any]], peer: list[dict[str, Any]], report: Report, *, judged: bool
) -> None:
    """Add the figures; memory is judged in its worst run."""
    ratios = sorted(a["seconds"] / b["seconds"] for a, b in zip(ours, peer, strict=True))
    ratio = ratios[len(ratios) // 2]
    report.add(
        "time to merge and save, ours / PEFT",
        f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        f"<= {BAR}" if judged else "",
        ratio <= BAR if judged else None,
    )
    worst = max(ours, key=lambda one: one["peak"])
    allowed = worst["adapter"] + TENSORS * worst["largest"]
    report.add(
        "memory above idle, ours",
        f"{worst['peak'] / 1e6:.0f} MB",
        f"<= {allowed / 1e6:.0f} MB (adapter + {TENSORS}x the largest tensor)" if judged else "",
        worst["peak"] <= allowed if judged else None,
    )
    report.add("memory above idle, PEFT", f"{max(p['peak'] for p in peer) / 1e6:.0f} MB")
    report.add("time with answers compared too, ours", f"{ours[-1]['whole']:.1f} s")
    same = all(a["digest"] == b["digest"] for a, b in zip(ours, peer, strict=True))
    report.add("same bits on disk", "yes" if same else "no", "yes", same)
    report.notes.append(
        f"Last pair: {ours[-1]['seconds']:.1f} s and {peer[-1]['seconds']:.1f} s; "
        f"adapter {worst['adapter'] / 1e6:.1f} MB, largest tensor {worst['largest'] / 1e6:.0f} MB."
    )


def write_adapter(base: Path, folder: Path) -> Path:
    """Write a LoRA adapter of rank 16 on all linear layers, with random weights."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    peft = get_peft_model(model, lora)
    torch.manual_seed(1)
    for name, parameter in peft.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.01)
    peft.save_pretrained(folder)
    return folder


# -- one side, in its own process ----------------------------------------------------------------


def one_side(side: str, base: Path, adapter: Path, target: Path, shard_bytes: int) -> None:
    """Merge, and print time and memory above idle as JSON."""
    from backend.engine.core import memory
    from backend.engine.core.library_logging import quiet_libraries

    quiet_libraries()
    cpu = torch.device("cpu")
    from backend.engine.merging import merge  # noqa: F401 - imports belong to idle

    merge_side = _ours if side == "ours" else _peer
    target.mkdir()
    memory.release(cpu)
    idle = memory.resident(cpu)
    memory.reset_peak(cpu)
    started = time.monotonic()
    merge_side(base, adapter, target, shard_bytes)
    seconds, peak = time.monotonic() - started, memory.peak(cpu) - idle
    whole = seconds + (_compare_answers(base, adapter, target) if side == "ours" else 0.0)
    print(json.dumps({"seconds": seconds, "peak": peak, "whole": whole, **_facts(adapter, target)}))


def _ours(base: Path, adapter: Path, target: Path, shard_bytes: int) -> None:
    from backend.engine.core.job_control import Control
    from backend.engine.merging import streaming

    part = streaming.Part("ad_bench1", "bench", adapter, 1.0)
    streamed = streaming.StreamedMerge(base, [part])
    streamed.obstacle("", torch.float32)  # its time counts; the fingerprint is not known here
    wanted = streaming.planned(streamed.stored.values(), torch.float32)
    shards = streaming.plan(wanted, shard_bytes)
    control = Control(0, lambda message: None)
    streaming.write(streamed, target, shards, compute=torch.float32, control=control)


def _peer(base: Path, adapter: Path, target: Path, shard_bytes: int) -> None:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged: Any = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(target, max_shard_size=shard_bytes)


def _compare_answers(base: Path, adapter: Path, target: Path) -> float:
    """Time what comparing answers adds: both models are loaded and read eight short texts."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    from backend.engine.merging.merge import TEXTS

    started = time.monotonic()
    shutil.copyfile(base / "config.json", target / "config.json")
    tokenizer = AutoTokenizer.from_pretrained(base)
    for folder, wrap in ((base, True), (target, False)):
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, adapter) if wrap else model
        with torch.inference_mode():
            for text in TEXTS:
                model(**tokenizer(text, return_tensors="pt"))
    return time.monotonic() - started


def _facts(adapter: Path, target: Path) -> dict[str, Any]:
    """Return the sizes that memory is judged by, and a digest of what was written."""
    import hashlib

    from backend.engine.merging.safetensors_io import as_bytes, read
    from backend.files.safetensors_header import read_header

    stored = sorted(t for file in target.glob("*.safetensors") for t in read_header(file))
    digest = hashlib.sha256()
    for tensor in stored:
        digest.update(tensor.key.encode())
        digest.update(as_bytes(read(tensor)))
    return {
        "adapter": (adapter / "adapter_model.safetensors").stat().st_size,
        "largest": max(tensor.bytes for tensor in stored),
        "digest": digest.hexdigest(),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        name, *paths, limit = sys.argv[2:]
        one_side(name, *map(Path, paths), int(limit))  # type: ignore[call-arg]
        raise SystemExit(0)
    raise SystemExit(main())
