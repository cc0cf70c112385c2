"""How model families write calls of tools whose chat template does not show them.

Only families whose format is public are listed, each with its source. Tools, calls and answers
become the text of ordinary turns, which the template then shows. Knows nothing of templates that
show calls themselves.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.engine.templates.rendering import Conversation, Turn


@dataclass(frozen=True, slots=True)
class Family:
    """One family's format: `sign` is a part of its template; a text has ... for what it holds.

    `tools` is None where the template shows the tools itself; `answer` is the role that a tool's
    answer has, and its text.
    """

    name: str
    source: str
    sign: str
    tools: str | None
    calls: str
    answer: tuple[str, str]

    def applied(self, conversation: Conversation) -> Conversation:
        """Return a conversation whose calls and answers of tools are text."""
        turns = [self._turn(turn) for turn in conversation.turns]
        if self.tools is None or not conversation.tools:
            return Conversation(turns, conversation.tools)
        return Conversation(_after_system(turns, self._about(conversation.tools)))

    def _about(self, tools: Sequence[dict[str, Any]]) -> str:
        assert self.tools is not None
        return self.tools.replace("...", _json([tool.get("function", tool) for tool in tools]))

    def _turn(self, turn: Turn) -> Turn:
        if turn["role"] == "tool":
            role, text = self.answer
            return {"role": role, "content": text.replace("...", turn["content"])}
        if "tool_calls" not in turn:
            return turn
        called = [call["function"] for call in turn["tool_calls"]]
        calls = self.calls.replace("...", _json(called))
        said = turn.get("content") or ""
        return {"role": turn["role"], "content": f"{said}\n{calls}" if said else calls}


FAMILIES = (
    Family(
        name="SmolLM2",
        source="https://huggingface.co/HuggingFaceTB/SmolLM2-1.7B-Instruct, function calling",
        sign="named SmolLM",
        tools="You can call these tools:\n<tools>...</tools>\nTo call some, answer with a list of "
        "calls, each with its name and arguments, between <tool_call> and </tool_call>.",
        calls="<tool_call>...</tool_call>",
        answer=("user", "<tool_response>\n...\n</tool_response>"),
    ),
    Family(
        name="Granite 3.1 and later",
        source="https://docs.vllm.ai, granite tool parser",
        sign="You are Granite, developed by IBM",
        tools=None,
        calls="<|tool_call|>...",
        answer=("tool", "..."),
    ),
    Family(
        name="Granite 3.0",
        source="https://docs.vllm.ai, granite tool parser",
        sign="available_tools<|end_of_role|>",
        tools=None,
        calls="<|tool_call|>...",
        answer=("tool_response", "..."),
    ),
)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _after_system(turns: list[Turn], text: str) -> list[Turn]:
    """Add a text to the system prompt, or begin with one."""
    if turns and turns[0]["role"] == "system":
        first = {**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}
        return [first, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]
