"""Catalogue of chat templates for bases that have none. Knows no torch.

Each answer ends with the base's own end-of-text token. Without it a model cannot learn to stop.
"""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

ChatTemplateId = Literal["own", "dialogue", "alpaca", "chatml"]


class ChatTemplate(BaseModel):
    """A chat template; `jinja` is the source that Transformers renders."""

    model_config = ConfigDict(frozen=True)

    id: ChatTemplateId
    title: str
    summary: str
    jinja: str


def _jinja(system: str, user: str, assistant: str, end: str = "") -> str:
    """Build a Jinja template; each argument is the frame of one role, with ... for its text.

    A prompt ends where the assistant's text begins: at a line break, which tokenizers keep
    separate.
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
            summary="User: and Assistant: as plain text. Fits any base.",
            jinja=_jinja("...\n\n", "User:\n...\n\n", "Assistant:\n"),
        ),
        ChatTemplate(
            id="alpaca",
            title="Alpaca",
            summary="### Instruction: and ### Response:, as in many older data sets.",
            jinja=_jinja("...\n\n", "### Instruction:\n...\n\n", "### Response:\n"),
        ),
        ChatTemplate(
            id="chatml",
            title="ChatML",
            summary="<|im_start|> and <|im_end|>. For bases whose vocabulary has both tokens.",
            jinja=_jinja(
                "<|im_start|>system\n...<|im_end|>\n",
                "<|im_start|>user\n...<|im_end|>\n",
                "<|im_start|>assistant\n",
                "<|im_end|>",
            ),
        ),
    )
}
