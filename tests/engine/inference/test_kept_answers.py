"""A next turn computes only what is new, and answers as if nothing had been kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backend import Service, Settings
from backend import requests as rq
from backend.engine.inference import kept_answers, prompts, ways
from backend.engine.inference.direct_model import DirectModel, Segment
from backend.engine.inference.kept_answers import KeptAnswers
from backend.engine.session import Session
from backend.engine.worker import Engine
from benchmarks.random_adapters import add_random_adapter

STORY = "Tell me a short story about a fox."
NEXT = "Where does it sleep?"
LEFT: rq.Variant = [("left", 1.0)]


def user(text: str) -> rq.Message:
    return rq.Message(role="user", content=text)


def assistant(text: str) -> rq.Message:
    return rq.Message(role="assistant", content=text)


def engine_of(service: Service) -> Engine:
    engine: Engine = service.engine._runtime._engine  # type: ignore[union-attr]
    return engine


def chat(service: Service, messages: list[rq.Message], variant: rq.Variant = None) -> str:
    if variant is None:
        variant = []
    request = rq.Chat(messages=messages, variant=variant, max_new_tokens=24)
    return str(service.start(request).result(timeout=60).text)


def freshly(service: Service, messages: list[rq.Message], variant: rq.Variant = None) -> str:
    """Answer with nothing kept before, and leave nothing behind."""
    if variant is None:
        variant = []
    kept = engine_of(service).kept
    kept.clear()
    answer = chat(service, messages, variant)
    kept.clear()
    return answer


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def adapted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    settings = Settings(workspace=tmp_path_factory.mktemp("kept"), runtime="inline")
    with Service(settings) as service:
        load = rq.LoadModel(source="starter", precision=request.param)
        service.start(load).result(timeout=120)
        for seed, name in enumerate(("left", "right")):
            add_random_adapter(service, name, seed=seed, size=0.2)
        yield service


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each pass through the model."""
    found, original = [], DirectModel.scores

    def counting(model: DirectModel, segments: list[Segment]) -> torch.Tensor:
        found.append(sum(len(each.tokens) for each in segments))
        return original(model, segments)

    monkeypatch.setattr(DirectModel, "scores", counting)
    return found


def turns(service: Service, variant: rq.Variant = None) -> list[rq.Message]:
    """Ask a first question; return the conversation with a second one."""
    if variant is None:
        variant = []
    return [user(STORY), assistant(chat(service, [user(STORY)], variant)), user(NEXT)]


def test_a_second_turn_computes_only_what_is_new(adapted: Service, passes: list[int]) -> None:
    second = turns(adapted)
    passes.clear()
    chat(adapted, second)
    partly = passes[0]
    passes.clear()
    freshly(adapted, second)
    assert partly < 0.5 * passes[0]


@pytest.mark.parametrize("variant", [[], LEFT, [("left", 0.5), ("right", 0.5)]])
def test_a_kept_conversation_is_answered_as_a_fresh_one(
    adapted: Service, variant: rq.Variant
) -> None:
    second = turns(adapted, variant)
    kept = chat(adapted, second, variant)
    third = [*second, assistant(kept), user("And then?")]
    last = chat(adapted, third, variant)
    if engine_of(adapted).session.base.dtype == torch.float32:
        assert kept == freshly(adapted, second, variant)
        assert last == freshly(adapted, third, variant)


def test_the_same_question_again_is_answered_in_the_same_way(
    adapted: Service, passes: list[int]
) -> None:
    first = freshly(adapted, [user(STORY)])
    assert chat(adapted, [user(STORY)]) == first
    passes.clear()
    assert chat(adapted, [user(STORY)]) == first
    assert set(passes) == {1}  # even the scores after the prompt are known


def test_an_edited_conversation_is_answered_as_a_fresh_one(adapted: Service) -> None:
    second = turns(adapted)
    chat(adapted, second)
    edits = [
        [user(STORY), assistant("A fox."), user(NEXT)],
        [user(STORY + " It is red."), *second[1:]],
        [*second[:2], user("Why?")],
        [user(STORY)],
    ]
    found = [chat(adapted, edited) for edited in edits]
    if engine_of(adapted).session.base.dtype == torch.float32:
        assert found == [freshly(adapted, edited) for edited in edits]


def test_a_first_question_does_not_depend_on_earlier_ones(adapted: Service) -> None:
    chat(adapted, [user("Tell me a short story about an owl.")])
    assert chat(adapted, [user(STORY)]) == freshly(adapted, [user(STORY)])


