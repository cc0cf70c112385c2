"""The starter as a quantised base: as the engine loads it, and as Transformers alone does."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.models import loading
from backend.engine.models.loading import Base
from backend.settings import STARTER

SILENT = Control(0, lambda message: None)
KINDS = ("nf4", "fp4", "int8")


def base(quantization: str, **fields: Any) -> Base:
    return loading.load(rq.LoadModel(quantization=quantization, **fields), SILENT)


def plain_int8() -> Any:
    config = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForCausalLM.from_pretrained(
        STARTER / "model", dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
