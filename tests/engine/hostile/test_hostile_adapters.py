"""Adapters that would harm: each is refused with a reason before anything of it is loaded."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from backend import Service
from backend import requests as rq
from backend.engine.adapters import adapter_zip, import_sources
from backend.engine.methods import file_validation
from backend.engine.models.linear_layers import Target
from backend.errors import ModelError, NotFound, WorkbenchError
from tests.engine import tiny
from tests.engine.hostile.cases import FOLDERS, ZIPS
from tests.engine.hostile.harm import CONFIG, HANGS, Harm, holding, said, zipped


class Bench(NamedTuple):
    service: Service
    good: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("hostile")
    base = tiny.write_base(root / "base")
    config = tiny.lora(r=4, target_modules=["q_proj", "v_proj"])
    good = tiny.write_adapter(root / "good", base, config)
    with tiny.start_service(root / "workspace", base) as service:
        tiny.enlist(service, "resident", tiny.lora(r=2), seed=3)
        service.start(rq.SetActive(adapters=[("resident", 0.5)])).result(timeout=60)
        yield Bench(service, good)


def says(sentence: str, name: str) -> Any:
    """Compare a whole sentence, or its beginning where it ends with a star."""
    expected = sentence.replace("{name}", name)

    class Sentence:
        def __eq__(self, other: object) -> bool:
            if expected.endswith("*"):
                return str(other).startswith(expected[:-1].rstrip())
            return other == expected

        def __repr__(self) -> str:
            return repr(expected)

    return Sentence()


def inspect(service: Service, source: Path) -> Any:
    return service.start(rq.InspectAdapter(source=str(source))).result(timeout=60)


def state(service: Service) -> Any:
    """Everything that a refused adapter must not change."""
    variants: list[rq.Variant] = [[], [("resident", 1.0)], [("resident", 0.5)]]
    request = rq.Score(texts=[tiny.TEXTS[0]], variants=variants)
    scored = service.start(request).result(timeout=60).scores
    snapshot = service.snapshot()
    folders = sorted(path.name for path in service.library.root.iterdir())
    return snapshot.active, snapshot.status, snapshot.irregular, folders, scored


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [pytest.param(*each, id=name) for name, each in (FOLDERS | ZIPS).items()],
)
def test_it_is_refused_with_a_reason_and_nothing_changes(
    bench: Bench, tmp_path: Path, harm: Harm, sentence: str
) -> None:
    service = bench.service
    before = state(service)
    source = harm(Path(shutil.copytree(bench.good, tmp_path / "bad")))

    report = inspect(service, source)
    with pytest.raises(WorkbenchError) as refused:
        service.start(rq.LoadAdapter(source=str(source), name="newcomer")).result(timeout=60)

    reason = report.reasons[0]
    assert report.verdict == "cannot"
    assert f"{reason.what} {reason.cure}".strip() == says(sentence, "bad")
    assert str(refused.value) == says(sentence, "bad")
    assert state(service) == before
    assert not (tmp_path.parent / "up.txt").exists()


@pytest.mark.parametrize("name", ["modules_to_save", "bias", "NaN"])
def test_what_can_be_read_of_a_refused_adapter_is_told(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    good = inspect(bench.service, bench.good)

    report = inspect(bench.service, FOLDERS[name][0](shutil.copytree(bench.good, tmp_path / "bad")))

    assert report.verdict == "cannot"
    told = ("method", "rank", "ranks", "alpha", "targets", "parameters", "made_for", "base_match")
    assert {each: getattr(report, each) for each in told} == {
        each: getattr(good, each) for each in told
    }
    assert report.bytes > 0
    assert report.base_match != "no base"


def test_the_name_of_a_refused_adapter_is_free_for_a_good_one(bench: Bench, tmp_path: Path) -> None:
    service = bench.service
    before = state(service)
    for number, name in enumerate(("NaN", "too few layers", "another base")):
        bad = shutil.copytree(bench.good, tmp_path / f"bad {number}")
        with pytest.raises(WorkbenchError):
            service.start(rq.LoadAdapter(source=str(FOLDERS[name][0](bad)), name="phoenix")).result(
                timeout=60
            )

    added = service.start(rq.LoadAdapter(source=str(bench.good), name="phoenix")).result(timeout=60)

    assert added.adapter.name == "phoenix"
    assert tiny.scores(service, [("phoenix", 1.0)]) != tiny.scores(service, [])
    service.start(rq.DeleteAdapter(name="phoenix")).result(timeout=60)
    assert state(service)[4] == before[4]


@pytest.mark.parametrize(
    "harm",
    [
        said(target_modules=HANGS),
        said(target_modules=[HANGS]),
        said(target_modules=["q_proj", "v_proj"], exclude_modules=HANGS),
        said(target_modules="all-linear"),
        said(target_modules=["q_proj", "v_proj", "lm_head", "no_such_layer"]),
    ],
)
def test_targets_are_those_of_the_file_whatever_the_configuration_says(
    bench: Bench, tmp_path: Path, harm: Harm
) -> None:
    """PEFT 0.21.2 would match `(([a-z0-9_.])+)+!` for longer than anybody waits."""
    service, source = bench.service, harm(Path(shutil.copytree(bench.good, tmp_path / "odd")))
    started = time.process_time()

    added = service.start(rq.LoadAdapter(source=str(source), name="odd")).result(timeout=60)

    assert time.process_time() - started < 30, "A regular expression of the adapter was run."
    kept = json.loads((service.library.folder(added.adapter.id) / CONFIG).read_text())
    assert {each.rsplit(".", 1)[-1] for each in kept["target_modules"]} == {"q_proj", "v_proj"}
    assert kept["exclude_modules"] is None
    expected = tiny.plain_scores(Path(service.snapshot().base.path), bench.good)  # type: ignore[union-attr]
    assert tiny.scores(service, [("odd", 1.0)]) == pytest.approx(expected, rel=1e-5)
    service.start(rq.DeleteAdapter(name="odd")).result(timeout=60)


def test_paths_in_a_configuration_are_never_followed(bench: Bench, tmp_path: Path) -> None:
    service = bench.service
    trap = tmp_path / "trap"
    trap.mkdir()
    os.mkfifo(trap / "config.json")  # whoever opens it waits for ever
    source = said(base_model_name_or_path=str(trap), revision="../..", megatron_core="os")(
        Path(shutil.copytree(bench.good, tmp_path / "pointing"))
    )

    report = inspect(service, source)
    added = service.start(rq.LoadAdapter(source=str(source), name="pointing")).result(timeout=60)

    kept = json.loads((service.library.folder(added.adapter.id) / CONFIG).read_text())
    assert report.made_for == "trap"
    assert report.verdict == "warning"
    assert str(trap) not in json.dumps(kept)
    service.start(rq.DeleteAdapter(name="pointing")).result(timeout=60)


def test_what_peft_writes_without_a_task_is_no_program_code(bench: Bench, tmp_path: Path) -> None:
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models"}
    source = said(auto_mapping=mapping, task_type=None)(
        Path(shutil.copytree(bench.good, tmp_path / "untasked"))
    )
    assert inspect(bench.service, source).verdict == "fits"


@pytest.mark.parametrize(
    "sidecar",
    ["{", "[]", '{"id": "ad_000000"}', "x" * 3_000_000, "\x00"],
    ids=["broken", "list", "short", "endless", "not text"],
)
def test_a_strange_side_car_is_not_believed(bench: Bench, tmp_path: Path, sidecar: str) -> None:
    source = Path(shutil.copytree(bench.good, tmp_path / "beside"))
    (source / "workbench.json").write_text(sidecar)
    report = inspect(bench.service, source)
    assert (report.verdict, report.suggested_name) == ("fits", "beside")


def test_a_hostile_side_car_gives_no_name_and_no_numbers(bench: Bench, tmp_path: Path) -> None:
    """Python reads NaN and writes null: the library could not read such a side-car again."""
    service, source = bench.service, Path(shutil.copytree(bench.good, tmp_path / "beside"))
    ours = json.loads(service.library.get("resident").model_dump_json())
    ours |= {"name": "<b>a</b>\n" * 99, "recipe": "\n# heading" * 999, "max_difference": 0.0}
    (source / "workbench.json").write_text(json.dumps(ours))

    added = service.start(rq.LoadAdapter(source=str(source))).result(timeout=60).adapter
    ours["max_difference"] = float("nan")
    (source / "workbench.json").write_text(json.dumps(ours))
    second = service.start(rq.LoadAdapter(source=str(source))).result(timeout=60).adapter

    assert len(added.name) <= 40
    assert "<" not in added.name + second.name
    assert "\n" not in added.recipe
    assert len(added.recipe) < 300
    for each in (added, second):
        assert service.library.get(each.name).id == each.id
        service.start(rq.DeleteAdapter(name=each.name)).result(timeout=60)


def test_weights_that_overflow_are_noticed_and_taken_off(bench: Bench, tmp_path: Path) -> None:
    service, before = bench.service, state(bench.service)
    source = holding(lambda tensors: [t.fill_(1e30) for t in tensors.values()])(
        Path(shutil.copytree(bench.good, tmp_path / "bad"))
    )
    with pytest.raises(WorkbenchError, match="is nan: the model"):
        service.start(rq.LoadAdapter(source=str(source), name="newcomer")).result(timeout=60)
    assert state(service) == before


def test_nothing_of_a_zip_is_written_outside_a_place_of_our_own(
    bench: Bench, tmp_path: Path
) -> None:
    places = []
    real = adapter_zip.unpack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            adapter_zip,
            "unpack",
            lambda path, folder, inside: places.append(folder) or real(path, folder, inside),
        )
        source = zipped(("adapter/handler.py", "raise SystemExit"), ("adapter/x.bin", "x"))(
            Path(shutil.copytree(bench.good, tmp_path / "good"))
        )
        assert inspect(bench.service, source).verdict == "fits"
    assert places
    assert not places[0].exists()


def test_a_zip_that_places_a_file_before_its_beginning_is_damaged(
    bench: Bench, tmp_path: Path
) -> None:
    source = zipped()(Path(shutil.copytree(bench.good, tmp_path / "bad")))
    content = bytearray(source.read_bytes())
    place = content.rindex(b"PK\x05\x06") + 16  # where the directory begins, as the end says
    begins = int.from_bytes(content[place : place + 4], "little") + 10
    content[place : place + 4] = begins.to_bytes(4, "little")
    source.write_bytes(content)
    with (
        pytest.raises(ModelError, match=r"bad\.zip is damaged"),
        import_sources.incoming(str(source), bench.service.library, None),  # type: ignore[arg-type]
    ):
        pass


def test_any_damage_to_a_file_is_a_sentence(bench: Bench, tmp_path: Path) -> None:
    """Flipped bytes anywhere: only errors that a person can read, never another exception."""
    source = zipped()(Path(shutil.copytree(bench.good, tmp_path / "bad")))
    whole, layers = (
        source.read_bytes(),
        [Target("model.layers.0.self_attn.q_proj", 64, 64)],
    )
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for place in torch.randint(len(whole), (4,), generator=generator).tolist():
            content[place] ^= 0xFF
        source.write_bytes(content)
        try:
            with import_sources.incoming(str(source), bench.service.library, None) as found:  # type: ignore[arg-type]
                file_validation.scan(found.folder, layers)
        except WorkbenchError:
            refused += 1
    assert refused > 250


def test_a_folder_that_is_not_there_is_said(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no folder or zip called 'nowhere'"):
        inspect(bench.service, tmp_path / "nowhere")
