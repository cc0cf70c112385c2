"""One training in this process; prints predicted and measured memory as JSON."""

import json
import sys
import tempfile
from pathlib import Path

import psutil

from backend import Service, Settings
from backend import requests as rq

TIMEOUT_S = 3600.0


def main() -> None:
    """Load, train, and say what it took."""
    case = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(workspace=Path(folder), runtime="inline")
        with Service(settings) as service:
            load = rq.LoadModel(source=case["model"], quantization=case["quantization"])
            service.start(load).result(TIMEOUT_S)
            idle = psutil.Process().memory_info().rss
            train = rq.Train(
                name="memory",
                data=case["data"],
                eval_share=0.02,
                tokens_per_step=case["budget"],
                max_steps=case["steps"],
                adapter=rq.Lora(rank=case["rank"], use_dora=case["dora"]),
                gradient_checkpointing=case["checkpointing"],
                precision=case["precision"],
            )
            if case.get("parts"):
                print(service.start(rq.Preflight(train=train, measure=False)).result(TIMEOUT_S))
            result = service.start(train).result(TIMEOUT_S)
    found = {
        "predicted": result.predicted_memory_bytes,
        "measured": result.peak_memory_bytes,
        "idle": idle,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
