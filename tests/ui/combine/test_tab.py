"""The Combine tab: its drawing as pure functions, and its handlers on a service without a model."""

from typing import Any

import gradio as gr
import pytest

from backend import errors
from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import draw, event, offered, rename, wait
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.combine import blend_views

LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


@pytest.fixture
def page(service: FakeService) -> Page:
    service.add_adapter("pirate")
    service.add_adapter("polite")
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def report(value: float = 0.04) -> rs.SimilarityReport:
    matrix = [[1.0, value], [value, 1.0]]
    return rs.SimilarityReport(
        names=["pirate", "polite"], cosine=matrix, per_layer=dict.fromkeys(LAYERS, matrix)
    )


def finished(info: rs.AdapterInfo, error: float = 0.33) -> rs.Blend:
    return rs.Blend(
        adapter=info,
        rank=16,
        relative_error=error,
        relative_error_per_layer=dict(zip(LAYERS, (error, error / 2), strict=True)),
        seed=42,
        max_difference=0.0,
        seconds=0.4,
        notes=("Something to know.",),
    )


def weights(*values: float) -> dict[str, float]:
    padded = [*values, *[0.5] * (8 - len(values))]
    return {f"weight_{number}": value for number, value in enumerate(padded)}


def shown(page: Page, **mix: Any) -> dict[Any, Any]:
    return draw(page, **{f"mix_{name}": value for name, value in mix.items()})


def start(page: Page, **changes: Any) -> Any:
    values = {name: part.value for name, part in page.combine.form.components.items()}
    values |= {"name": "mix", "method": "cat", **weights(0.7, -0.3), **changes}
    return page.combine.blend(["pirate", "polite"], **values)


def script_combine(service: FakeService, **fields: Any) -> list[rq.Combine]:
    """Let the engine make a blend of nothing, and return what it was asked."""
    asked: list[rq.Combine] = []

    def combine(request: rq.Combine) -> rs.Result:
        asked.append(request)
        return finished(service.add_adapter(request.name), **fields)

    service.script["combine"] = combine
    return asked


def test_a_cosine_that_is_nearly_nothing_has_no_sign() -> None:
    drawn = words(blend_views.likeness(report(-0.001), {}, (0, 1)))

    assert "are almost unrelated (0.00)" in drawn
    assert "Click a number to see it layer by layer" in drawn


def test_a_taken_name_is_written_as_its_adapter_has_it(page: Page) -> None:
    drawn = shown(page, ingredients=["pirate", "polite"], name="PIRATE")

    assert "already an adapter called pirate." in words(drawn[page.combine.card])


# -- ingredients ---------------------------------------------------------------------------------


def test_each_ingredient_gets_a_slider_with_its_name(page: Page) -> None:
    names, *updates = page.combine.pick(["pirate", "polite"], [], "", "", **weights())

    assert names == ["pirate", "polite"]
    assert [u["label"] for u in updates[:2]] == ["pirate", "polite"]
    assert [u["visible"] for u in updates[:8]] == [True, True] + [False] * 6
    assert updates[8] == updates[9] == "pirate polite"


def test_weights_stay_with_their_adapters(page: Page) -> None:
    picked = ["pirate", "polite"]
    _, first, second, *_ = page.combine.pick(["polite"], picked, "", "", **weights(0.7, -0.3))

    assert (first["label"], first["value"]) == ("polite", -0.3)
    assert second == gr.update(visible=False)


def test_a_name_that_was_typed_is_kept(page: Page) -> None:
    *_, name, suggested = page.combine.pick(["polite"], [], "mine", "pirate polite", **weights())

    assert name == suggested == gr.skip()


def test_an_adapter_that_cannot_be_blended_is_left_out_and_why(
    page: Page, service: FakeService
) -> None:
    info = service.add_adapter("odd").model_copy(update={"method": "DoRA", "strength": "on-off"})
    service.library.write_sidecar(service.library.folder(info.id), info)

    drawn = shown(page)

    assert drawn[page.combine.ingredients]["choices"] == ["pirate", "polite"]
    assert "'odd' is a DoRA adapter" in words(drawn[page.combine.left_out])
    fold = drawn[page.combine.left_out_fold]
    assert (fold["visible"], fold["label"]) == (True, "Cannot be blended: odd")


def test_nothing_is_said_where_nothing_is_left_out(page: Page) -> None:
    assert not shown(page)[page.combine.left_out_fold]["visible"]


def test_the_way_out_converts_what_was_left_out(page: Page, service: FakeService) -> None:
    info = service.add_adapter("odd")
    made = rs.Converted(
        adapter=info, rank=37, relative_error=0.049, relative_error_per_layer={"q_proj": 0.049}
    )
    asked = []
    service.script["convert-adapter"] = lambda request: (asked.append(request), made)[1]

    page.combine.converter.convert("", event("convert", "odd"))
    wait(service)

    assert asked == [rq.ConvertAdapter(name="odd", new_name="odd plain")]
    assert "rank 37" in words(shown(page)[page.combine.converter.news])


