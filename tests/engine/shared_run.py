"""What the tests of a run that several processes share train, and how long they wait for it."""

from typing import Any

from backend import requests as rq

LONG = 240.0
LEARNS: dict[str, Any] = {
    "data": "starter:pirate",
    "tokens_per_step": 128,
    "precision": "fp32",
    "adapter": rq.Lora(rank=4, dropout=0.1),
    "accumulation": 2,
    "processes": 2,
    "max_steps": 60,
    "save_every": 1000,
}
