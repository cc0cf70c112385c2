"""The base that a check before a run looks at: loaded here, or known without its weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from backend.engine.methods import peft_io
from backend.engine.methods.adaptable import adaptable
from backend.engine.models import model_skeleton, text_part
from backend.engine.models.linear_layers import Target
from backend.engine.session import Session
from backend.engine.steps import layouts
from backend.errors import NotFound
from backend.requests import Train
from backend.results import ModelFacts
from backend.results.training_layout import TrainingLayout


@dataclass
class Surroundings:
    """What the check needs of the base; `session` is None where its weights are not loaded here."""

    model: torch.nn.Module
    tokenizer: Any
    context: int
    name: str
    fingerprint: str
    device: torch.device
    session: Session | None
    facts: ModelFacts | None

    @cached_property
    def targets(self) -> list[Target]:
        """What an adapter can change here."""
        return self.session.layers() if self.session is not None else adaptable(self.model)

    @property
    def layout(self) -> TrainingLayout:
        """How a run would lay out its examples."""
        return (self.facts.layout if self.facts else None) or "packed"

    @property
    def quantization(self) -> str:
        return "none" if self.facts is None else self.facts.quantization

    @property
    def parameters(self) -> int:
        """The base's own parameter count, without adapters."""
        if self.facts is not None:
            return self.facts.parameters
        return sum(p.numel() for p in self.model.parameters())


def find(session: Session, facts: ModelFacts | None) -> Surroundings:
    """Return the base of this process, or what is known of one loaded in the worker process."""
    if session.facts is not None:
        layouts.note(session.base)
        base, facts = session.base, session.base.facts
        return Surroundings(
            base.model, base.tokenizer, facts.context_length, facts.source, facts.fingerprint,
            base.device, session, facts,
        )  # fmt: skip
    if facts is None:
        raise NotFound("No base model is loaded.", cure="Load one first: the starter is quick.")
    model = model_skeleton.skeleton(facts)
    context = text_part.context_length(model.config)
    return Surroundings(
        model, model_skeleton.tokenizer(facts), context, Path(facts.path).name, facts.fingerprint,
        torch.device(facts.device), None, facts,
    )  # fmt: skip


def configure(train: Train, around: Surroundings) -> Any:
    """Return PEFT's configuration of a run's adapter; raises InvalidRequest or NotFound."""
    if train.start_from is not None and around.session is not None:
        info = around.session.library.get(train.start_from)
        return peft_io.read_config(around.session.library.folder(info.id))
    return peft_io.configure(
        train.adapter, around.targets, around.name, quantized=around.quantization != "none"
    )
