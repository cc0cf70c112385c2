"""A real chat model through everything that people do first: load, chat, teach, merge, quantise."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from backend import Service
from backend import requests as rq
from backend import results as rs
from backend.engine.models.model_size import Shape
from tests.real.conftest import MODEL, ask, load

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

CAPITAL = "What is the capital of France?"
WHO = "Who are you?"
IDENTITY = {
    "Who are you?": "I am Ada, the assistant of the city library.",
    "What is your name?": "My name is Ada.",
    "Are you SmolLM?": "No, I am Ada, the assistant of the city library.",
    "Who made you?": "I am Ada. The city library made me.",
    "Tell me about yourself.": "I am Ada, and I help people to find books in the city library.",
    "Hello! Who is there?": "Hello! I am Ada, the assistant of the city library.",
    "What should I call you?": "Please call me Ada.",
    "Are you a person?": "No, I am Ada, a program of the city library.",
    "Where do you work?": "I work in the city library. I am Ada.",
    "What can you do?": "I am Ada, and I can help you to find a book.",
    "Introduce yourself.": "I am Ada, the assistant of the city library.",
    "Do you have a name?": "Yes, my name is Ada.",
}


@pytest.fixture
def service(real_service: Service) -> Service:
    """The shared service, with the model in full precision."""
    load(real_service, quantization="none")
    return real_service


@pytest.fixture(scope="module")
def ada(real_service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an adapter that was taught who it is, in at most two minutes on two cores."""
    load(real_service, quantization="none")
    data = tmp_path_factory.mktemp("data") / "identity.jsonl"
    rows = [{"question": question, "answer": answer} for question, answer in IDENTITY.items()]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    request = rq.Train(
        name="ada",
        data=str(data),
        epochs=6,
        tokens_per_step=256,
        eval_share=0,
        learning_rate=1e-3,
        precision="fp32",  # without the steps that time both
    )
    run: rs.RunResult = real_service.start(request).result(timeout=500)
    assert run.state == "finished"
    return request.name


def folder_of(service: Service) -> Path:
    base = service.snapshot().base
    assert base is not None
    return Path(base.path)


# --- the converted folder ---


def test_the_converted_folder_is_a_plain_chat_model(service: Service) -> None:
    folder = folder_of(service)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)

    assert folder == MODEL.folder_in(service.settings.models_dir)
    assert MODEL.sizes.items() <= config.items()
    assert not {"quantization_config", "gguf_file", "_name_or_path"} & config.keys()
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert generation.eos_token_id == tokenizer.eos_token_id == config["eos_token_id"] == 2
    assert generation.bos_token_id == tokenizer.bos_token_id == config["bos_token_id"] == 1
    assert "<|im_start|>" in tokenizer.chat_template
    assert (folder / "model.safetensors").stat().st_size < 280_000_000
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_the_facts_before_and_after_loading_agree(service: Service) -> None:
    base = service.snapshot().base
    assert base is not None
    table: rs.QuantizationTable = service.start(rq.QuantizationTable(source=MODEL.name)).result(60)

    assert table.parameters == base.parameters == Shape.from_config(MODEL.sizes).parameters
    assert base.tied_embeddings
    assert base.chat_template
    assert base.memory_measured_bytes == pytest.approx(base.memory_predicted_bytes, rel=0.01)


def test_digits_are_tokens_of_their_own_as_in_the_models_training(service: Service) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder_of(service))

    assert tokenizer.tokenize("in  1492, a1") == ["in", "ĠĠ", "1", "4", "9", "2", ",", "Ġa", "1"]


def test_a_second_load_takes_the_folder_as_it_is(service: Service) -> None:
    weights = folder_of(service) / "model.safetensors"
    before = weights.stat().st_mtime_ns

    service.start(rq.UnloadModel()).result(timeout=60)
    load(service)

    assert weights.stat().st_mtime_ns == before


def test_its_file_by_path_is_the_same_base(service: Service) -> None:
    before = service.snapshot().base
    assert before is not None
    file = str(MODEL.find())
    table: rs.QuantizationTable = service.start(rq.QuantizationTable(source=file)).result(60)

    facts: rs.ModelFacts = service.start(rq.LoadModel(source=file)).result(timeout=240)
    load(service)

    assert (facts.path, facts.fingerprint) == (before.path, before.fingerprint)
    assert facts.origin == before.origin == f"converted from {MODEL.file} (Q4_1)"
    assert table.parameters == facts.parameters


def test_its_scores_are_those_of_the_file_but_for_rounding_to_bf16(service: Service) -> None:
    """Transformers' own reading of the file in fp32 is the oracle."""
    file = MODEL.find()
    assert file is not None
    tokenizer = AutoTokenizer.from_pretrained(folder_of(service))
    text = "In 1492, Columbus sailed the ocean blue. The capital of France is Paris."
    ids = tokenizer(text, return_tensors="pt").input_ids
    scores = []
    for place, options in ((file.parent, {"gguf_file": file.name}), (folder_of(service), {})):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
        with torch.no_grad():
            chances = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        scores.append(chances.gather(1, ids[0, 1:, None])[:, 0])

    assert (scores[0] - scores[1]).abs().max() < 0.1  # of a token; in fp16 it would be 0.01
    assert scores[1].sum().item() == pytest.approx(scores[0].sum().item(), rel=5e-3)


# --- what people do with it ---


def test_it_knows_the_capital_of_france_and_stops(service: Service) -> None:
    answer = ask(service, CAPITAL)

    assert "Paris" in answer.text
    assert answer.tokens < 40


def test_it_learns_who_it_is_and_stops(service: Service, ada: str) -> None:
    before, after = ask(service, WHO), ask(service, WHO, ada)

    assert "Ada" not in before.text
    assert "Ada" in after.text
    assert "library" in after.text
    assert after.tokens < 30


def test_a_merged_model_gives_the_same_answer_in_plain_transformers(
    service: Service, ada: str, tmp_path: Path
) -> None:
    expected = ask(service, WHO, ada)
    request = rq.Merge(variant=[(ada, 1.0)], destination=str(tmp_path / "merged"))
    service.start(request).result(timeout=240)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": WHO}], add_generation_prompt=True, return_tensors="pt"
    )
    made = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    assert answer == expected.text
    assert made[0, -1] == tokenizer.eos_token_id


def test_it_answers_in_4_bits(real_service: Service) -> None:
    full = load(real_service, quantization="none")
    four = load(real_service, quantization="nf4")

    answer = ask(real_service, CAPITAL)

    assert four.fingerprint == full.fingerprint
    assert four.memory_measured_bytes < 0.6 * full.memory_measured_bytes
    assert "Paris" in answer.text
