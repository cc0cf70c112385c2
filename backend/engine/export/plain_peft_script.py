"""Repeats one training run with plain PEFT: same data, same order, same losses up to rounding.

This needs PyTorch, Transformers, PEFT (and bitsandbytes, for a quantised base or an optimiser in 8
bits), and the file `examples.jsonl` in the same folder. It does not need the program that wrote it.
Each line of `examples.jsonl` is one tokenised example: `ids` are its tokens, and `learned` says for
each token whether it has a loss (1) or not (0).

    python train_again.py                       prints the loss of each step, saves `adapter_again`
    python train_again.py --base FOLDER-OR-ID   if the base model is elsewhere
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    get_scheduler,
    set_seed,
)

# <settings>
BASE = "starter/model"
BASE_DTYPE = "float32"
QUANTIZATION = "none"
DOUBLE_QUANT = False
UNPACKED_TO = "auto"
COMPUTE_PRECISION = "fp32"
START_FROM = ""
TARGET_MODULES = ["q_proj", "v_proj"]
TARGET_PARAMETERS: list[str] = []
RANK = 8
ALPHA = 16.0
DROPOUT = 0.0
USE_RSLORA = False
USE_DORA = False
SEGMENTS = [2.0]
MAX_STEPS: int | None = None
TOKENS_PER_STEP = 512
ACCUMULATION = 1
LEARNING_RATE = 3e-3
SCHEDULER = "cosine"
WARMUP = 0.05
OPTIMIZER = "adamw"
WEIGHT_DECAY = 0.0
CHANGES: list[tuple[int, float | None, int | None]] = []
GRADIENT_CHECKPOINTING = False
SEED = 42
# </settings>

HERE = Path(__file__).resolve().parent
Example = tuple[list[int], list[int]]
Pack = dict[str, Any]
Factor = Callable[[int], float]


# -- the order of the data -------------------------------------------------------------------------


def read_examples() -> list[Example]:
    lines = (HERE / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["ids"], row["learned"]) for row in map(json.loads, lines)]


def steps_of(packs: list[list[int]]) -> list[list[list[int]]]:
    """Group packs into steps of `ACCUMULATION` packs; the last step takes the rest."""
    return [packs[i : i + ACCUMULATION] for i in range(0, len(packs), ACCUMULATION)]


# -- the model -------------------------------------------------------------------------------------


def load_model(base: str, device: torch.device) -> PeftModel:
    """Load the base and add the adapter. The seed decides the initial weights of a new adapter."""
    model = read_base(base, device)
    widen_norms(model)
    torch.manual_seed(SEED)
    if START_FROM:
        peft = PeftModel.from_pretrained(model, str(HERE / START_FROM), is_trainable=True)
    else:
        config = LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,  # type: ignore[arg-type, unused-ignore]
            lora_dropout=DROPOUT,
            target_modules=TARGET_MODULES,
            target_parameters=TARGET_PARAMETERS or None,
            use_rslora=USE_RSLORA,
            use_dora=USE_DORA,
            task_type="CAUSAL_LM",
        )
        peft = get_peft_model(model, config)
    if GRADIENT_CHECKPOINTING and model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    peft.train()
    return peft


def read_base(base: str, device: torch.device) -> PreTrainedModel:
    """Read the base; files that are already quantised are read as they are, or unpacked."""
    config = AutoConfig.from_pretrained(base)
    wanted, stored = quantization(device), getattr(config, "quantization_config", None)
    if stored:
        stored["dequantize"] = wanted is None
        if wanted is not None and QUANTIZATION != "int8":
            own = stored.get("bnb_4bit_compute_dtype")
            usual = str(wanted.bnb_4bit_compute_dtype).removeprefix("torch.")
            keeps = UNPACKED_TO == "auto" and own in ("float32", "bfloat16")
            stored["bnb_4bit_compute_dtype"] = own if keeps else usual
        wanted = None
    model = AutoModelForCausalLM.from_pretrained(
        base, config=config, dtype=BASE_DTYPE, quantization_config=wanted, device_map={"": device}
    )
    for parameter in model.parameters() if stored else ():
        packed = hasattr(parameter, "quant_state")
        if parameter.is_floating_point() and not packed:
            parameter.data = parameter.data.to(getattr(torch, BASE_DTYPE))
    return model


def quantization(device: torch.device) -> BitsAndBytesConfig | None:
    if QUANTIZATION == "none":
        return None
    if QUANTIZATION == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    usual = "bfloat16" if computes_bf16(device) else "float32"
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=QUANTIZATION,
        bnb_4bit_use_double_quant=DOUBLE_QUANT,
        bnb_4bit_compute_dtype=getattr(torch, usual if UNPACKED_TO == "auto" else UNPACKED_TO),
    )


def computes_bf16(device: torch.device) -> bool:
    """Tell whether a GPU computes bf16 natively; older ones convert, which is slower than fp32."""
    if device.type not in ("cuda", "xpu"):
        return False
    return torch.get_device_module(device).is_bf16_supported(including_emulation=False)


def widen_norms(model: PreTrainedModel) -> None:
    """Cast the norms of a quantised base to fp32, so that small changes are not rounded away."""
    if QUANTIZATION != "none":
        for parameter in model.parameters():
            if parameter.ndim == 1 and parameter.is_floating_point():
                parameter.data = parameter.data.float()


def compute_precision(device: torch.device) -> AbstractContextManager[Any]:
    if COMPUTE_PRECISION == "fp32":
        return nullcontext()
    half = torch.bfloat16 if COMPUTE_PRECISION == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=half)


# -- packs of examples -----------------------------------------------------------------------------

# <layout>


def passes(lengths: list[int], epochs: float, generator: random.Random) -> list[list[int]]:
    """Every epoch sees each example once, in a new order; a fractional epoch sees its share.

    Examples fill packs in that order; a pack is closed when the next example does not fit.
    """
    packs: list[list[int]] = []
    while epochs > 0:
        order = list(range(len(lengths)))
        generator.shuffle(order)
        room = 0
        for number in order[: max(1, round(len(order) * min(epochs, 1.0)))]:
            if lengths[number] > room:
                packs.append([])
                room = TOKENS_PER_STEP
            packs[-1].append(number)
            room -= lengths[number]
        epochs -= 1
    return packs


def lay_out(examples: list[Example]) -> Pack:
    """Put the examples of a pack side by side in one row, the longest first.

    Positions restart at 0 for each example. Without an attention mask and a cache, Transformers
    then isolates the examples from each other, so the row gives the same loss as the examples one
    by one. Nothing predicts an example's first token. input_ids, position_ids: (1, tokens), int64;
    logits_to_keep, labels: (kept,), int64.
    """
    ids: list[int] = []
    positions: list[int] = []
    learned: list[int] = []
    for tokens, flags in sorted(examples, key=lambda example: len(example[0]), reverse=True):
        ids += tokens
        positions += range(len(tokens))
        learned += [0, *flags[1:]]
    targets = torch.tensor(learned).nonzero().reshape(-1)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "logits_to_keep": targets - 1,
        "labels": torch.tensor(ids)[targets],
    }


def loss_sum(model: PeftModel, pack: Pack) -> torch.Tensor:
    """Return the summed loss (nats) of a pack; logits are computed only for tokens with loss."""
    inputs = {name: tensor.to(model.device) for name, tensor in pack.items()}
    labels = inputs.pop("labels")
    if fills_up(model):
        fill_up(inputs)
    with compute_precision(model.device):
        logits = model(**inputs, use_cache=False).logits[0, : len(labels)]
    return cross_entropy(logits.float(), labels, reduction="sum")


def fills_up(model: PeftModel) -> bool:
    """Tell whether packs are padded: a processor in half precision compiles for each length."""
    half = COMPUTE_PRECISION != "fp32" or next(model.parameters()).dtype != torch.float32
    return half and model.device.type == "cpu"


def fill_up(inputs: Pack) -> None:
    """Pad a pack to the next of a few lengths; the padding has no loss."""
    ids, kept = inputs["input_ids"], inputs["logits_to_keep"]
    more = round_up(ids.shape[1]) - ids.shape[1]
    inputs["input_ids"] = pad(ids, (0, more))
    positions = [inputs["position_ids"], torch.arange(more, device=ids.device)[None]]
    inputs["position_ids"] = torch.cat(positions, dim=1)
    inputs["logits_to_keep"] = pad(kept, (0, round_up(len(kept)) - len(kept)))


def round_up(length: int) -> int:
    step = max(32, (1 << length.bit_length()) // 32)
    return -(-length // step) * step


# </layout>


# -- the learning rate -----------------------------------------------------------------------------


def schedule(optimizer: torch.optim.Optimizer, lengths: list[int]) -> LambdaLR:
    """Return one schedule for the run, and the same again for the steps of each extension."""
    factors = [
        get_scheduler(SCHEDULER, optimizer, round(WARMUP * steps), steps).lr_lambdas[0]
        for steps in lengths
    ]

    def factor(step: int) -> float:
        for number, steps in enumerate(lengths):
            if step < steps or number == len(lengths) - 1:
                return float(factors[number](step))
            step -= steps
        raise AssertionError("The last schedule takes every step that is left.")

    return LambdaLR(optimizer, changed(factor, sum(lengths[:-1]), lengths[-1]))


FALLS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "constant_with_warmup": lambda done: 1.0,
}


def changed(planned: Factor, begun: int, steps: int) -> Factor:
    """Return the schedule with the changes that were made during the run.

    The last segment starts after step `begun`. Each change was made after a step. A new rate
    restarts the schedule, from that rate to zero at the last step. Another number of steps
    stretches the current schedule.
    """
    factor, total, start, value = planned, begun + steps, begun + round(WARMUP * steps), 1.0
    for after, rate, wanted in CHANGES:
        total = max(wanted, after) if wanted else total
        if rate is not None:
            start, value = after, rate / LEARNING_RATE
        factor = joined(after, factor, joined(start, planned, falling(start, value, total)))
    return factor


def joined(step: int, before: Factor, later: Factor) -> Factor:
    return lambda now: before(now) if now < step else later(now)


def falling(start: int, value: float, end: int) -> Factor:
    length = max(end - start, 1)
    return lambda now: value * FALLS[SCHEDULER](min((now - start) / length, 1.0))


# -- the run ---------------------------------------------------------------------------------------


def plan(
    examples: list[Example], epochs: list[float], limit: int | None
) -> list[list[list[list[int]]]]:
    """Return the steps of each segment; all of them draw their order from one generator."""
    generator = random.Random(SEED)
    lengths = [len(tokens) for tokens, _ in examples]
    segments = [steps_of(passes(lengths, each, generator)) for each in epochs]
    segments[0] = segments[0][:limit]
    return segments


def taken(
    examples: list[Example], segments: list[list[list[list[int]]]]
) -> Iterator[list[list[int]]]:
    """Return the steps of the run; they differ from the plan if their number was changed."""
    wanted = [max(steps, after) for after, _, steps in CHANGES if steps]
    total = wanted[-1] if wanted else sum(map(len, segments))
    epochs = list(SEGMENTS)
    while sum(map(len, segments)) < total:
        epochs[-1] = math.ceil(2 * epochs[-1])
        segments = plan(examples, epochs, MAX_STEPS if len(epochs) > 1 else None)
    return islice(chain.from_iterable(segments), total)


def new_optimizer(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "eps": 1e-8}
    if OPTIMIZER == "adamw":
        return torch.optim.AdamW(weights, fused=True, **options)
    in_8bit = import_module("bitsandbytes").optim.AdamW8bit
    found: torch.optim.Optimizer = in_8bit(weights, **options)
    return found


def train(model: PeftModel, examples: list[Example]) -> Iterator[float]:
    """Train, and yield the loss of each step: the mean over all its tokens with loss."""
    segments = plan(examples, SEGMENTS, MAX_STEPS)
    steps = list(taken(examples, segments))
    packs = [lay_out([examples[n] for n in pack]) for step in steps for pack in step]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = new_optimizer(weights)
    rate = schedule(optimizer, [len(segment) for segment in segments])
    # In fp16, losses are scaled up and gradients scaled down, so that small gradients are not lost.
    scaler = torch.amp.GradScaler(model.device.type, enabled=COMPUTE_PRECISION == "fp16")
    set_seed(SEED)  # for dropout
    stream = iter(DataLoader(packs, batch_size=None, shuffle=False))
    for step in steps:
        batch = [next(stream) for _ in step]
        learned = sum(len(pack["labels"]) for pack in batch)
        total = 0.0
        for pack in batch:
            loss = loss_sum(model, pack) / learned
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimizer)
        clip_grad_norm_(weights, 1.0)
        scaler.step(optimizer)
        scaler.update()
        rate.step()
        optimizer.zero_grad()
        yield total


def usual_device() -> str:
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description="Repeat a training run with plain PEFT.")
    parser.add_argument("--base", default=BASE, help="folder or Hub id of the base model")
    parser.add_argument("--device", default=usual_device())
    options = parser.parse_args()
    model = load_model(options.base, torch.device(options.device))
    for step, loss in enumerate(train(model, read_examples()), 1):
        print(f"step {step} loss {loss:.8g}", flush=True)
    model.save_pretrained(str(HERE / "adapter_again"), save_embedding_layers=False)
    print(f"Saved {HERE / 'adapter_again'}.")


if __name__ == "__main__":
    main()
