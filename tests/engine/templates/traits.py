"""Small chat templates, one for each trait that real ones have, and a tokenizer that knows their
marks."""

from typing import Any

from transformers import AutoTokenizer

from backend.settings import STARTER

MARKS = [
    "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>",
    "<|stop|>", "<|return|>", "<|call|>", "<|say|>", "<think>", "</think>", "<s>", "[INST]",
    "[/INST]", "<|over|>",
]  # fmt: skip
_CHATML = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
_ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def each(body: str, end: str = "") -> str:
    """Return a template with a loop over the messages, `m`."""
    return f"{{% for m in messages %}}{body}{{% endfor %}}{end}"


def by_role(end: str, user: str, assistant: str, system: str = "{{ m.content }}\n") -> str:
    return each(
        f"{{% if m.role == 'user' %}}{user}{{% elif m.role == 'assistant' %}}{assistant}"
        f"{{% else %}}{system}{{% endif %}}",
        end,
    )


PROMPT = "{% if add_generation_prompt %}"
THINKS_LAST = each(
    "{% if m.role == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\\n<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n'"
    " + m.content + '<|im_end|>\\n' }}{% else %}" + _CHATML + "{% endif %}",
    _ASKS,
)
TEMPLATES = {
    "chatml": each(_CHATML, _ASKS),
    "the last answer gets a thought": THINKS_LAST,
    "the prompt opens a thought": each(
        _CHATML, PROMPT + "{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
    ),
    "the prompt opens a thought that the text closes": by_role(
        PROMPT + "<|assistant|><think>{% endif %}",
        "<|user|>{{ m.content }}", "<|assistant|></think>{{ m.content }}<|stop|>",
    ),
    "a channel": by_role(
        PROMPT + "<|assistant|>{% endif %}",
        "<|user|>{{ m.content }}<|stop|>",
        "<|assistant|>final<|say|>{{ m.content }}{{ '<|return|>' if loop.last else '<|stop|>' }}",
    ),
    "no end mark": by_role(
        PROMPT + "<|assistant|>{% endif %}", "<|user|>{{ m.content }}",
        "<|assistant|>{{ m.content }}",
    ),
    "a prompt that ends in a blank": by_role(
        PROMPT + "A: {% endif %}", "Q: {{ m.content }}\n",
        "A: {{ m.content }}{{ eos_token }}\n",
    ),
    "a blank before the words": by_role(
        "", "[INST] {{ m.content }} [/INST]", " {{ m.content }} {{ eos_token }}",
    ),
    "the next header at the end": by_role(
        "{{ '<|assistant|>\\n' }}", "<|user|>{{ m.content }}<|stop|>",
        "<|assistant|>\n{{ m.content }}<|stop|>",
    ),
    "an end of text at the end": each(
        _CHATML, "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}"
        "{{ eos_token }}{% endif %}",
    ),
    "two end marks": by_role(
        PROMPT + "<|assistant|>{% endif %}", "<|user|>{{ m.content }}<|stop|>",
        "<|assistant|>{{ m.content }}<|over|>{{ eos_token }}",
    ),
    "the system prompt before the last question": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] "
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}"
        "{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
        " {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "parts alone": each(
        "{{ '<|im_start|>' + m.role + '\\n' }}{% for p in m.content %}{{ p.text }}{% endfor %}"
        "{{ '<|im_end|>\\n' }}",
        _ASKS,
    ),
    "generation marks": by_role(
        _ASKS, "<|im_start|>user\n{{ m.content }}<|im_end|>\n",
        "<|im_start|>assistant\n{% generation %}{{ m.content + '<|im_end|>' }}"
        "{% endgeneration %}\n",
    ),
    "trims": each(_CHATML.replace("m.content", "(m.content | trim)"), _ASKS),
    "thoughts are stripped": each(
        _CHATML.replace("m.content", "m.content.split('</think>')[-1]"), _ASKS
    ),
    "a date": each(
        "{% if loop.first %}{{ '<|im_start|>system\\nToday: ' + strftime_now('%d %b %Y')"
        " + '<|im_end|>\\n' }}{% endif %}" + _CHATML, _ASKS,
    ),
}  # fmt: skip
TOOLS_AS_JSON = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>' + c.function.name + "
    "(c.function.arguments | tojson) + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}" + _ASKS
)
TOOL_TEMPLATES = {
    "objects": TOOLS_AS_JSON,
    "text": TOOLS_AS_JSON.replace("(c.function.arguments | tojson)", "c.function.arguments"),
    "null": TOOLS_AS_JSON.replace(
        "+ m.content }}", "}}{% if m.content is not none %}{{ m.content }}{% endif %}"
    ).replace("m.tool_calls or []", "((m.tool_calls or []) if m.content is none else [])"),
    "short ids": TOOLS_AS_JSON.replace(
        "{{ '<tool_call>'",
        "{% if c.id | length != 9 %}{{ raise_exception('nine!') }}{% endif %}{{ '<tool_call>'",
    ),
    "its own end": TOOLS_AS_JSON.replace(
        "{{ '<|im_end|>\\n' }}",
        "{{ '<|call|>' if m.tool_calls else '<|im_end|>' }}{{ '\\n' }}",
    ),
}


def tokenizer_with(template: str) -> Any:
    """Return the starter's tokenizer with a template and the marks of all templates as tokens."""
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    tokenizer.add_tokens(MARKS, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer
