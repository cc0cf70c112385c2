"""Loss scaling for a base in fp16, so that small gradients are not rounded to zero.

Follows Micikevicius et al. 2018, section 3.2, with torch's GradScaler: the loss is multiplied
before the backward pass, and the gradients are divided after it, in fp32. A step whose gradients
overflowed is skipped, and the scale is halved. Trainer's own fp16 switch would leave the model's
forward in autocast (see `step_loss.autocast`), so the step opens autocast itself.
"""

from typing import Any

import torch
from accelerate import Accelerator


def install(accelerator: Accelerator, device: torch.device) -> None:
    """Scale the losses of a Trainer's steps; Trainer then also saves and restores the scale."""
    accelerator.scaler = torch.amp.GradScaler(device.type)


def unscale(accelerator: Accelerator, optimizer: Any) -> None:
    """Divide the gradients by the scale, before anything reads their norm."""
    if accelerator.scaler is not None:
        accelerator.scaler.unscale_(optimizer.optimizer)


def may_leave_out(optimizer: Any) -> bool:
    """Tell whether a step with gradients that are not finite is skipped and the scale halved.

    At a scale of 1 the scale cannot be halved any more: then the run has diverged.
    """
    scaler = getattr(optimizer, "scaler", None)
    return scaler is not None and float(scaler.get_scale()) > 1.0
