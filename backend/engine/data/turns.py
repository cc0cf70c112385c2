"""One turn of a conversation, in the shapes that people have: OpenAI's, ShareGPT's, with tools.

A turn becomes a role and its text, with what else a chat template takes: the thought before an
answer, calls of tools, and what a tool answered. A turn that cannot be used raises `BadRow`. Knows
nothing of files, columns or tokens.
"""

import json
import re
from contextlib import suppress
from typing import Any

from backend.engine.data import column_names as names

Turn = dict[str, Any]
Turns = list[Turn]
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("user", "human", "prompter", "customer", "client", "question", "instruction"), "user"
    ),
    **dict.fromkeys(
        (
            "assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai", "bing", "bard",
            "claude", "gemini", "llm", "agent", "answer", "response", "function_call", "tool_call",
        ),
        "assistant",
    ),
    **dict.fromkeys(
        ("tool", "function", "observation", "tool_response", "ipython", "function_response"), "tool"
    ),
}  # fmt: skip
"""Roles by the names that they have in public data, in lower case."""
CALLS = ("function_call", "tool_call")
SPEAKERS = ("role", "from", "speaker", "author", "sender")
WORDS = ("content", "value", "text", "message", "utterance", "parts")
PAIR_OF_TURNS = (
    ("human", "assistant"), ("user", "assistant"), ("human", "gpt"), ("user", "bot"),
    ("question", "answer"), ("query", "response"), ("prompt", "response"), ("input", "output"),
)  # fmt: skip
"""Keys of an object that holds a question and its answer, as in some conversations."""
THOUGHTS = names.THOUGHTS
WEIGHTS = frozenset(names.WEIGHTS)
THOUGHT_NAMES = frozenset(THOUGHTS)
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
"""The speakers in a conversation written as one text, as Anthropic's data sets have it."""
SWITCHES = ("on", "off", "true", "false", "yes", "no")
"""Settings that stand where a thought would be, such as reasoning: off."""
MEDIA_LINE = re.compile(r"^\s*<(image|video|audio)>|<(image|video|audio)>\s*$", re.MULTILINE)
"""A picture's place in a question, as LLaVA's data and others mark it."""
UNLEARNED = "unlearned"
"""Marks a turn of the assistant that has no loss."""
SHOWN_VALUE = 80


class BadRow(ValueError):
    """A row that cannot be used: what is wrong with it, and the value."""

    def __init__(self, what: str, value: Any = None) -> None:
        super().__init__(what)
        self.value = "" if value is None else shortened(value)


def read_turns(value: Any, column: str) -> Turns:
    """Read a conversation in the `messages` or the ShareGPT format; raises BadRow."""
    if isinstance(value, str) and (said := TRANSCRIPT.split(value)[1:]):
        pairs = zip(said[::2], said[1::2], strict=False)
        value = [{"role": name, "content": text.strip()} for name, text in pairs]
    value = _from_json(value, f"{column} is not a JSON list")  # all that a CSV cell can hold
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, list) and len(value) > 1 and all(isinstance(t, str) for t in value):
        speakers = ("user", "assistant")  # two who speak in turns, as in LIMA and DailyDialog
        value = [{"role": speakers[n % 2], "content": text} for n, text in enumerate(value)]
    if not isinstance(value, list):
        raise BadRow(f"{column} is not a list of turns", value)
    if not value:
        raise BadRow(f"{column} is an empty list")
    return _with_names([turn for each in value for turn in _turns(each)])


def read_history(value: Any, column: str) -> Turns:
    """Read the turns before a question: pairs of question and answer, or a list of turns."""
    value = _from_json(value, f"{column} is not a JSON list")
    if value is None:  # as a CSV cell holds it
        return []
    if not isinstance(value, list):
        raise BadRow(f"{column} is not a list of turns", value)
    turns: Turns = []
    for each in value:
        if isinstance(each, list | tuple):
            if len(each) != 2 or not all(isinstance(text, str) for text in each):
                raise BadRow(f"{column} is not a list of questions with their answers", each)
            turns += _asked_and_answered(*each)
        else:
            turns += _turns(each)
    return turns


