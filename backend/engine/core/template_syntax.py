"""Whether a chat template is Jinja at all, whatever the conversation. Knows nothing of bases."""

from typing import Any

from jinja2 import TemplateSyntaxError
from transformers.utils import chat_template_utils

OTHER_TEMPLATE = (
    "Choose another one in Load, Advanced, Chat template (dialogue fits any base), and load the "
    "base again."
)
UNREADABLE = (TemplateSyntaxError, SyntaxError)
"""What is raised for a text that is no template."""


def fault(tokenizer: Any) -> str:
    """Return why a tokenizer's chat template cannot be read; empty where it can, or without one."""
    if not tokenizer.chat_template:
        return ""
    try:
        chat_template_utils._compile_jinja_template(tokenizer.get_chat_template())
    except UNREADABLE as error:
        return said(error)
    except Exception:  # any other error of a foreign template is shown when it is used
        return ""
    return ""


def said(error: Exception) -> str:
    """Return the first line of an error, without a full stop."""
    return (str(error).splitlines() or ["no reason given"])[0].removesuffix(".")
