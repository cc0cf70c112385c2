"""Fast loading: places a scanned adapter's tensors directly in the model's LoRA layers.

PEFT 0.21.2 walks through every module, including those of other adapters, several times for each
adapter: the 49th takes ten times as long as the first. Where every layer is already adapted, an
adapter adds only two small layers to each, so they are added directly. `peft_io.load_plainly` is
the reference. Knows nothing of the session.
"""

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper

from backend.engine.methods.file_validation import Fit, Scanned


def can_place(layers: dict[str, LoraLayer], scanned: Scanned) -> bool:
    """Tell whether every layer of the adapter is already adapted.

    DoRA and adapted parameters need PEFT's own code.
    """
    if scanned.config.use_dora or scanned.config.target_parameters:
        return False
    found = [layers.get(fit.layer) for fit in scanned.fits]
    return all(layer is not None and not isinstance(layer, ParamWrapper) for layer in found)


def place(peft: PeftModel, layers: dict[str, LoraLayer], scanned: Scanned, adapter_id: str) -> None:
    """Add an adapter to the model, frozen and not active, or change nothing."""
    try:
        for fit in scanned.fits:
            first = scanned.tensors[fit.key("lora_A.weight")]
            second = scanned.tensors[fit.key("lora_B.weight")]
            _place_in_layer(layers[fit.layer], adapter_id, fit, first, second, scanned)
        peft.peft_config[adapter_id] = scanned.config
    except BaseException:
        for fit in scanned.fits:
            take_out(layers[fit.layer], adapter_id)
        peft.peft_config.pop(adapter_id, None)
        raise


def take_out(layer: LoraLayer, adapter_id: str) -> None:
    """Remove what `place` added to a layer, if anything."""
    for name in (*layer.adapter_layer_names, *layer.other_param_names, "lora_variant"):
        parts = getattr(layer, name, None)
        if parts is not None and adapter_id in parts:
            del parts[adapter_id]


def _place_in_layer(
    layer: LoraLayer,
    adapter_id: str,
    fit: Fit,
    first: torch.Tensor,
    second: torch.Tensor,
    scanned: Scanned,
) -> None:
    device = layer.get_base_layer().weight.device
    layer.r[adapter_id] = fit.rank
    layer.lora_alpha[adapter_id] = fit.alpha
    layer.scaling[adapter_id] = fit.scaling
    layer.use_rslora[adapter_id] = bool(scanned.config.use_rslora)
    layer.use_dora[adapter_id] = False
    layer.lora_bias[adapter_id] = False
    dropout = scanned.config.lora_dropout
    layer.lora_dropout[adapter_id] = torch.nn.Dropout(dropout) if dropout else torch.nn.Identity()
    layer.lora_A[adapter_id] = _frozen_linear(first, device)
    layer.lora_B[adapter_id] = _frozen_linear(second, device)
    layer.lora_dropout[adapter_id].eval()


def _frozen_linear(weight: torch.Tensor, device: torch.device) -> torch.nn.Linear:
    """Return a linear layer with this weight, (outputs, inputs), cast to fp32 as in PEFT."""
    with torch.device("meta"):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = torch.nn.Parameter(weight.to(device, torch.float32), requires_grad=False)
    return linear.eval()