def test_an_ingredient_that_was_deleted_leaves_the_list(page: Page) -> None:
    drawn = shown(page, ingredients=["pirate", "gone"])

    assert drawn[page.combine.ingredients]["value"] == ["pirate"]


# -- likeness ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "finding"),
    [
        (0.83, "pirate and polite make very similar changes (0.83)"),
        (0.3, "pirate and polite overlap a little (0.30)"),
        (0.04, "pirate and polite are almost unrelated (0.04)"),
        (-0.4, "pirate and polite make opposite changes (-0.40)"),
    ],
)
def test_the_matrix_says_what_it_shows(value: float, finding: str) -> None:
    assert blend_views.likeness_finding(report(value)) == finding


def test_ingredients_are_compared_and_a_pair_is_shown_by_layer(
    page: Page, service: FakeService
) -> None:
    asked = []
    service.script["similarity"] = lambda request: asked.append(request.names) or report()

    found, drawing = page.combine.compare(["pirate", "polite"])
    _, closer = page.combine.look_closer(found, ["pirate", "polite"], event("pair", "0,1"))

    assert asked == [["pirate", "polite"]]
    assert "almost unrelated" in words(drawing)
    assert "block 2, down_proj" not in words(drawing)
    assert "block 2, down_proj" in words(closer)  # counted from 1, as on Load


def test_a_pair_that_is_not_there_is_not_drawn(page: Page) -> None:
    found = report().model_dump()

    for arg in ("0,9", "-1,0", "x", ""):
        assert page.combine.look_closer(found, [], event("pair", arg)) == (gr.skip(), gr.skip())


def test_one_adapter_is_not_compared(page: Page) -> None:
    found, drawing = page.combine.compare(["pirate"])

    assert found is None
    assert "Choose two adapters" in words(drawing)


# -- before --------------------------------------------------------------------------------------


def test_the_button_says_what_it_makes(page: Page) -> None:
    drawn = shown(page, ingredients=["pirate", "polite"], name="mix")

    assert drawn[page.combine.go]["value"] == "Blend into mix"
    assert drawn[page.combine.go]["interactive"]
    assert "exactly the weighted sum, and its rank is 16" in words(drawn[page.combine.card])


def test_a_method_shows_only_its_own_fields(page: Page) -> None:
    for method, expected in (
        ("cat", []),
        ("svd", ["rank"]),
        ("dare_ties_svd", ["rank", "density", "majority_sign", "seed"]),
    ):
        drawn = shown(page, method=method)
        fields = page.combine.form.components
        assert [n for n in fields if drawn.get(fields[n], {}).get("visible")] == expected


def test_unequal_ranks_are_told_with_a_way_out(page: Page, service: FakeService) -> None:
    info = service.library.get("polite").model_copy(update={"rank": 16})
    service.library.write_sidecar(service.library.folder(info.id), info)

    drawn = shown(page, ingredients=["pirate", "polite"], name="mix", method="ties")

    assert not drawn[page.combine.go]["interactive"]
    assert "8 and 16" in words(drawn[page.combine.card])
    assert "Use Settle conflicts (ties_svd)" in words(drawn[page.combine.card])
    assert "Not possible here: linear, ties, dare_linear" in words(drawn[page.combine.method_line])
    assert page.combine.mend(event("method", "ties_svd")) == ("ties_svd", gr.skip())


def test_a_taken_name_is_offered_another(page: Page) -> None:
    drawn = shown(page, ingredients=["pirate"], name="polite")

    assert not drawn[page.combine.go]["interactive"]
    assert "Call it polite 2" in words(drawn[page.combine.card])
    assert page.combine.mend(event("rename", "polite 2")) == (gr.skip(), "polite 2")


def test_without_a_base_the_way_out_is_to_load_one(page: Page, service: FakeService) -> None:
    service.start(rq.UnloadModel()).result(timeout=10)

    drawn = shown(page, ingredients=["pirate"], name="mix")

    assert "Choose a base model" in words(drawn[page.combine.card])
    assert not drawn[page.combine.go]["interactive"]


# -- blending ------------------------------------------------------------------------------------


def test_a_blend_is_asked_for_with_its_own_fields_only(page: Page, service: FakeService) -> None:
    asked = script_combine(service)

    start(page, method="svd", rank="12", density=None)
    wait(service)

    assert asked == [
        rq.Combine(name="mix", sources=[("pirate", 0.7), ("polite", -0.3)], method="svd", rank=12)
    ]


