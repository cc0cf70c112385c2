"""The torch dtype of each precision that can be chosen ("fp32", "bf16", "fp16")."""

import torch

from backend.catalogue.precisions import TORCH_NAMES

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, dtype) for name, dtype in TORCH_NAMES.items()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
HALF = {name: dtype for name, dtype in DTYPES.items() if name != "fp32"}
