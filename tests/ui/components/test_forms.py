import gradio as gr
import pytest

from backend import errors
from backend import requests as rq
from ui.components.forms import Form, field_of, label_of

TRAIN_PATHS = [
    *(f"adapter.{name}" for name in rq.Lora.model_fields if name != "method"),
    *(f"columns.{name}" for name in rq.Columns.model_fields),
    *(name for name in rq.Train.model_fields if name not in ("adapter", "columns")),
]


@pytest.fixture
def form() -> Form:
    made = Form(rq.Train)
    with gr.Blocks():
        for path in TRAIN_PATHS:
            made.add(path)
    return made


def values_of(form: Form, **changes: object) -> dict[str, object]:
    return {name: component.value for name, component in form.inputs.items()} | changes


def test_defaults_survive_the_way_through_the_form(form: Form) -> None:
    assert rq.Train(**form.read(values_of(form, name="a"))) == rq.Train(name="a")


def test_a_full_request_survives_the_way_through_the_form(form: Form) -> None:
    lora = rq.Lora(rank=16, alpha=4, dropout=0.1, targets=["q_proj", "v_proj"], use_dora=True)
    train = rq.Train(
        name="a b",
        data="starter:polite",
        adapter=lora,
        max_steps=7,
        learning_rate=1e-4,
        scheduler="linear",
        gradient_checkpointing=True,
        columns=rq.Columns(prompt="question text", answer="reply"),
        held_out="tested.csv",
        drop_bad_rows=True,
        start_from="a",
    )
    shown = {component: update["value"] for component, update in form.show(train).items()}
    values = {name: shown[component] for name, component in form.inputs.items()}
    assert rq.Train(**form.read(values)) == train


def test_every_field_has_label_and_help(form: Form) -> None:
    for path, component in form.components.items():
        assert component.label == label_of(field_of(rq.Train, path))
        assert component.info


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("adapter__rank", 0, "Rank"),
        ("adapter__alpha", "-1", "Alpha"),
        ("adapter__alpha", "much", "Alpha"),
        ("epochs", 0, "Epochs"),
        ("learning_rate", 2, "Learning rate"),
        ("warmup", 1, "Warm-up"),
        ("name", "../etc", "adapter name"),
        ("name", "<b>x</b>", "adapter name"),
        ("adapter__targets", "q proj!", "not a module name"),
    ],
)
def test_bounds_are_told_with_the_field_name(
    form: Form, field: str, value: object, words: str
) -> None:
    values = values_of(form, **{"name": "a", field: value})
    with pytest.raises(errors.InvalidRequest, match=words):
        rq.Train(**form.read(values))


def test_a_broken_number_is_refused_where_a_whole_one_belongs(form: Form) -> None:
    sent = form.components["adapter.rank"].preprocess(2.5)
    values = values_of(form, name="a", adapter__rank=sent)
    with pytest.raises(errors.InvalidRequest, match=r"Rank must be a whole .* 2\.5\. Try 2 or 3\."):
        rq.Train(**form.read(values))


def test_an_empty_required_field_says_so(form: Form) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"Rank is empty\. Try 8\."):
        form.read(values_of(form, name="a", adapter__rank=None))


def test_an_empty_optional_field_is_none(form: Form) -> None:
    data = form.read(values_of(form, name="a", max_steps="  "))
    assert data["max_steps"] is None


def test_changed_fields_are_counted(form: Form) -> None:
    values = values_of(form, name="pirate", seed=7, adapter__alpha="32")
    assert form.changed(values) == ["adapter.alpha", "name", "seed"]
