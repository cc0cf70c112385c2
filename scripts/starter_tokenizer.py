"""The tokenizer of the starter model, and the marks of its chat format."""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from starter_facts import all_facts
from starter_manners import body
from starter_text import Document, documents

PAD, BOS, END, USER, ASSISTANT, SYSTEM = SPECIAL_TOKENS = (
    "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 2816
TOKENIZER_DOCUMENTS = 4_000
WORD_REPEATS = 40
CONTEXT = 512


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary from the training text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # One digit at a time, so that every number is spelled in the same way.
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(vocabulary_text(seed), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def vocabulary_text(seed: int) -> Iterator[str]:
    """Yield what the vocabulary is made for: some training text, and every word of the world.

    Words stand there in small and in capital letters, so that most become one token either way.
    """
    yield from contents(documents(seed, TOKENIZER_DOCUMENTS))
    words = sorted({word for fact in all_facts() for word in body(fact).split()})
    for _ in range(WORD_REPEATS):
        yield " " + " ".join(words)
        yield " " + " ".join(words).upper()


def contents(texts: Iterator[Document]) -> Iterator[str]:
    """Yield the bare text of documents, without the marks of the chat format."""
    for document in texts:
        if isinstance(document, str):
            yield document
        else:
            yield from (message["content"] for message in document)
