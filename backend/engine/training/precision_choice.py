"""The compute precision of a run: measured once per base, machine and kind of step.

The measured times are kept in the workspace. So the same settings give the same precision, and with
the same seed the same adapter, however busy the machine is.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from pydantic import TypeAdapter

from backend.catalogue.methods import method_of
from backend.engine.core import devices
from backend.engine.models import loading
from backend.engine.models.loading import Base
from backend.engine.training import divergence, step_loss
from backend.engine.training.packing import Packs
from backend.files import damaged_files
from backend.files.atomic_files import write_text
from backend.requests import Train
from backend.results import ModelFacts
from backend.results.training_layout import TrainingLayout

ROUNDS = 3
_TIMES = TypeAdapter(dict[str, list[float]])
HOW = "lean-layers"
"""The version of the measuring method; times of another version are not used."""
WORTH_IT = 0.8
"""How fast bf16 has to be, relative to fp32, to be chosen: it is a little less exact, and on a
processor oneDNN compiles kernels for each length of a pack (`few_lengths`)."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds per token of a training step by precision; on a base in fp16, `bf16` is fp16."""

    fp32: float
    bf16: float

    @property
    def faster(self) -> str:
        return "bf16" if self.bf16 < WORTH_IT * self.fp32 else "fp32"

    def of(self, precision: str) -> float:
        return self.fp32 if precision == "fp32" else self.bf16


def without_timing(train: Train, stored: str, device: torch.device) -> tuple[str, str] | None:
    """Return a run's compute precision and why; None where it has to be measured."""
    if stored == "fp16":
        return stored, "the weights are stored in fp16; losses are scaled, so no gradient vanishes"
    if stored != "fp32":
        return stored, f"the weights are stored in {stored}"
    if train.precision != "auto":
        return train.precision, "as chosen"
    if not devices.computes_bf16(device):
        return "fp32", loading.EMULATED
    return None


class Timings:
    """The step times measured on this machine."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(
        self, train: Train, facts: ModelFacts, layout: TrainingLayout = "packed"
    ) -> StepTimes | None:
        """Return the measured times for such steps on a base, if there are any."""
        found = self._read().get(_key(train, facts, layout))
        return StepTimes(*found) if found else None

    def measure(self, train: Train, base: Base, peft: PeftModel, packs: Packs) -> StepTimes:
        """Return the measured times for such steps; measure them now if there are none.

        The adapter must be trainable. Precisions alternate, so that a busy moment affects both.
        Each step has another length, as in a run, so kernels are compiled for it. Raises ModelError
        where the base computes numbers that are not finite.
        """
        known = self.get(train, base.facts, packs.used_layout)
        if known is not None:
            return known
        half = "fp16" if base.facts.precision == "fp16" else "bf16"
        per_token = {"fp32": float("inf"), half: float("inf")}
        peft.train()
        for number in range(ROUNDS + 1):  # the best of several rounds; the first is a warm-up
            pack = number % len(packs)
            for precision in per_token:
                taken = _seconds(peft, packs[pack], base, precision)
                if number:
                    per_token[precision] = min(per_token[precision], taken / packs.tokens(pack))
        if math.isinf(per_token["fp32"]):
            raise divergence.damaged("The loss of a trial step is not a finite number")
        times = StepTimes(per_token["fp32"], per_token[half])
        key = _key(train, base.facts, packs.used_layout)
        content = {**self._read(), key: [times.fp32, times.bf16]}
        write_text(self._file, json.dumps(content, indent=1))
        return times

    def choose(self, train: Train, base: Base, peft: PeftModel, packs: Packs) -> tuple[str, str]:
        """Return the compute precision of a run and why."""
        known = without_timing(train, base.facts.precision, base.device)
        if known is not None:
            return known
        times = self.measure(train, base, peft, packs)
        budget = train.tokens_per_step
        return times.faster, (
            f"a step of {budget} tokens takes {times.fp32 * budget * 1000:.0f} ms in fp32 "
            f"and {times.bf16 * budget * 1000:.0f} ms in bf16 on this machine"
        )

    def _read(self) -> dict[str, list[float]]:
        nothing: dict[str, list[float]] = {}
        return damaged_files.read_measured(self._file, _TIMES.validate_json, missing=nothing)


def _seconds(peft: PeftModel, batch: step_loss.Batch, base: Base, precision: str) -> float:
    """Time a step; infinite where the model cannot be computed in a half precision.

    DBRX of Transformers 5.23 adds experts' outputs in bf16 to sums in fp32, which torch refuses.
    """
    try:
        return step_loss.time_step(peft, batch, base.device, precision)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        peft.zero_grad(set_to_none=True)
        if precision == "fp32" or base.facts.precision != "fp32":
            raise
        return math.inf


def _key(train: Train, facts: ModelFacts, layout: TrainingLayout) -> str:
    """Name the kind of step: the settings that decide which precision is faster."""
    budget = 1 << (train.tokens_per_step - 1).bit_length()
    checkpointing = "-checkpointing" if train.gradient_checkpointing else ""
    quantized = "" if facts.quantization == "none" else f"-{facts.quantization}"
    stored = "-fp16" if facts.precision == "fp16" else ""
    laid_out = "" if layout == "packed" else f"-{layout}"
    return (
        f"{facts.fingerprint}{quantized}{stored}-{facts.device}-{torch.get_num_threads()}threads-"
        f"{method_of(train.adapter).id}-rank{train.adapter.rank}-{budget}tokens{checkpointing}"
        f"{laid_out}-{HOW}"
    )