def test_the_result_tells_its_distance_and_the_next_step(page: Page, service: FakeService) -> None:
    script_combine(service)
    start(page)
    wait(service)

    drawn = shown(page)

    text = words(drawn[page.combine.result])
    assert "mix is 33 % away from the exact weighted sum" in text
    assert "Layer by layer: at most 33 %, in block 1, q_proj" in text
    assert "Verified: the saved blend" in text
    assert "Something to know." in text
    assert drawn[page.combine.stage]["visible"]
    assert drawn[page.combine.go]["variant"] == "secondary"
    made = shown(page, ingredients=["pirate", "polite"], name="mix")
    assert "mix was created (below)" in words(made[page.combine.card])
    assert not made[page.combine.go]["interactive"]


def test_rounding_is_not_called_a_distance() -> None:
    info = rs.AdapterInfo(
        id="ad_1", name="mix", colour="#E69F00", method="LoRA", rank=8, parameters=1,
        base_name="b", base_fingerprint="f", created=0,
    )  # fmt: skip
    assert blend_views.blend_finding(finished(info, 3e-8)) == "mix is exactly the weighted sum"
    assert "Layer by layer" not in words(blend_views.outcome(finished(info, 3e-8)))


def test_keeping_puts_the_card_away(page: Page, service: FakeService) -> None:
    script_combine(service)
    start(page)
    wait(service)
    info = service.library.get("mix")

    kept, _ = page.combine.decide([], event("keep", info.id))
    drawn = shown(page, kept=kept)

    assert not drawn[page.combine.stage]["visible"]
    assert service.library.get("mix") == info


def test_discarding_deletes_the_blend(page: Page, service: FakeService) -> None:
    script_combine(service)
    asked = []

    def delete(request: rq.DeleteAdapter) -> rs.Result:
        asked.append(request.name)
        service.library.discard(service.library.get(request.name).id)
        return rs.Removed(name=request.name, active=[], freed_bytes=0)

    service.script["delete-adapter"] = delete
    start(page)
    wait(service)

    page.combine.decide([], event("discard", service.library.get("mix").id))
    wait(service)

    assert asked == ["mix"]
    assert not shown(page)[page.combine.stage]["visible"]


def test_the_result_is_about_the_blend_whatever_it_is_called(
    page: Page, service: FakeService
) -> None:
    script_combine(service)
    start(page)
    wait(service)
    stale = shown(page)[page.combine.result]
    rename(service, "mix", "blend")
    service.add_adapter("mix")
    rename(service, "pirate", "captain")
    service.add_adapter("pirate")
    service.library.discard(service.library.get("polite").id)
    deleted, compared = [], []
    service.script["delete-adapter"] = lambda request: (
        deleted.append(request.name) or rs.Removed(name=request.name, active=[], freed_bytes=0)
    )
    service.script["compare"] = lambda request: (
        compared.extend(request.variants) or rs.Answers(answers=[["Arr."], ["Aye."]])
    )

    assert "blend is 33 % away" in words(shown(page)[page.combine.result])
    page.combine.taste_all("Where is the cat?")
    page.combine.decide([], event("discard", offered(stale, "discard")))
    wait(service)

    assert compared == [[("captain", 1.0)], [("blend", 1.0)]]
    assert deleted == ["blend"]


def test_a_blend_that_is_gone_is_neither_discarded_nor_asked(
    page: Page, service: FakeService
) -> None:
    script_combine(service)
    start(page)
    wait(service)
    stale = offered(shown(page)[page.combine.result], "discard")
    service.library.discard(service.library.get("mix").id)
    service.add_adapter("mix")

    assert not shown(page)[page.combine.stage]["visible"]
    assert "no longer exists" in words(page.combine.taste_all("Where is the cat?"))
    _, said = page.combine.decide([], event("discard", stale))

    assert "no longer in the library" in words(said)
    assert service.library.get("mix")


def test_a_failure_is_told_until_something_is_changed(page: Page, service: FakeService) -> None:
    service.script["combine"] = lambda _: errors.Unsupported("It does not fit.", cure="Take cat.")
    start(page)
    wait(service)

    assert "It does not fit. Take cat." in words(shown(page)[page.combine.result])
    page.combine.forget_failure()
    assert not shown(page)[page.combine.stage]["visible"]


def test_ingredients_and_blend_answer_side_by_side(page: Page, service: FakeService) -> None:
    script_combine(service)
    start(page)
    wait(service)
    asked = []

    def compare(request: rq.Compare) -> rs.Result:
        asked.extend(request.variants)
        return rs.Answers(answers=[["Arr."], ["Dear me."], ["Arr, dear me."]])

    service.script["compare"] = compare

    drawing = page.combine.taste_all("Where is the cat?")

    assert asked == [[("pirate", 1.0)], [("polite", 1.0)], [("mix", 1.0)]]
    for said in ("Arr.", "Dear me.", "Arr, dear me."):
        assert said in words(drawing)
