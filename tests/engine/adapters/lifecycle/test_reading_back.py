"""A saved adapter that reads back as another one is caught in every precision, however weak."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend.engine.methods import peft_io
from backend.errors import VerificationFailed
from tests.engine.tiny import enlist, lora, start_service, write_base


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def service(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    base = write_base(tmp_path_factory.mktemp("base"))
    with start_service(tmp_path_factory.mktemp("workspace"), base) as found:
        loading = rq.LoadModel(source=str(base), precision=request.param)
        found.start(loading).result(timeout=120)
        enlist(found, "weak", lora(r=4, lora_alpha=1e-5))
        enlist(found, "strong", lora(r=4))
        yield found


@pytest.mark.parametrize("name", ["weak", "strong"])
@pytest.mark.parametrize(
    "change", [{"lora_alpha": 2e-5}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3e-5}}]
)
def test_a_configuration_that_was_written_wrong_is_caught(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    change: dict[str, Any],
) -> None:
    write = peft_io.write

    def wrong(peft: Any, adapter_id: str, folder: Path) -> None:
        write(peft, adapter_id, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

    request = rq.SaveAdapter(name=name, destination=str(tmp_path / "copy"))
    with monkeypatch.context() as patch:
        patch.setattr(peft_io, "write", wrong)
        with pytest.raises(VerificationFailed, match="PEFT loads a different adapter"):
            service.start(request).result(timeout=60)
    assert not (tmp_path / "copy").exists()
    service.start(rq.SetActive(adapters=[(name, 0.5)])).result(timeout=60)  # at any strength
    assert service.start(request).result(timeout=60).max_difference <= 0.05
