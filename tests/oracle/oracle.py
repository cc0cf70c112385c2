"""The oracle: one long-lived process of plain PEFT, asked from here (`plain_peft`)."""

import atexit
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import safe_open

PROJECT = Path(__file__).parents[2]
Parts = Sequence[tuple[Path, float]]
"""Adapter folders with their strengths."""


def scores(base: Path, parts: Parts) -> list[float]:
    """Score the texts on a fresh base with these adapters active, in this order."""
    found: list[float] = process().ask("scores", str(base), _plain(parts))
    return found


def blended(base: Path, parts: Parts, method: str, *, seed: int, **options: Any) -> list[float]:
    """Score the texts with the blend that PEFT's own `add_weighted_adapter` makes of adapters."""
    options["combination_type"] = method
    found: list[float] = process().ask("blended", str(base), _plain(parts), options, seed)
    return found


def compressed(base: Path, folder: Path, rank: int) -> list[float]:
    """Score the texts with the closest change of a rank to what an adapter does."""
    found: list[float] = process().ask("compressed", str(base), [(str(folder), 1.0)], rank)
    return found


def largest_rank(folder: Path) -> int:
    """Return the rank beyond which no layer of an adapter can hold anything more."""
    with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    downs = {key: shape for key, shape in shapes.items() if ".lora_A." in key}
    return max(min(s[1], shapes[key.replace("lora_A", "lora_B")][0]) for key, s in downs.items())


def blends_right(base: Path, folders: Sequence[Path], rank: int | None) -> bool:
    """Tell whether PEFT 0.21.2 blends such adapters right, as far as their configurations tell.

    It takes everything but the targets from the first one, so each has to be plain LoRA by names;
    and a rank beyond the smallest layer leaves an adapter that cannot compute.
    """
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    shape = json.loads((base / "config.json").read_text())
    heads = shape["hidden_size"] // shape["num_attention_heads"]
    narrowest = heads * shape["num_key_value_heads"]
    return len(configs) > 1 and all(
        isinstance(config["target_modules"], list)
        and max(config["r"], rank or 1) <= narrowest
        and config["init_lora_weights"] is True
        and not any(config.get(field) for field in _ODD)
        for config in configs
    )


_ODD = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform")


class Process:
    """The other process, and one question to it after the other."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.oracle.plain_peft"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._child.pid

    def ask(self, name: str, *arguments: Any) -> Any:
        """Ask a question; raises RuntimeError with the other side's traceback where it failed."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([name, arguments]) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"The oracle ended with status {self._child.wait()}.")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"Plain PEFT failed: {reply['error']}")
        return reply["answer"]

    def close(self) -> None:
        self._child.terminate()
        self._child.communicate()  # which closes the pipes, too


@lru_cache(maxsize=1)
def process() -> Process:
    """Return the process, which is started when it is first asked."""
    started = Process()
    atexit.register(started.close)
    return started


def _plain(parts: Parts) -> list[tuple[str, float]]:
    return [(str(folder), strength) for folder, strength in parts]
