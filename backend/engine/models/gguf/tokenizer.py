"""The tokenizer of a GGUF file, made by Transformers and corrected where it reads text wrongly."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from backend.catalogue import gguf_families as known
from backend.engine.models.gguf.checks import SPECIAL_IDS
from backend.errors import VerificationFailed
from backend.files.gguf_header import Header

NAMES = {"unknown": "unk", "padding": "pad"}
KEPT = ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template", "add_eos_token")


def read(header: Header, file: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a file with its chat template; `file` lies alone in its folder.

    Raises VerificationFailed where it is not what the file's settings say.
    """
    # The class that AutoTokenizer chooses too, but only after it has read the whole file again.
    made: Any = PreTrainedTokenizerFast.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_corrected(header, made.backend_tokenizer),
        add_bos_token=_begins(header, made.init_kwargs),
        **{name: made.init_kwargs[name] for name in KEPT if name in made.init_kwargs},
    )
    _require_as_said(header, tokenizer)
    return tokenizer


def _corrected(header: Header, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer without four faults of Transformers 5.23.

    It adds an end-of-text token of GPT-2 or Llama beyond a vocabulary that has none, splits as
    GPT-2 does wherever it does not know the way, joins pairs where whole words go first, and reads
    spaces at the beginning wrongly.
    """
    content = json.loads(tokenizer.to_str())
    count = header.values["tokenizer.ggml.tokens"].length
    content["added_tokens"] = [each for each in content["added_tokens"] if each["id"] < count]
    split = header.values.get("tokenizer.ggml.pre")
    bytes_as_letters = header.values["tokenizer.ggml.model"] == "gpt2"
    if bytes_as_letters and split in known.WHOLE_WORDS_FIRST:
        content["model"]["ignore_merges"] = True
    corrected: Tokenizer = Tokenizer.from_str(json.dumps(content))
    if bytes_as_letters and (steps := _splitting(split)):
        corrected.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if not bytes_as_letters:
        _set_spaces(corrected, begins=header.values.get("tokenizer.ggml.add_space_prefix", True))
    return corrected


def _set_spaces(tokenizer: Any, *, begins: bool) -> None:
    """Spell spaces as SentencePiece does; with `begins`, each piece of text begins with one.

    Transformers 5.23 always puts one there, but not before other spaces or after special tokens.
    """
    mark = "\u2581"
    space = normalizers.Replace(" ", mark)
    spelled = [normalizers.Prepend(mark), space] if begins else [space]
    tokenizer.normalizer = normalizers.Sequence(spelled)
    tokenizer.pre_tokenizer = None
    steps = [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(content=" ", left=1)] if begins else []
    tokenizer.decoder = decoders.Sequence([*steps, *strip])


def _splitting(name: Any) -> list[Any]:
    """Return the steps that split text and spell bytes as letters; none for Transformers' own."""
    as_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in known.DIGITS_FIRST:
        return [pre_tokenizers.Digits(individual_digits=True), as_gpt2]
    if name in known.EXPRESSIONS:
        splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in known.EXPRESSIONS[name]]
        return [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return [as_gpt2] if name in known.LIKE_GPT2 else []


def _require_as_said(header: Header, tokenizer: Any) -> None:
    """Raise VerificationFailed where ids, special tokens or the template are not the file's."""
    values = header.values
    count = values["tokenizer.ggml.tokens"].length
    special = {
        kind: (values.get(f"tokenizer.ggml.{kind}_token_id"), f"{NAMES.get(kind, kind)}_token_id")
        for kind in SPECIAL_IDS
        if kind != "eot"
    }
    wrong = [
        f"its {kind} token is another one"
        for kind, (said, name) in special.items()
        if said is not None and getattr(tokenizer, name) != said
    ]
    if len(tokenizer) > count:
        wrong.append(f"it has {len(tokenizer):,} tokens instead of {count:,}")
    if (tokenizer.chat_template or "") != values.get("tokenizer.chat_template", ""):
        wrong.append("its chat template is another one")
    said = values.get("tokenizer.ggml.add_bos_token")
    if said is not None and tokenizer.bos_token and _has_begin(tokenizer) != said:
        wrong.append("it adds the token that begins a text, or does not, against the file")
    if wrong:
        raise VerificationFailed(
            f"The tokenizer of {header.file.name} was not converted as the file says: {wrong[0]}."
        )


def _begins(header: Header, made: dict[str, Any]) -> bool:
    """Return whether texts begin with a token of their own."""
    if header.values.get("tokenizer.ggml.add_bos_token") is not None:
        return bool(header.values["tokenizer.ggml.add_bos_token"])
    if header.values.get("tokenizer.ggml.pre") in known.WHOLE_WORDS_FIRST:
        return "tokenizer.ggml.bos_token_id" in header.values
    return bool(made.get("add_bos_token", False))


def _has_begin(tokenizer: Any) -> bool:
    return list(tokenizer("a").input_ids[:1]) == [tokenizer.bos_token_id]
