"""Requests refuse what cannot work before anything starts, in words that name the field."""

from typing import Any

import pytest
from pydantic import BaseModel

from backend import requests as rq
from backend.errors import InvalidRequest

FORMS = (
    *(rq.Lora, rq.LoadModel, rq.Train, rq.Preflight, rq.PreviewData, rq.PrepareData, rq.Columns),
    *(rq.DescribeHubData, rq.DownloadHubData),
    *(rq.Resume, rq.ExportRun, rq.SaveAdapter, rq.PushAdapter),
)
SAMPLES: list[rq.Request] = [
    rq.LoadModel(source="someone/model", precision="bf16", revision="v1"),
    rq.UnloadModel(),
    rq.Train(name="pirate", adapter=rq.Lora(rank=4, targets=["q_proj"]), start_from="older"),
    rq.Resume(run_id="20250101-120000-pirate-ab12"),
    rq.ExportRun(run_id="20250101-120000-pirate-ab12", destination="copies/run"),
    rq.SaveAdapter(name="pirate", destination="copies/pirate"),
    rq.PushAdapter(name="pirate", repo_id="someone/pirate", private=False),
    rq.SetActive(adapters=[("pirate", 0.5)]),
    rq.Compare(prompts=["Hello"], variants=[[], [("pirate", 1.0)]]),
    rq.Score(texts=["Hello"], variants=[[]]),
    rq.Preflight(train=rq.Train(name="pirate"), measure=False),
    rq.PreviewData(data="starter:pirate", rows=3),
    rq.PrepareData(data="rows.csv", columns=rq.Columns(prompt="q", answer="a")),
    rq.DescribeHubData(data="owner/set:english:train"),
    rq.DownloadHubData(data="owner/set"),
    rq.Chat(messages=[rq.Message(role="user", content="Hello")], variant=[("pirate", 1.0)]),
    rq.SideBySide(conversations=[[rq.Message(role="user", content="Hello")]], variants=[[]]),
    rq.NextToken(prompt="Hello", variants=[[]], top=3),
    rq.QuantizationTable(source="starter"),
    rq.InspectAdapter(source="library:pirate"),
    rq.LoadAdapter(source="someone/adapter", name="theirs"),
    rq.UnloadAdapter(name="pirate"),
    rq.DeleteAdapter(name="pirate"),
    rq.RestoreAdapter(name="pirate"),
    rq.RenameAdapter(name="pirate", new_name="corsair"),
    rq.Combine(name="both", sources=[("pirate", 0.7), ("polite", -0.3)], method="ties"),
    rq.Similarity(names=["pirate", "polite"]),
    rq.Merge(variant=[("pirate", 1.0)], destination="merged/pirate"),
    rq.PrepareHotswap(adapters=["pirate"], compile=False),
    rq.Hotswap(adapter="pirate"),
    rq.EndHotswap(),
    rq.ConvertAdapter(name="pirate", new_name="plain pirate", rank=4),
]


def test_every_operation_has_a_sample_here() -> None:
    assert {type(sample) for sample in SAMPLES} == set(rq.BY_NAME.values())


@pytest.mark.parametrize("sample", SAMPLES, ids=rq.name_of)
def test_a_request_survives_json(sample: rq.Request) -> None:
    text = sample.model_dump_json()

    assert type(sample).model_validate_json(text) == sample
    assert rq.parse(rq.name_of(sample), sample.model_dump(mode="json")) == sample


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_field_of_a_form_says_what_a_person_needs(form: type[BaseModel]) -> None:
    for name, field in form.model_fields.items():
        if name in ("method", "adapter", "train", "columns"):
            continue
        extra = field.json_schema_extra
        assert isinstance(extra, dict), name
        assert extra["label"], name
        assert extra["level"] in ("basic", "advanced"), name
        assert (field.description or "").endswith("."), name
        assert len(field.description or "") <= 110, name


@pytest.mark.parametrize("form", [*FORMS, rq.Chat, rq.Compare], ids=lambda form: form.__name__)
def test_every_number_has_bounds(form: type[BaseModel]) -> None:
    for name, schema in form.model_json_schema()["properties"].items():
        for part in schema.get("anyOf", [schema]):
            if part.get("type") in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & part.keys(), name
                assert {"maximum", "exclusiveMaximum"} & part.keys(), name


def test_five_fields_of_training_are_basic() -> None:
    fields = {**rq.Train.model_fields, **rq.Lora.model_fields}
    basic = [
        name
        for name, field in fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra["level"] == "basic"
    ]

    assert basic == ["name", "data", "epochs", "learning_rate", "rank"]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: rq.Lora(rank=0), "Rank must be at least 1, got 0. Try 8."),
        (
            lambda: rq.Lora(rank=5000),
            "Rank must be at most 1,024, got 5,000. Try 8.",
        ),
        (
            lambda: rq.parse("train", {"name": "x", "adapter": {"rank": 0}}),
            "Rank must be at least 1, got 0. Try 8.",
        ),
        (
            lambda: rq.Columns(prompt="q"),
            "A column is chosen for the question but not for the answer. Choose both.",
        ),
        (
            lambda: rq.Columns(answer="a"),
            "A column is chosen for the answer but not for the question. Choose both.",
        ),
        (
            lambda: rq.Columns(prompt="q", answer="a", text="t"),
            "Columns can be a question with its answer or plain text, not both. Clear one of them.",
        ),
        (
            lambda: rq.Columns(text="t", system="s"),
            "A system prompt needs a question and its answer, or a conversation. "
            "Choose their columns too.",
        ),
        (
            lambda: rq.Train(name="x", columns={"question": "q"}),
            "question is not a setting of Columns.",
        ),
        (lambda: rq.Lora(ranc=4), "ranc is not a setting of Lora. Did you mean rank?"),
        (lambda: rq.Train(name="x", colour=4), "colour is not a setting of Train."),
        (lambda: rq.Train(), "Name is missing."),
        (
            lambda: rq.SetActive(adapters=[("x", float("inf"))]),
            "Active adapters, entry 1, the strength must be a finite number, got inf.",
        ),
        (
            lambda: rq.Combine(name="x", sources=[("a", 1.0), ("b", 1e30)]),
            "Ingredients, entry 2, the strength must be at most 10,000,000, got 1e+30. "
            "Try 10,000,000.",
        ),
        (
            lambda: rq.SetActive(adapters=[("x", -1e8)]),
            "Active adapters, entry 1, the strength must be at least -10,000,000, "
            "got -100,000,000. Try -10,000,000.",
        ),
        (
            lambda: rq.Train(name="x", epochs=float("nan")),
            "Epochs must be a number, got nan. Try 6.",
        ),
        (
            lambda: rq.Train(name="x", learning_rate="fast"),
            "Learning rate must be a number, got 'fast'. Leave it empty if in doubt.",
        ),
        (
            lambda: rq.Lora(targets=["(q|k)+"]),
            "'(q|k)+' is not a module name. Names look like q_proj or self_attn.v_proj.",
        ),
        (
            lambda: rq.Lora(targets=" , "),
            "Name at least one module, for example q_proj, or choose all-linear.",
        ),
        (
            lambda: rq.parse("fly", {}),
            f"There is no operation called 'fly'. Known: {', '.join(rq.BY_NAME)}.",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_words(build: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build()

    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "name", ["", " ", "-pirate", "a/b", "../up", "a" * 41, "pirate\n2", "naïve", ".hidden", "a.b"]
)
def test_odd_adapter_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rq.Train(name=name)

    assert str(caught.value) == (
        "An adapter name has 1 to 40 letters, digits, spaces, - or _, and starts with a letter or "
        f"digit; got {name.strip()!r}. Try 'pirate' or 'my adapter 2'."
    )


def test_outer_spaces_of_a_name_do_not_count() -> None:
    assert rq.Train(name="  my adapter-2_b ").name == "my adapter-2_b"


@pytest.mark.parametrize("run_id", ["../../etc", "a/b", "", "."])
def test_a_run_id_is_no_path(run_id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"Run (cannot be|must not be empty)"):
        rq.Resume(run_id=run_id)


def test_several_faults_are_all_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        rq.Train(name="x", epochs=0, seed=-1)

    assert str(caught.value) == (
        "Epochs must be more than 0, got 0. Try 6. Seed must be at least 0, got -1. Try 42."
    )


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        rq.Lora().rank = 4  # type: ignore[misc]


def test_module_names_may_be_written_with_commas() -> None:
    assert rq.Lora(targets="q_proj, v_proj").targets == ["q_proj", "v_proj"]


def test_alpha_is_twice_the_rank_unless_it_is_given() -> None:
    assert rq.Lora(rank=4).effective_alpha == 8
    assert rq.Lora(rank=4, alpha=1).effective_alpha == 1
