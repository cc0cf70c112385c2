"""One service with the real model, converted once for all tests here."""

from collections.abc import Iterator

import pytest

from backend import PACKAGED_MODELS, Service, Settings
from backend import requests as rq
from backend import results as rs

MODEL = PACKAGED_MODELS["smollm2"]


@pytest.fixture(scope="session")
def real_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An inline service in which the model can be loaded."""
    if MODEL.find() is None:
        pytest.fail(f"{MODEL.title} is not installed. Run: python3 start.py --test", pytrace=False)
    settings = Settings(workspace=tmp_path_factory.mktemp("real"), runtime="inline")
    with Service(settings) as service:
        yield service


def load(service: Service, **fields: object) -> rs.ModelFacts:
    """Load the model, unless it is loaded like this."""
    request = rq.LoadModel.model_validate({"source": MODEL.name, **fields})
    base = service.snapshot().base
    if base is not None and base.quantization == request.quantization:
        return base
    facts: rs.ModelFacts = service.start(request).result(timeout=240)
    return facts


def ask(service: Service, question: str, *adapters: str, limit: int = 40) -> rs.Answer:
    """Return the greedy answer of a variant."""
    messages = [rq.Message(role="user", content=question)]
    variant = [(name, 1.0) for name in adapters]
    request = rq.Chat(messages=messages, variant=variant, max_new_tokens=limit)
    answer: rs.Answer = service.start(request).result(timeout=120)
    return answer
