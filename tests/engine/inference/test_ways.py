"""The way in which a base answers is found by trying, and every way gives the right answer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from backend import Service, Settings
from backend import requests as rq
from backend.engine.inference import batched_decoding, generate, prompts, ways
from backend.engine.models import loading
from tests.architectures import plain_peft, tiny_models
from tests.engine.architectures import load

WAYS = {
    "llama": ways.Way.BATCH,
    "qwen2_moe": ways.Way.BATCH,
    "mamba": ways.Way.OWN_CACHE,
    "jamba": ways.Way.ALONE,
    "camembert": ways.Way.WHOLE,
}
TOKENS = 6
QUESTIONS = ("Hello!", "What is a cat?")


def base_of(folder: Path, kind: str) -> loading.Base:
    return load(tiny_models.write_model(folder / kind, kind))


def expected(base: loading.Base, question: str) -> str:
    """Answer greedily with whole passes: no cache, no padding, no other row."""
    ids = prompts.encode_prompt(base, [rq.Message(role="user", content=question)])[0].tolist()
    start = len(ids)
    with torch.inference_mode():
        for _ in range(TOKENS):
            ids.append(int(generate.whole_scores(base, ids).argmax()))
            if ids[-1] in prompts.end_tokens(base):
                break
    return str(base.tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("kind", WAYS)
def test_each_kind_of_model_answers_in_its_way_as_alone(kind: str, tmp_path: Path) -> None:
    base = base_of(tmp_path, kind)
    assert ways.of(base) is WAYS[kind]
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        service.start(rq.LoadModel(source=str(tmp_path / kind))).result(timeout=60)
        request = rq.Compare(prompts=list(QUESTIONS), variants=[[], []], max_new_tokens=TOKENS)
        answers = service.start(request).result(timeout=60).answers
    wanted = [expected(base, question) for question in QUESTIONS]
    assert answers == [wanted, wanted]


def test_a_batch_that_changes_its_rows_is_not_used(tmp_path: Path, monkeypatch: Any) -> None:
    """A model whose padding is seen by its rows must answer them one by one."""
    base, plain = base_of(tmp_path, "llama"), batched_decoding.forward

    def leaking(base: loading.Base, step: batched_decoding.Step) -> torch.Tensor:
        step.mask = None
        return plain(base, step)

    monkeypatch.setattr(batched_decoding, "forward", leaking)
    assert ways.of(base) is ways.Way.ALONE


@pytest.mark.parametrize("kind", ["opt", "deepseek_v3"])
def test_rows_with_adapters_of_their_own_are_answered_in_turn_where_layers_mix_them(
    kind: str, tmp_path: Path
) -> None:
    """OPT flattens rows before its linear layers, and latent attention folds heads into them."""
    base = tiny_models.write_model(tmp_path / kind, kind)
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        service.start(rq.LoadModel(source=str(base))).result(timeout=60)
        for seed, name in enumerate(("one", "two")):
            folder = plain_peft.write_adapter(tmp_path / name, base, seed=seed)
            service.start(rq.LoadAdapter(source=str(folder), name=name)).result(timeout=60)
        variants: list[rq.Variant] = [[], [("one", 1.0)], [("two", 1.0)]]
        request = rq.Compare(prompts=list(QUESTIONS), variants=variants, max_new_tokens=TOKENS)
        answers = service.start(request).result(timeout=60).answers
        for variant, found in zip(variants, answers, strict=True):
            assert found == [alone(service, variant, question) for question in QUESTIONS]


def alone(service: Service, variant: rq.Variant, question: str) -> str:
    request = rq.Chat(
        messages=[rq.Message(role="user", content=question)],
        variant=variant,
        max_new_tokens=TOKENS,
    )
    return str(service.start(request).result(timeout=60).text)


def test_the_trial_changes_neither_random_numbers_nor_the_mode(tmp_path: Path) -> None:
    base = base_of(tmp_path, "llama")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ways.of(base)
    assert torch.equal(torch.get_rng_state(), before)
    assert not base.model.training


def test_a_base_is_tried_once(tmp_path: Path, monkeypatch: Any) -> None:
    base = base_of(tmp_path, "llama")
    first = ways.of(base)
    monkeypatch.setattr(ways, "_first_right", None)
    assert ways.of(base) is first
