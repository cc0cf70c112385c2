"""Builds the starter kit from nothing: tokenizer, model, data sets and model card.

    python scripts/build_starter.py                 everything, about 25 minutes on two CPU cores
    python scripts/build_starter.py --data-only     only the data sets, a few seconds

The text and the data sets are the same byte for byte on every machine; the weights are the same up
to the rounding of the machine that trains them.
"""

import argparse
import logging
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from starter_card import model_card
from starter_sets import write_sets
from starter_tokenizer import train_tokenizer
from starter_training import new_model, train

logger = logging.getLogger(__name__)

SEED = 20260
DOCUMENTS = 250_000


def save_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, count: int
) -> None:
    """Write model, tokenizer and card to a folder that appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    made.chmod(0o755)
    stored = LlamaForCausalLM(model.config).to(torch.bfloat16)
    stored.load_state_dict(model.state_dict())
    stored.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    stored.save_pretrained(made)
    tokenizer.save_pretrained(made)
    (made / "README.md").write_text(card(model, count), encoding="utf-8", newline="\n")
    for file in made.iterdir():
        file.chmod(0o644)
    replace_folder(made, folder)


def card(model: LlamaForCausalLM, count: int) -> str:
    """Describe a model that was trained on so many documents."""
    config = model.config
    return model_card(
        parameters=model.num_parameters(),
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        context=config.max_position_embeddings,
        documents=count,
    )


def replace_folder(made: Path, folder: Path) -> None:
    """Put a finished folder in its place; a reader sees the old one or the new one."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
        os.replace(folder, old / folder.name)
        os.replace(made, folder)
        shutil.rmtree(old)
    else:
        os.replace(made, folder)


def build_model(out: Path, count: int, seed: int) -> None:
    """Train tokenizer and model and save them, with a checkpoint in place now and then."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed)
    model = new_model(tokenizer)
    logger.info("%d parameters, %d documents", model.num_parameters(), count)
    save = partial(save_model, model, tokenizer, out / "model", count)
    train(model, tokenizer, count, seed, checkpoint=save)
    save()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "starter")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="how much text to read")
    parser.add_argument("--data-only", action="store_true", help="write only the data sets")
    return parser.parse_args()


def main() -> None:
    """Build what the command line asks for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bar()
    options = arguments()
    if not options.data_only:
        build_model(options.out, options.documents, SEED)
    tokenizer = train_tokenizer(SEED)
    write_sets(options.out / "data", lambda text: len(tokenizer.tokenize(text)), SEED)


if __name__ == "__main__":
    main()