@pytest.mark.parametrize("other", [[("right", 1.0)], [("left", 0.4)], []])
def test_another_variant_takes_nothing_of_what_is_kept(
    adapted: Service, other: rq.Variant, passes: list[int]
) -> None:
    engine_of(adapted).kept.clear()
    second = turns(adapted, LEFT)
    passes.clear()
    found = chat(adapted, second, other)
    whole = passes[0]
    passes.clear()
    assert found == freshly(adapted, second, other)
    assert whole == passes[0]


def test_columns_side_by_side_go_on_from_their_own_answers(
    adapted: Service, passes: list[int]
) -> None:
    variants: list[rq.Variant] = [[], LEFT, [("right", 1.0)]]

    def together(conversations: list[list[rq.Message]]) -> list[str]:
        request = rq.SideBySide(conversations=conversations, variants=variants, max_new_tokens=24)
        return [each.text for each in adapted.start(request).result(timeout=60).answers]

    engine_of(adapted).kept.clear()
    first = together([[user(STORY)]] * 3)
    second = [[user(STORY), assistant(text), user(NEXT)] for text in first]
    passes.clear()
    found = together(second)
    partly = sum(passes[:3])
    engine_of(adapted).kept.clear()
    passes.clear()
    fresh = together(second)
    assert partly < 0.5 * sum(passes[:3])
    if engine_of(adapted).session.base.dtype == torch.float32:
        assert found == fresh


def test_an_adapter_made_anew_under_its_name_takes_nothing_of_the_old_one(
    adapted: Service,
) -> None:
    add_random_adapter(adapted, "again", seed=5, size=0.2)
    variant: rq.Variant = [("again", 1.0)]
    second = turns(adapted, variant)
    adapted.start(rq.DeleteAdapter(name="again")).result(timeout=60)
    assert engine_of(adapted).kept.nbytes == 0
    add_random_adapter(adapted, "again", seed=6, size=0.2)
    assert chat(adapted, second, variant) == freshly(adapted, second, variant)
    adapted.start(rq.DeleteAdapter(name="again")).result(timeout=60)


@pytest.mark.parametrize("operation", ["train", "resume", "merge", "load-model", "combine"])
def test_nothing_is_kept_through_an_operation_that_changes_the_model(
    adapted: Service, operation: str
) -> None:
    chat(adapted, [user(STORY)])
    kept = engine_of(adapted).kept
    assert kept.nbytes > 0
    kept.prepare_for(operation)
    assert kept.nbytes == 0


def test_nothing_is_kept_of_an_adapter_that_is_being_trained(
    adapted: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(adapted)
    engine.kept.clear()
    monkeypatch.setattr(engine.session, "learning", adapted.library.get("left"))
    chat(adapted, [user(STORY)], LEFT)
    assert engine.kept.nbytes == 0


@pytest.mark.parametrize(("name", "most"), [("MOST_BYTES", 1), ("MOST_ROWS", 0)])
def test_what_is_kept_is_bounded(
    adapted: Service, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    monkeypatch.setattr(kept_answers, name, most)
    chat(adapted, [user(STORY)])
    assert engine_of(adapted).kept.nbytes == 0


def test_a_stopped_answer_is_gone_on_from_rightly(adapted: Service) -> None:
    pieces = adapted.chat(rq.Chat(messages=[user(STORY)], max_new_tokens=128))
    said = next(pieces)
    pieces.close()
    second = [user(STORY), assistant(said.strip()), user(NEXT)]
    found = chat(adapted, second)
    if engine_of(adapted).session.base.dtype == torch.float32:
        assert found == freshly(adapted, second)


def test_scores_after_a_kept_beginning_are_those_of_the_whole_text(tmp_path: Path) -> None:
    with Service(Settings(workspace=tmp_path / "w", runtime="inline")) as service:
        service.start(rq.LoadModel(source="starter", precision="fp32")).result(timeout=120)
        session: Session = engine_of(service).session
        model = ways.direct(session.base)
        assert model is not None
        ids = prompts.encode_prompt(session.base, [user(STORY + NEXT)])[0].tolist()
        with torch.inference_mode():
            whole = model.scores([Segment(model.cache(0), {}, ids)])
            for cut in (1, len(ids) // 2, len(ids) - 1):
                cache = model.cache(0)
                model.scores([Segment(cache, {}, [*ids[:cut], 3, 4, 5])])
                cache.crop(cut)
                cache.trim()
                parts = model.scores([Segment(cache, {}, ids[cut:])])
                assert (parts - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_a_worker_passes_the_same_store_to_each_answer(adapted: Service) -> None:
    store: Any = engine_of(adapted).kept
    assert isinstance(store, KeptAnswers)
    store.clear()
    chat(adapted, [user(STORY)])
    one = store.nbytes
    chat(adapted, [user("Hello!")], LEFT)
    assert store.nbytes > one > 0
