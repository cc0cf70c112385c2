"""Catalogue of chat templates for bases that bring none: a conversation as text. No torch.

Each answer ends with the base's own end-of-text token, or a model could not learn to stop.
"""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

ChatTemplateId = Literal["own", "dialogue", "alpaca", "chatml"]


class ChatTemplate(BaseModel):
    """A way to write a conversation down; `jinja` is what Transformers applies."""

    model_config = ConfigDict(frozen=True)

    id: ChatTemplateId
    title: str
    summary: str
    jinja: str


def _jinja(system: str, user: str, assistant: str, end: str = "") -> str:
    """Compose a template of what stands around each role's words, with ... in their place.

    A prompt ends where the assistant's words begin: at a line break, which tokenizers keep apart.
    """

    def around(words: str) -> str:
        before, after = (json.dumps(part) for part in words.split("..."))
        return f"{before} + message['content'] + {after}"

    opening = json.dumps(assistant)
    return (
        "{{- bos_token or '' -}}{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}{{ " + around(system) + " }}"
        "{%- elif message['role'] == 'user' -%}{{ " + around(user) + " }}"
        "{%- else -%}{{ " + around(f"{assistant}...{end}") + " + (eos_token or '') + '\\n' }}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ " + opening + " }}{%- endif -%}"
    )


CHAT_TEMPLATES: dict[str, ChatTemplate] = {
    each.id: each
    for each in (
        ChatTemplate(
            id="dialogue",
            title="Dialogue",
            summary="User: and Assistant: in plain words; fits any base.",
            jinja=_jinja("...\n\n", "User:\n...\n\n", "Assistant:\n"),
        ),
        ChatTemplate(
            id="alpaca",
            title="Alpaca",
            summary="### Instruction: and ### Response:, as many older data sets have it.",
            jinja=_jinja("...\n\n", "### Instruction:\n...\n\n", "### Response:\n"),
        ),
        ChatTemplate(
            id="chatml",
            title="ChatML",
            summary="<|im_start|> and <|im_end|>: for bases whose vocabulary has these two.",
            jinja=_jinja(
                "<|im_start|>system\n...<|im_end|>\n",
                "<|im_start|>user\n...<|im_end|>\n",
                "<|im_start|>assistant\n",
                "<|im_end|>",
            ),
        ),
    )
}