def system_text(value: Any, column: str) -> str:
    """Read a system prompt: a text, or a turn that holds one; raises BadRow."""
    if isinstance(value, str) and value.startswith('{"'):  # all that a CSV cell can hold
        with suppress(ValueError, RecursionError):
            turn = json.loads(value)
            value = turn if has_speaker(turn) else value
    if isinstance(value, dict):
        said = next((value[key] for key in WORDS if value.get(key)), None)
        value = "".join(_part(part) for part in said) if isinstance(said, list) else said
    if not isinstance(value, str):
        raise BadRow(f"{column} is {shortened(value)}, not text", value)
    return whole(value, column)


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Read the tools of a row, as OpenAI describes them; None where there are none.

    Raises BadRow where the column holds something else.
    """
    if value is None or value == "" or value == []:
        return None
    value = _from_json(value, "tools is not a JSON list")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow("tools is not a list of tools", value)
    return [_tool(tool) for tool in value] or None


def weighs_nothing(holder: dict[str, Any]) -> bool:
    """Tell whether a row or turn has a weight of 0; raises BadRow for a weight between 0 and 1.

    Weights are named weight, loss_weight, train or loss; without one, everything counts.
    """
    if WEIGHTS.isdisjoint(holder):
        return False
    given = [_number(holder[name]) for name in WEIGHTS if name in holder]
    given = [weight for weight in given if isinstance(weight, bool | int | float)]
    for weight in given:
        if weight not in (0, 1):
            raise BadRow(f"a weight is {weight}, and only 0 and 1 are supported", weight)
    return any(weight == 0 for weight in given)


def _number(weight: Any) -> Any:
    """Return a weight that a CSV file or a person wrote as text."""
    words = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
    return words.get(weight.strip().lower()) if isinstance(weight, str) else weight


def with_thought(turns: Turns, row: dict[str, Any]) -> Turns:
    """Give a thought that has a column of its own to the last answer, unless that has one."""
    thought = "" if THOUGHT_NAMES.isdisjoint(row) else _thought(row)
    last = turns[-1]
    if not thought or last["role"] != "assistant" or "reasoning_content" in last:
        return turns
    return [*turns[:-1], {**last, "reasoning_content": whole(thought, "a thought")}]


def _turns(turn: Any) -> Turns:
    """Read one turn, or an object that holds a question and its answer."""
    if plain := _plain(turn):
        return [plain]
    if isinstance(turn, dict) and not any(key in turn for key in SPEAKERS):
        for asked, answered in PAIR_OF_TURNS:
            if isinstance(turn.get(asked), str) and isinstance(turn.get(answered), str):
                return _asked_and_answered(turn[asked], turn[answered])
    return [_turn(turn)]


def _asked_and_answered(asked: str, answered: str) -> Turns:
    return [
        {"role": "user", "content": whole(asked, "a turn")},
        {"role": "assistant", "content": whole(answered, "a turn")},
    ]


def _plain(turn: Any) -> Turn | None:
    """Read a turn of a role and a text only; most are, and need not be asked for anything else."""
    if type(turn) is not dict or len(turn) != 2:
        return None
    name, said = turn.get("role"), turn.get("content")
    if name is None:
        name, said = turn.get("from"), turn.get("value")
    if type(name) is not str or type(said) is not str or name in CALLS:
        return None
    role = ROLES.get(name)
    if role is None or (role == "user" and "<" in said):
        return None
    return {"role": role, "content": whole(said, "a turn")}


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise BadRow("a turn has no role and content", turn)
    said, name, key = _said_by(turn)
    role = role_of(name)
    if role is None:
        known = "system, user, assistant or tool"
        if "from" in turn:
            known = "human, gpt, system, function_call or observation"
        raise BadRow(f"the role {name!r} is not {known}", name)
    for media in names.beside(tuple(map(str, turn))).media:
        if turn.get(media):
            raise BadRow(f"a turn has {media}, and only text is supported", turn[media])
    read: Turn = {"role": role, "content": ""}
    if str(name).strip().lower() in CALLS and not turn.get("tool_calls"):
        read["tool_calls"] = read_calls(_from_json(said, "a call of a tool is not JSON"))
    else:
        read["content"] = _content(said, turn, role, key)
    return _with_the_rest(read, turn)


def holds_turns(value: Any) -> bool:
    """Tell whether a column may hold a conversation, and not a text about one or nothing."""
    if isinstance(value, str):
        return value.lstrip().startswith("[") or TRANSCRIPT.match(value) is not None
    return True


def has_speaker(turn: dict[str, Any]) -> bool:
    """Tell whether an object names its speaker, as a turn does."""
    return any(isinstance(turn.get(key), str) for key in SPEAKERS)


def role_of(name: Any) -> str | None:
    """Return the role that a name stands for, in any letter case; None where it is unknown."""
    if not isinstance(name, str):
        return None
    plain = name.strip().lower()
    return ROLES.get(plain) or ("assistant" if plain.startswith("gpt-") else None)


def _said_by(turn: Turn) -> tuple[Any, Any, str]:
    """Return what a turn says, the name of its role, and the key that holds the words."""
    if isinstance(turn.get("from"), str) and "value" in turn:
        return turn["value"], turn["from"], "value"
    speaker = next((key for key in SPEAKERS if isinstance(turn.get(key), str)), "role")
    key = next((each for each in WORDS if each in turn), "")
    if not (key or (speaker in turn and _has_calls(turn))):
        raise BadRow("a turn has no role and content", turn)
    return turn.get(key or "content"), turn.get(speaker), key or "content"


def _has_calls(turn: Turn) -> bool:
    return bool(turn.get("tool_calls") or turn.get("function_call"))


def _content(said: Any, turn: Turn, role: str, key: str) -> str:
    """Return a turn's text; parts of text are joined."""
    if said is None and (_has_calls(turn) or _thought(turn)):
        return ""
    if isinstance(said, list):
        said = "".join(_part(part) for part in said)
    if role == "tool" and isinstance(said, dict | int | float):
        said = json.dumps(said, ensure_ascii=False)
    if not isinstance(said, str):
        raise BadRow(f"a turn has no text as its {key}", turn)
    if role == "user" and "<" in said and (found := MEDIA_LINE.search(said)):
        kind = found[1] or found[2]
        raise BadRow(f"a question refers to a file with <{kind}>, and only text is supported")
    return whole(said, "a turn")


