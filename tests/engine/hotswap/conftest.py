"""One service with the five adapters of the slot's tests, and ways to drive it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from backend import results as rs
from tests.engine.tiny import (
    enlist,
    lora,
    start_service,
    write_base,
)

ATTENTION = ["q_proj", "v_proj"]
FIVE = {
    "en": lora(r=4, lora_alpha=8),
    "en_formal": lora(r=8, lora_alpha=4, target_modules=ATTENTION),
    "attn": lora(r=16, lora_alpha=32, use_rslora=True),
    "layers": lora(r=16, lora_alpha=8, rank_pattern={"q_proj": 5}, alpha_pattern={"down_proj": 40}),
    "wide": lora(r=32, lora_alpha=16, lora_dropout=0.1),
}


def start(service: Service, request: rq.Request) -> rs.Result:
    result: rs.Result = service.start(request).result(timeout=900)
    return result


def ask(text: str, variant: rq.Variant) -> rq.Chat:
    return rq.Chat(
        messages=[rq.Message(role="user", content=text)], variant=variant, max_new_tokens=6
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def shared(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with the five adapters of the issue and a DoRA adapter in its library."""
    with start_service(tmp_path_factory.mktemp("workspace"), base) as service:
        for seed, (name, config) in enumerate(FIVE.items()):
            enlist(service, name, config, seed=seed)
        enlist(service, "heavy", lora(r=4, use_dora=True), seed=9)
        yield service


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    """The shared service, out of any slot and with the base alone, before and after."""
    yield shared
    if shared.snapshot().slot is not None:
        start(shared, rq.EndHotswap())
    start(shared, rq.SetActive(adapters=[]))


@pytest.fixture
def slot(service: Service) -> Service:
    """The five adapters in a slot that was not compiled."""
    start(service, rq.PrepareHotswap(adapters=list(FIVE), compile=False))
    return service


def folder(service: Service, name: str) -> Path:
    return service.library.folder(service.library.get(name).id)
