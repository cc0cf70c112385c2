"""Loss scaling for a base in fp16: gradients that fp16 would round to zero are learned.

Trainer's own fp16 switch would leave the model's forward in autocast (see `step_loss.autocast`), so
the step opens autocast itself, and only the scaler comes from torch: the loss is multiplied before
the backward pass, the gradients are divided after it, in fp32, and a step whose gradients
overflowed is left out and followed by a smaller scale. Micikevicius et al. 2018, section 3.2.
"""

from typing import Any

import torch
from accelerate import Accelerator


def install(accelerator: Accelerator, device: torch.device) -> None:
    """Scale the losses of a Trainer's steps; Trainer then saves and resumes the scale, too."""
    accelerator.scaler = torch.amp.GradScaler(device.type)


def unscale(accelerator: Accelerator, optimizer: Any) -> None:
    """Divide the gradients by the scale, before anything looks at their size."""
    if accelerator.scaler is not None:
        accelerator.scaler.unscale_(optimizer.optimizer)


def may_leave_out(optimizer: Any) -> bool:
    """Tell whether a step with gradients that are not finite is left out and the scale halved.

    At a scale of 1 nothing is left to halve: then it is the run that diverges.
    """
    scaler = getattr(optimizer, "scaler", None)
    return scaler is not None and float(scaler.get_scale()) > 1.0