def _part(part: Any) -> str:
    """Return the text of one part of a content; pictures and other media raise BadRow."""
    if isinstance(part, str):
        return part
    kind = str(part.get("type", "text")) if isinstance(part, dict) else ""
    given = part if isinstance(part, dict) else {}
    text = next((given[key] for key in ("text", "value", "content") if given.get(key)), "")
    if kind in ("text", "input_text", "output_text") and isinstance(text, str):
        return text
    raise BadRow(f"a turn holds {kind or 'a part'}, and only text is supported", part)


def _with_the_rest(read: Turn, turn: Turn) -> Turn:
    """Add what a chat template takes besides role and text, and a weight of 0."""
    if thought := _thought(turn):
        read["reasoning_content"] = whole(thought, "a thought")
    if turn.get("tool_calls"):
        read["tool_calls"] = read_calls(_from_json(turn["tool_calls"], "tool_calls is not JSON"))
    elif turn.get("function_call"):
        read["tool_calls"] = read_calls(turn["function_call"])
    if read["role"] == "tool":
        for key in ("name", "tool_call_id"):
            if isinstance(turn.get(key), str):
                read[key] = turn[key]
    if weighs_nothing(turn):
        read[UNLEARNED] = True
    return read


def _thought(turn: Turn) -> str:
    found = (turn.get(name) for name in THOUGHTS)
    texts = (each for each in found if isinstance(each, str) and each.strip())
    return next((each for each in texts if each.strip().lower() not in SWITCHES), "")


def read_calls(value: Any) -> list[dict[str, Any]]:
    """Read one call of a tool, or several, as OpenAI writes them; arguments become an object."""
    calls = value if isinstance(value, list) else [value]
    return [_call(call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    call = _from_json(call, "a call of a tool is not JSON")
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("a call of a tool has no name", call)
    arguments = function.get("arguments", function.get("parameters")) or {}
    if isinstance(arguments, str):
        arguments = _from_json(arguments, "the arguments of a call are not JSON")
    read = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {**read, "id": call["id"]} if isinstance(call.get("id"), str) else read


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if isinstance(tool.get("function"), dict) or "name" not in tool:
        return tool
    return {"type": "function", "function": tool}


def _with_names(turns: Turns) -> Turns:
    """Give each answer of a tool the name of the call that it belongs to."""
    names: dict[str, str] = {}
    waiting: list[str] = []
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            waiting.append(call["function"]["name"])
            names[call.get("id", "")] = waiting[-1]
        if turn["role"] == "tool":
            first = waiting.pop(0) if waiting else None
            name = names.get(turn.get("tool_call_id", "-"), first)
            if name and "name" not in turn:
                turn["name"] = name
    return turns


def _from_json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(what, value) from None


def whole(text: str, place: str) -> str:
    """Return the text; raises BadRow for lone surrogates, which tokenizers do not accept."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{place} holds half a character (a lone surrogate)") from None
    return text


def shortened(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= SHOWN_VALUE else f"{said[:SHOWN_VALUE]}..."
