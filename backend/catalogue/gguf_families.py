"""Which GGUF files can become a base: families, types of numbers, and ways to split text.

Knows no torch. What is listed is tested against the original model in `tests/engine/models/gguf`.
"""

FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "starcoder2": "starcoder2",
    "falcon": "falcon",
    "gpt2": "gpt2",
    "stablelm": "stablelm",
    "mamba": "mamba",
    "nemotron": "nemotron",
    "bloom": "bloom",
    "lfm2": "lfm2",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
}
"""The name of an architecture in a file, and Transformers' name for it.

Of the others that the GGUF reader of Transformers 5.23 lists, `gpt-oss` loses its experts, `deci`
has no model there, `t5` and `umt5` do not continue text, and `gemma4` and `minimax-m2` are not
tested.
"""
GIVEN = {"qwen3moe": {"norm_topk_prob": True}}
"""What llama.cpp does in a family and no file says, where Transformers' default is another."""
BY_BLOCKS = ("lfm2", "qwen35", "qwen35moe")
"""Families that Transformers 5.23 reads with its newer reader, which knows fewer types."""
AHEAD = ("qwen35", "qwen35moe")
"""Families whose files may have more layers, which guess tokens ahead; Transformers leaves them out
by name, and no answer depends on them."""

READ = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
"""The types that `gguf` 0.19.0 can turn into numbers and a test compares."""
NOT_BY_BLOCKS = ("Q5_0", "Q5_1", "TQ1_0", "TQ2_0", "MXFP4")
PLAIN = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
"""The types that are kept; all others become bf16."""
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

LIKE_GPT2 = ("gpt-2", "mpt", "olmo", "jais", "phi-2")
DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""The names of `tokenizer.ggml.pre` for which llama.cpp splits text as GPT-2 does, or into single
digits before that."""
EXPRESSIONS = {
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
    "falcon": (
        r"[\p{P}\$\+<=>\^~\|`]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"[0-9][0-9][0-9]",
    ),
    "stablelm2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
"""Other ways of llama.cpp's `llama-vocab.cpp` that Transformers 5.23 does not know: expressions by
which text is split, one after the other."""
KNOWN_SPLITS = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "dbrx", "smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2",
    "megrez", "qwen35", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2",
)  # fmt: skip
"""The names that Transformers 5.23 knows; for all others it splits as GPT-2, without a word.

For each name here and above, the ids of 19 awkward texts were those of llama.cpp, but not for
"jina-v5-nano", which is left out."""
ALL_SPLITS = (*LIKE_GPT2, *DIGITS_FIRST, *EXPRESSIONS, *KNOWN_SPLITS)
WHOLE_WORDS_FIRST = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "tekken",
)  # fmt: skip
"""The names for which llama.cpp takes a word that is a token as a whole before it joins pairs, and
begins a text with a token of its own where a file does not say."""
TOKENIZERS = ("gpt2", "llama")
