"""Cosines of weight changes: the same as from full matrices, and what has none is refused."""

from collections.abc import Iterator

import pytest
import torch

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.errors import InvalidRequest, NotFound, Unsupported
from tests.engine import made_adapters as made


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with made.tiny_service(tmp_path_factory.mktemp("similarity")) as service:
        made.make_adapter(service, "one", seed=1)
        made.make_adapter(service, "two", seed=2, r=6, target_modules=["v_proj", "down_proj"])
        made.make_adapter(
            service, "three", method="rsLoRA", seed=3, use_rslora=True, rank_pattern={"q_proj": 2}
        )
        made.make_adapter(service, "apart", seed=4, target_modules=["up_proj"])
        made.make_adapter(service, "dora", method="DoRA", use_dora=True)
        yield service


def compare(service: Service, *names: str) -> rs.SimilarityReport:
    report: rs.SimilarityReport = service.start(rq.Similarity(names=list(names))).result(timeout=60)
    return report


def test_cosines_are_those_of_the_full_changes(service: Service) -> None:
    names = ["one", "two", "three"]
    report = compare(service, *names)

    model = made.fresh_peft(service, *names)
    found = [made.changes(model, service.library.get(name).id) for name in names]
    shapes = {layer: change * 0 for each in found for layer, change in each.items()}
    full = [{**shapes, **each} for each in found]
    for layer in shapes:
        rows = torch.stack([each[layer].flatten() for each in full])
        assert_close(report.per_layer[layer], cosines(rows))
    whole = [torch.cat([each[layer].flatten() for layer in shapes]) for each in full]
    assert_close(report.cosine, cosines(torch.stack(whole)))
    assert report.per_layer.keys() == shapes.keys()
    numbers = [int(layer.split(".")[2]) for layer in report.per_layer]
    assert numbers == sorted(numbers)
    assert report.names == names


def assert_close(found: list[list[float]], expected: torch.Tensor) -> None:
    assert torch.tensor(found).flatten().tolist() == pytest.approx(
        expected.flatten().tolist(), abs=1e-5
    )


def cosines(rows: torch.Tensor) -> torch.Tensor:
    norms = rows.norm(dim=1)
    scale = torch.outer(norms, norms)
    return torch.where(scale > 0, (rows @ rows.T) / scale.clamp_min(1e-30), 0.0)


def test_adapters_that_share_no_layer_are_at_right_angles(service: Service) -> None:
    report = compare(service, "one", "apart")

    assert report.cosine[0][1] == 0
    assert report.cosine[0][0] == pytest.approx(1)
    assert report.per_layer["model.layers.0.mlp.up_proj"][0] == [0.0, 0.0]


def test_an_opposite_is_told_as_opposite(service: Service) -> None:
    request = rq.Combine(name="opposite", sources=[("one", -0.5)])
    service.start(request).result(timeout=60)

    assert compare(service, "one", "opposite").cosine[0][1] == pytest.approx(-1.0, abs=1e-6)


def test_no_model_is_needed(service: Service) -> None:
    settings = Settings(workspace=service.settings.workspace, runtime="inline")
    with Service(settings) as empty:
        assert compare(empty, "one", "two").names == ["one", "two"]


@pytest.mark.parametrize(
    ("names", "error", "sentence"),
    [
        (["one", "dora"], Unsupported, "'dora' is a DoRA adapter.*Convert"),
        (["one", "One"], InvalidRequest, "named twice"),
        (["one", "nobody"], NotFound, "nobody"),
    ],
)
def test_what_cannot_be_compared_is_said(
    service: Service, names: list[str], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        compare(service, *names)
