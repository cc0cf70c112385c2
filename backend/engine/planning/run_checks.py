"""What a run checks of its base at its start, checked before: no run that is ready is refused."""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from copy import copy

import torch
from peft import LoraConfig

from backend.engine.core import devices
from backend.engine.methods import peft_io
from backend.engine.models import config_file, model_skeleton, quantization
from backend.engine.training import step_loss
from backend.engine.training.packing import Packs
from backend.engine.training.trainer_arguments import computes_8bit
from backend.errors import NotFound
from backend.library import Library
from backend.requests import Train
from backend.results import ModelFacts, Problem
from backend.results.training_layout import sentence


def settled(train: Train, model: torch.nn.Module) -> tuple[Train, list[str]]:
    """Return the settings that a base supports, and a note on each that it does not."""
    supported = step_loss.supported(train, model)
    if supported is train:
        return train, []
    return supported, [
        "Gradient checkpointing stays off: this architecture does not support it in Transformers."
    ]


def problems(train: Train, facts: ModelFacts | None, library: Library) -> Iterator[Problem]:
    """Yield why no run with these settings is possible on a base."""
    if facts is None:
        return
    if facts.training_blocker:
        yield Problem(
            what=f"This base cannot be trained. {facts.training_blocker}",
            cure="Load another base, or this one in another precision.",
        )
    if train.start_from is not None:
        with suppress(NotFound):  # reported with the name
            start = library.get(train.start_from)
            if start.base_fingerprint != facts.fingerprint:
                yield Problem(
                    what=f"{start.name!r}, which the run would continue, was made for the base "
                    f"{start.base_name!r}, but {facts.name!r} is loaded.",
                    cure=f"Load {start.base_name!r}, or start a new adapter.",
                )


def about_optimizer(train: Train, device: torch.device) -> Iterator[Problem]:
    """Yield why a run's optimiser is not possible on a device."""
    works = computes_8bit(device) and not quantization.blocker(device)
    if train.optimizer == "adamw_8bit" and not works:
        yield Problem(
            what=f"bitsandbytes has no 8-bit optimiser for the {devices.GPUS[device.type]} here.",
            cure="Set Optimiser to adamw.",
        )


def refused_by_peft(config: LoraConfig, facts: ModelFacts) -> Iterator[Problem]:
    """Yield PEFT's refusal to put such an adapter on a base, tried on the base without weights."""
    if config.target_parameters:
        return  # experts are checked when the adapter is configured
    key = facts.fingerprint, repr(sorted(config.to_dict().items(), key=lambda item: item[0]))
    if key not in _tried:
        _tried.clear()
        _tried[key] = _refusal(config, facts)
    if said := _tried[key]:
        yield Problem(
            what=f"PEFT cannot put this adapter on the base: {said.rstrip('.')}.",
            cure="Choose other target layers.",
        )


_tried: dict[tuple[str, str], str] = {}
"""What PEFT said of the last adapter: a trial takes a moment, and a form asks again and again."""


def _refusal(config: LoraConfig, facts: ModelFacts) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peft = peft_io.apply(model_skeleton.skeleton(facts), None, copy(config), "ad_probe")
        except ValueError as error:
            return config_file.first_line(error)
    peft.unload()
    return ""


def about_layout(facts: ModelFacts | None, packs: Packs) -> list[str]:
    """Say how the examples are laid out and what it costs, where they are not packed.

    A single example has no others.
    """
    if len(packs.documents) < 2:
        return []
    reason = facts.layout_reason if facts else ""
    said = sentence(packs.layout, reason, packs.padding_share)
    return [said] if said else []
