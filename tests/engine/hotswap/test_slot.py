"""The hot-swap slot: exact after each swap, left without a trace, unharmed by faults."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from backend import Service
from backend import requests as rq
from backend.engine.hotswap import compiling
from backend.errors import (
    InvalidRequest,
    ModelError,
    NotFound,
    Unsupported,
    VerificationFailed,
    WorkbenchError,
)
from tests.engine.hotswap.conftest import FIVE, ask, folder, start
from tests.engine.tiny import (
    enlist,
    layer_names,
    lora,
    plain_scores,
    scores,
    start_service,
)

# -- exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIVE)
def test_a_swapped_adapter_answers_like_a_plain_load(slot: Service, base: Path, name: str) -> None:
    swapped = start(slot, rq.Hotswap(adapter=name))

    assert swapped.max_difference <= 1e-5
    assert scores(slot, [(name, 1.0)]) == pytest.approx(
        plain_scores(base, folder(slot, name)), rel=1e-5
    )


def test_references_are_those_of_plain_loads(slot: Service, base: Path) -> None:
    start(slot, rq.EndHotswap())
    prepared = start(slot, rq.PrepareHotswap(adapters=list(FIVE), compile=False))

    text = ("The quick brown fox jumps over the lazy dog.",)
    for name in FIVE:
        expected = plain_scores(base, folder(slot, name), text)
        assert [prepared.references[name]] == pytest.approx(expected, rel=1e-5)


def test_the_empty_name_swaps_to_the_base(slot: Service, base: Path) -> None:
    start(slot, rq.Hotswap(adapter="wide"))
    start(slot, rq.Hotswap(adapter=""))

    assert scores(slot, []) == pytest.approx(plain_scores(base, None), rel=1e-5)
    assert slot.snapshot().slot.current == ""


def test_the_slot_covers_the_union_of_targets_at_the_largest_rank(
    slot: Service, base: Path
) -> None:
    start(slot, rq.EndHotswap())
    prepared = start(slot, rq.PrepareHotswap(adapters=["en_formal", "en"], compile=False))

    assert (prepared.rank, prepared.layers) == (8, len(layer_names(base)))
    assert prepared.compiled is False
    assert prepared.graphs == 0


def test_asking_for_a_prepared_adapter_swaps_to_it(slot: Service) -> None:
    start(slot, ask("Hello!", [("attn", 1.0)]))
    assert slot.snapshot().slot.current == "attn"
    assert slot.snapshot().active == [("attn", 1.0)]

    start(slot, ask("Hello!", []))
    assert slot.snapshot().slot.current == ""


def test_a_strength_scales_what_is_in_the_slot(slot: Service, service: Service) -> None:
    in_slot = scores(slot, [("en", 0.5)])
    again = scores(slot, [("en", 1.0)])
    start(slot, rq.EndHotswap())

    assert in_slot == pytest.approx(scores(service, [("en", 0.5)]), rel=1e-5)
    assert again == pytest.approx(scores(service, [("en", 1.0)]), rel=1e-5)


def test_several_adapters_at_once_are_refused(slot: Service) -> None:
    with pytest.raises(Unsupported, match="one adapter at a time"):
        start(slot, ask("Hello!", [("en", 1.0), ("attn", 1.0)]))


# -- leaving -------------------------------------------------------------------------------------


def test_leaving_restores_the_session_bit_for_bit(service: Service) -> None:
    start(service, rq.SetActive(adapters=[("en_formal", 0.7)]))
    scores(service, [("wide", 1.0)])  # loaded, and not active
    before = service.snapshot()
    answers = {name: scores(service, [(name, 1.0)]) for name in FIVE}
    active = scores(service, [("en_formal", 0.7)])

    start(service, rq.PrepareHotswap(adapters=["en", "attn", "wide"], compile=False))
    start(service, rq.Hotswap(adapter="attn"))
    left = start(service, rq.EndHotswap())

    after = service.snapshot()
    assert left.max_difference == 0.0
    assert left.active == [("en_formal", 0.7)]
    assert (after.active, after.slot, after.base) == (before.active, None, before.base)
    assert scores(service, [("en_formal", 0.7)]) == active
    assert {name: scores(service, [(name, 1.0)]) for name in FIVE} == answers


def test_preparing_leaves_no_adapter_behind(shared: Service, base: Path, tmp_path: Path) -> None:
    with start_service(tmp_path / "w", base) as service:
        for name in ("en", "attn"):
            enlist(service, name, FIVE[name])
        session = service.engine._runtime._engine.session  # type: ignore[union-attr]
        start(service, rq.PrepareHotswap(adapters=["en", "attn"], compile=False))
        start(service, rq.EndHotswap())

        assert session.peft is None
        assert not [n for n, _ in session.base.model.named_modules() if "lora" in n]


def test_other_work_is_refused_in_one_sentence_and_goes_on_afterwards(
    slot: Service, base: Path, tmp_path: Path
) -> None:
    refused = [
        rq.Train(name="new", max_steps=1, tokens_per_step=64),
        rq.LoadModel(source=str(base)),
        rq.UnloadModel(),
        rq.SetActive(adapters=[("en", 1.0)]),
        rq.DeleteAdapter(name="en"),
        rq.RenameAdapter(name="en", new_name="other"),
        rq.Combine(name="both", sources=[("en", 1.0), ("attn", 1.0)]),
        rq.Merge(variant=[("en", 1.0)], destination=str(tmp_path / "m")),
        rq.ConvertAdapter(name="heavy", new_name="light"),
        rq.PrepareHotswap(adapters=["en"]),
    ]
    for request in refused:
        with pytest.raises(Unsupported, match="Leave the hot-swap slot first"):
            start(slot, request)
    assert scores(slot, [("en", 1.0)])

    start(slot, rq.EndHotswap())
    start(slot, rq.SetActive(adapters=[("en", 1.0)]))
    start(slot, rq.Train(name="afterwards", max_steps=1, tokens_per_step=64, precision="fp32"))
    assert slot.snapshot().active == [("en", 1.0)]


def test_a_look_ahead_sees_the_same_layers_in_the_slot(slot: Service, base: Path) -> None:
    report = start(slot, rq.Preflight(train=rq.Train(name="next", tokens_per_step=64)))

    assert sorted(report.matched_modules) == sorted(layer_names(base))


def test_an_adapter_is_inspected_while_the_slot_is_held(slot: Service) -> None:
    report = start(slot, rq.InspectAdapter(source="library:attn"))

    assert report.layers
    assert all(layer.relative for layer in report.layers)


def test_swapping_without_a_slot_is_refused(service: Service) -> None:
    for request in (rq.Hotswap(adapter="en"), rq.EndHotswap()):
        with pytest.raises(Unsupported, match="No hot-swap slot"):
            start(service, request)


def test_saving_from_the_slot_copies_the_adapter_and_not_the_padded_slot(
    slot: Service, base: Path, tmp_path: Path
) -> None:
    start(slot, rq.Hotswap(adapter="wide"))

    saved = start(slot, rq.SaveAdapter(name="layers", destination=str(tmp_path / "copy")))

    assert saved.max_difference == 0.0
    assert plain_scores(base, tmp_path / "copy") == plain_scores(base, folder(slot, "layers"))
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 8)


# -- what cannot share a slot, and faults --------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lora(r=4, use_dora=True), "DoRA"),
        (lora(r=4, init_lora_weights="pissa"), "pissa"),
        (lora(r=4, init_lora_weights="olora"), "olora"),
    ],
)
def test_another_kind_is_refused_with_the_way_out(
    base: Path, tmp_path: Path, config: object, reason: str
) -> None:
    with start_service(tmp_path / "w", base) as service:
        enlist(service, "odd", config)  # type: ignore[arg-type]
        before = scores(service, [])

        with pytest.raises(Unsupported, match=f"{reason}.*Convert"):
            start(service, rq.PrepareHotswap(adapters=["odd"], compile=False))

        assert scores(service, []) == before


def test_an_adapter_of_another_base_is_refused(service: Service) -> None:
    info = enlist(service, "foreign", lora(r=4))
    other = info.model_copy(update={"base_fingerprint": "other", "base_name": "elsewhere"})
    service.library.write_sidecar(service.library.folder(info.id), other)

    with pytest.raises(Unsupported, match="elsewhere"):
        start(service, rq.PrepareHotswap(adapters=["en", "foreign"], compile=False))

    shutil.rmtree(service.library.folder(info.id))
    assert service.snapshot().slot is None


def breaks(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"broken")


def changes(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("name", "harm", "error", "sentence"),
    [
        ("heavy", lambda folder: None, InvalidRequest, "'heavy' is not in the hot-swap slot."),
        ("nobody", lambda folder: None, NotFound, "There is no adapter called 'nobody'."),
        ("en", shutil.rmtree, NotFound, "'en' is no longer in the library. Leave the slot, and"),
        ("en", breaks, ModelError, ""),
        ("en", changes, Unsupported, "The files of 'en' have changed since the slot"),
    ],
    ids=["not prepared", "unknown", "vanished", "broken", "changed"],
)
def test_a_swap_that_cannot_be_leaves_the_slot_answering_as_before(
    slot: Service,
    tmp_path: Path,
    name: str,
    harm: object,
    error: type[WorkbenchError],
    sentence: str,
) -> None:
    start(slot, rq.Hotswap(adapter="attn"))
    before = scores(slot, [("attn", 1.0)])
    harmed = folder(slot, "en")
    kept = shutil.copytree(harmed, tmp_path / "kept")
    try:
        harm(harmed)  # type: ignore[operator]
        with pytest.raises(error) as caught:
            start(slot, rq.Hotswap(adapter=name))
    finally:
        shutil.rmtree(harmed, ignore_errors=True)
        shutil.copytree(kept, harmed)

    assert str(caught.value).startswith(sentence)
    assert slot.snapshot().slot.current == "attn"
    assert scores(slot, [("attn", 1.0)]) == before


def test_a_swap_that_answers_wrong_is_undone(slot: Service) -> None:
    start(slot, rq.Hotswap(adapter="attn"))
    before = scores(slot, [("attn", 1.0)])
    live = slot.engine._runtime._engine.session.slot  # type: ignore[union-attr]
    live._entries["en"].block.weights.add_(0.01)

    with pytest.raises(VerificationFailed, match="undone"):
        start(slot, rq.Hotswap(adapter="en"))

    assert slot.snapshot().slot.current == "attn"
    assert scores(slot, [("attn", 1.0)]) == before


def test_without_a_compiler_the_slot_works_and_says_so(
    service: Service, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_runs", lambda compiler: False)

    prepared = start(service, rq.PrepareHotswap(adapters=["en", "attn"]))

    assert not prepared.compiled
    assert "C++ compiler" in prepared.notes[0]
    assert service.snapshot().slot.note == prepared.notes[0]
    start(service, rq.Hotswap(adapter="attn"))
    assert scores(service, [("attn", 1.0)]) == pytest.approx(
        plain_scores(base, folder(service, "attn")), rel=1e-5
    )


def test_a_compilation_that_fails_leaves_a_slot_that_works(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("ld: cannot find -lgomp")

    monkeypatch.setattr(compiling, "obstacle", lambda device: "")
    monkeypatch.setattr(torch, "compile", lambda call, **options: fail)

    prepared = start(service, rq.PrepareHotswap(adapters=["en", "attn"]))

    assert not prepared.compiled
    assert "cannot find -lgomp" in prepared.notes[0]
    assert start(service, rq.Hotswap(adapter="attn")).max_difference <= 1e-5


def test_a_failed_preparation_changes_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(service, rq.SetActive(adapters=[("attn", 1.0)]))
    before = scores(service, [("attn", 1.0)])

    def refuse(*arguments: object) -> None:
        raise VerificationFailed("Not today.")

    monkeypatch.setattr("backend.engine.hotswap.slot.Slot._verify", refuse)
    with pytest.raises(VerificationFailed):
        start(service, rq.PrepareHotswap(adapters=["en", "wide"], compile=False))

    assert service.snapshot().slot is None
    assert service.snapshot().active == [("attn", 1.0)]
    assert scores(service, [("attn", 1.0)]) == before
