"""The torch dtypes of the precisions that people choose."""

import torch

from backend.catalogue.precisions import TORCH_NAMES

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, dtype) for name, dtype in TORCH_NAMES.items()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
HALF = {name: dtype for name, dtype in DTYPES.items() if name != "fp32"}
