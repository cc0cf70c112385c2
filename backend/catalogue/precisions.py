"""The precisions of weights: their names here, in torch and in safetensors, and their sizes."""

TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
STORED_NAMES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
"""What safetensors calls them."""
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of one number."""
