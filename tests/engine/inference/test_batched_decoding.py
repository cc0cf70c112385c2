"""Several variants in one batch: each row as if it were alone, and nothing left on the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend import Service, Settings
from backend import requests as rq
from backend.engine.inference import batched_decoding, direct_decoding, rows, ways
from backend.engine.inference.direct_model import DirectModel
from backend.engine.session import Session
from backend.errors import InvalidRequest
from backend.settings import STARTER
from benchmarks.random_adapters import add_random_adapter

STORY = "Tell me a short story about a fox."
PROMPTS = [STORY, "Hello!", "Where is the cat?", "Tell me a short story about an owl."]
VARIANTS: list[rq.Variant] = [[], [("left", 1.0)], [("right", 0.6)], [("patterned", 1.0)]]


def ask(text: str) -> list[rq.Message]:
    return [rq.Message(role="user", content=text)]


def session_of(service: Service) -> Session:
    session: Session = service.engine._runtime._engine.session  # type: ignore[union-attr]
    return session


def side_by_side(
    service: Service, variants: list[rq.Variant], texts: list[str], **settings: Any
) -> tuple[list[str], int]:
    request = rq.SideBySide(
        conversations=[ask(text) for text in texts],
        variants=variants,
        **{"max_new_tokens": 40, **settings},
    )
    result = service.start(request).result(timeout=120)
    return [each.text for each in result.answers], result.batched


def alone(service: Service, variant: rq.Variant, text: str, **settings: Any) -> str:
    request = rq.Chat(messages=ask(text), variant=variant, **{"max_new_tokens": 40, **settings})
    answer: str = service.start(request).result(timeout=60).text
    return answer


def score(service: Service, variant: rq.Variant) -> float:
    request = rq.Score(texts=["The fox met Vera, the singer."], variants=[variant])
    value: float = service.start(request).result(timeout=60).scores[0][0]
    return value


def hooks(service: Service) -> int:
    modules = session_of(service).model.modules()
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of this module's own: adapters that change answers much, in full precision."""
    settings = Settings(workspace=tmp_path_factory.mktemp("batch"), runtime="inline")
    with Service(settings) as service:
        service.start(rq.LoadModel(source="starter")).result(timeout=120)
        add_random_adapter(service, "left", seed=1, size=0.2)
        add_random_adapter(service, "right", seed=2, size=0.2, r=16, use_rslora=True)
        patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 32}}
        add_random_adapter(service, "patterned", seed=3, size=0.1, **patterns)
        add_random_adapter(service, "dora", seed=4, size=0.2, use_dora=True)
        yield service


@pytest.fixture(params=["from weights", "through modules"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer from the base's weights, or as bases do that cannot be computed so."""
    if request.param == "through modules":
        monkeypatch.setattr(ways, "direct", lambda base: None)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_is_the_same_alone_and_in_company(adapted: Service, temperature: float) -> None:
    settings = {"temperature": temperature, "seed": 7}

    together, batched = side_by_side(adapted, VARIANTS, PROMPTS, **settings)

    assert batched == 4
    pairs = zip(VARIANTS, PROMPTS, strict=True)
    assert together == [alone(adapted, variant, text, **settings) for variant, text in pairs]


def test_rounding_does_not_decide_in_half_precision(tmp_path: Path) -> None:
    with Service(Settings(workspace=tmp_path / "w", runtime="inline")) as service:
        service.start(rq.LoadModel(source="starter", precision="bf16")).result(timeout=120)
        for number, name in enumerate(("left", "right", "patterned")):
            add_random_adapter(service, name, seed=number, size=0.25)
        for text in PROMPTS:
            together, _ = side_by_side(service, VARIANTS, [text] * 4, max_new_tokens=24)
            assert together == [alone(service, v, text, max_new_tokens=24) for v in VARIANTS]


@pytest.mark.usefixtures("either_way")
def test_an_answer_alone_is_never_computed_again(
    adapted: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MARGIN", 10.0)
    for module in (direct_decoding, batched_decoding):
        monkeypatch.setattr(module, "_alone", None)
    for variant in VARIANTS:
        assert alone(adapted, variant, STORY)


def test_a_batch_in_half_precision_computes_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a batch changes bits, rows are answered in turn; elsewhere it needs no check."""
    monkeypatch.setattr(rows, "MARGIN", 10.0)
    for module in (direct_decoding, batched_decoding):
        monkeypatch.setattr(module, "_alone", None)
    with Service(Settings(workspace=tmp_path / "w", runtime="inline")) as service:
        service.start(rq.LoadModel(source="starter", precision="bf16")).result(timeout=120)
        is_exact, found = ways.is_exact, []
        for verdict in (True, False):
            monkeypatch.setattr(ways, "is_exact", lambda model, verdict=verdict: verdict)
            found.append(side_by_side(service, [[], []], PROMPTS[:2]))
        assert [batched for _, batched in found] == [2, 0]
        if is_exact(DirectModel(session_of(service).base)):
            assert found[0][0] == found[1][0]


@pytest.mark.usefixtures("either_way")
def test_close_scores_are_decided_by_the_row_alone(adapted: Service) -> None:
    """The margin is far above what company changes, and a wider one gives the same answers."""
    narrow, _ = side_by_side(adapted, VARIANTS, PROMPTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "MARGIN", 10.0)  # every token of a shared row is decided alone
        wide, _ = side_by_side(adapted, VARIANTS, PROMPTS)
    assert narrow == wide


def test_greedy_answers_are_those_of_plain_peft(adapted: Service) -> None:
    answers, _ = side_by_side(adapted, VARIANTS[:2], [STORY, STORY])
    model = AutoModelForCausalLM.from_pretrained(STARTER / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    turns = [{"role": "user", "content": STORY}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")

    def generated(model: Any) -> str:
        output = model.generate(**ids, max_new_tokens=40, do_sample=False)
        new = output[0, ids.input_ids.shape[1] :]
        return str(tokenizer.decode(new, skip_special_tokens=True)).strip()

    plain = generated(model)
    folder = adapted.library.folder(adapted.library.get("left").id)
    assert answers == [plain, generated(PeftModel.from_pretrained(model, str(folder)).eval())]


def test_the_same_adapter_at_two_strengths_shares_a_batch(adapted: Service) -> None:
    variants: list[rq.Variant] = [[("left", 1.0)], [("left", 0.3)], []]

    together, batched = side_by_side(adapted, variants, [STORY] * 3)

    assert batched == 3
    assert together == [alone(adapted, variant, STORY) for variant in variants]
    assert together[0] != together[1]


def test_dora_goes_in_turn_and_several_adapters_share_a_batch(adapted: Service) -> None:
    mixed: rq.Variant = [("left", 0.5), ("right", 0.5)]
    variants: list[rq.Variant] = [mixed, [("dora", 1.0)], [("right", 1.0)], []]

    together, batched = side_by_side(adapted, variants, [STORY] * 4)

    assert batched == 3
    assert together == [alone(adapted, variant, STORY) for variant in variants]
    assert len(set(together)) == 4


def test_different_seeds_differ_where_that_is_asked_for(adapted: Service) -> None:
    settings = {"temperature": 1.3, "seed": 3}
    same, _ = side_by_side(adapted, [[], []], [STORY] * 2, **settings)
    other, _ = side_by_side(adapted, [[], []], [STORY] * 2, same_seed=False, **settings)

    assert same[0] == same[1] == other[0]
    assert other[0] != other[1]


def test_pieces_are_tagged_with_their_column_and_add_up(adapted: Service) -> None:
    request = rq.SideBySide(conversations=[ask(p) for p in PROMPTS], variants=VARIANTS)
    texts, order = [""] * 4, []
    for column, piece in adapted.side_by_side(request):
        texts[column] += piece
        order.append(column)

    answers, _ = side_by_side(adapted, VARIANTS, PROMPTS, max_new_tokens=128)
    assert [text.strip() for text in texts] == answers
    assert len(set(order[:6])) > 1  # together, not one after the other


def test_closing_the_pieces_stops_all_columns(adapted: Service) -> None:
    long = rq.SideBySide(
        conversations=[ask(STORY)] * 2, variants=[[], [("left", 1.0)]], max_new_tokens=400
    )
    pieces = adapted.side_by_side(long)
    next(pieces)
    pieces.close()

    assert adapted.snapshot().job is None
    assert hooks(adapted) == 0


def test_a_stop_tells_whole_answers_from_cut_ones_and_from_those_never_begun(
    adapted: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = side_by_side(adapted, [[], []], ["Hello!", STORY])
    request = rq.SideBySide(
        conversations=[ask("Hello!"), ask(STORY), ask(STORY)],
        variants=[[], [], [("dora", 1.0)]],
        max_new_tokens=128,
    )
    original = rows.take_tokens

    def stopping(*args: Any) -> Any:
        ended = original(*args)
        if ended:  # the short answer is whole, the story is not, and DoRA's turn comes last
            adapted.stop()
        return ended

    monkeypatch.setattr(direct_decoding, "take_tokens", stopping)
    short, story, dora = adapted.start(request).result(timeout=120).answers

    assert [each.stopped for each in (short, story, dora)] == [False, True, True]
    assert short.text == whole[0]
    assert story.text
    assert dora.tokens == 0


def test_nothing_is_left_on_the_model_by_a_failure(
    adapted: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted.start(rq.SetActive(adapters=[("dora", 1.0)])).result(timeout=60)
    before = [score(adapted, variant) for variant in [*VARIANTS, [("dora", 1.0)]]]
    original, calls = DirectModel.scores, []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of luck")
        return original(*args)

    monkeypatch.setattr(DirectModel, "scores", failing)
    with pytest.raises(Exception, match="out of luck"):
        side_by_side(adapted, VARIANTS, PROMPTS)

    assert hooks(adapted) == 0
    assert adapted.snapshot().active == [("dora", 1.0)]
    assert [score(adapted, v) for v in [*VARIANTS, [("dora", 1.0)]]] == before
    adapted.start(rq.SetActive(adapters=[])).result(timeout=60)


def test_answering_leaves_every_score_as_it_was(adapted: Service) -> None:
    variants = [*VARIANTS, [("dora", 1.0)], [("left", 0.5), ("right", -0.5)]]
    before = [score(adapted, variant) for variant in variants]
    side_by_side(adapted, VARIANTS, PROMPTS, temperature=0.5)
    assert [score(adapted, variant) for variant in variants] == before


def test_a_comparison_is_one_answer_for_each_prompt_and_variant(adapted: Service) -> None:
    prompts = [*PROMPTS, "What does the baker make?"]  # 20 rows: more than one pass holds
    request = rq.Compare(prompts=prompts, variants=VARIANTS, max_new_tokens=16)

    answers = adapted.start(request).result(timeout=120).answers

    assert answers == [
        [alone(adapted, variant, text, max_new_tokens=16) for text in prompts]
        for variant in VARIANTS
    ]


def test_one_conversation_too_long_refuses_all(adapted: Service) -> None:
    with pytest.raises(InvalidRequest, match="the model reads at most"):
        side_by_side(adapted, [[], [("left", 1.0)]], ["Hello!", "cat " * 3000])


def test_the_next_word_shows_whether_an_adapter_is_on(adapted: Service) -> None:
    request = rq.NextToken(prompt="Hello!", variants=VARIANTS[:2], top=8)

    found = adapted.start(request).result(timeout=60)

    assert len(found.words) == 8
    assert found.words[0] == "H"
    assert 0.5 < found.chances[0][0] <= 1
    assert found.chances[0] != found.chances[1]
    assert all(sum(chances) <= 1 + 1e-9 for chances in found.chances)


def test_scores_tell_what_each_piece_adds(adapted: Service) -> None:
    texts = ["The café is 家.", "", "Hello"]
    request = rq.Score(texts=texts, variants=VARIANTS[:2], per_token=True)

    found = adapted.start(request).result(timeout=60)

    assert found.pieces is not None
    assert found.piece_scores is not None
    assert "".join(found.pieces[0]).endswith(texts[0])
    for totals, texts_pieces in zip(found.scores, found.piece_scores, strict=True):
        for total, pieces, shares in zip(totals, found.pieces, texts_pieces, strict=True):
            assert len(pieces) == len(shares)
            assert sum(shares) == pytest.approx(total, abs=1e-6)
