"""A folder of chat templates, each through conversations in all the shapes that people have.

Every text that training would see is compared with `apply_chat_template`, its tokens with the
tokenizer's, and the tokens with loss with the answers: each answer and its end mark, and nothing
of another turn. A template `NAME.jinja` may have a `NAME.json` beside it with `bos_token` and
`eos_token`. The tokenizer is the starter's, with the template's own marks as tokens.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from backend.engine.data.chat_rendering import Unrenderable, render
from backend.engine.data.dataset import ALL, Document
from backend.engine.data.token_arrays import Tokens
from backend.engine.data.tokenization import encode
from backend.engine.data.turns import read_tools, read_turns
from backend.engine.templates import end_marks, tool_forms
from backend.engine.templates.rendering import ChatTemplate
from backend.errors import WorkbenchError
from backend.settings import PROJECT
from benchmarks.report import Report, flags, read_flags

STARTER = PROJECT / "starter" / "model" / "tokenizer.json"
BAR_PLAIN, BAR_CALLS = 0.97, 0.95
ENDS = ("<|return|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "</s>", "<eos>")
MARKS = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>|\[/?[A-Z_]{3,20}\]|</?s>|<[a-z]+_of_[a-z]+>"
    r"|</?think>|<\|?turn\|?>|<\|?channel\|?>|<\|tool_?[a-z_]*>|<tool_?[a-z_]*\|>"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Its name."}},
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "call_abc1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
}
OTHER_CALL = {
    "id": "call_abc2",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Rome"}},
}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _says(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief and kind."}
PLAIN = {
    "single turn": [_user("What is red?"), _says("Red is a colour.")],
    "several turns": [_user("One?"), _says("First."), _user("Two?"), _says("Second.")],
    "system": [SYSTEM, _user("What is red?"), _says("Red is a colour.")],
    "blanks at the ends": [_user(" What is red? "), _says(" Red is a colour.\n")],
    "twenty turns": [
        turn for n in range(20) for turn in (_user(f"Query {n}?"), _says(f"Answer number {n}."))
    ],
    "a question last": [_user("One?"), _says("First."), _user("Two?")],
}
MORE = {
    "thinking": [
        _user("One?"), _says("First.", reasoning_content="Let me think once."),
        _user("Two?"), _says("Second.", reasoning_content="Let me think twice."),
    ],
    "the assistant first": [_says("Welcome."), _user("One?"), _says("First.")],
    "tools": [_user("Hello?"), _says("Hello there.")],
    "tool calls": [
        _user("Weather?"), _says(None, tool_calls=[CALL]),
        {"role": "tool", "name": "get_weather", "tool_call_id": "call_abc1", "content": "rainy"},
        _says("It is wet in the city."),
    ],
    "tool calls at once": [
        _user("Weather?"), _says(None, tool_calls=[CALL, OTHER_CALL]),
    ],
}  # fmt: skip
FRAME = 100
"""Characters that headers within an answer may take, such as those of channels and thoughts."""
FOREIGN = ("One?", "Two?", "Query", "What is red", "Be brief", "Weather?", "rainy")


@dataclass
class Tally:
    """How the templates did in one case; `judged` leaves out those that refuse it themselves."""

    counts: Counter[str] = field(default_factory=Counter)

    @property
    def judged(self) -> int:
        return sum(self.counts.values()) - self.counts["own words"] - self.counts["no tools"]


def main(arguments: list[str] | None = None) -> int:
    """Run all templates of a folder through all cases."""
    parser = flags(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="with the .jinja files")
    chosen, words = read_flags(parser, arguments)
    files = sorted(chosen.folder.glob("*.jinja"))[: 5 if chosen.quick else None]
    tallies, notes = {case: Tally() for case in (*PLAIN, *MORE)}, []
    for file in files:
        for case, outcome in outcomes(file):
            kind = outcome.partition(":")[0]
            tallies[case].counts[kind] += 1
            if kind in ("refused", "silently wrong"):
                notes.append(f"- {file.stem}, {case}: {outcome}")
    words = [word if word != str(chosen.folder) else "DIR" for word in words]
    report = Report("chat_templates", f"{len(files)} public chat templates", words)
    _add(report, tallies, judged=not chosen.quick)
    report.notes = [*notes, "", "The templates, by name and the start of their SHA-256:", ""]
    report.notes += [f"- {file.stem} {_digest(file)}" for file in files]
    return report.finish(save=chosen.save)


def _add(report: Report, tallies: dict[str, Tally], *, judged: bool) -> None:
    plain, calls = [tallies[case] for case in PLAIN], tallies["tool calls"]
    right = _share(plain)
    silent = sum(tally.counts["silently wrong"] for tally in tallies.values())
    report.add("right in six plain cases", f"{right:.1%}", f">= {BAR_PLAIN:.0%}",
               right >= BAR_PLAIN if judged else None)  # fmt: skip
    report.add("silently wrong in any case", str(silent), "0", silent == 0 if judged else None)
    report.add("tool calls right where the template has tools", f"{_share([calls]):.1%}",
               f">= {BAR_CALLS:.0%}", _share([calls]) >= BAR_CALLS if judged else None)  # fmt: skip
    for case, tally in tallies.items():
        said = ", ".join(f"{kind} {count}" for kind, count in tally.counts.most_common())
        report.add(case, said)


def _share(tallies: list[Tally]) -> float:
    judged = sum(tally.judged for tally in tallies)
    return sum(tally.counts["right"] for tally in tallies) / max(judged, 1)


def outcomes(file: Path) -> Iterator[tuple[str, str]]:
    """Yield each case with what became of it: right, refused, own words, no tools or wrong."""
    tokenizer = tokenizer_for(file)
    for case, turns in {**PLAIN, **MORE}.items():
        tools = TOOLS if case.startswith("tool") else None
        yield case, outcome(tokenizer, case, turns, tools)


def outcome(
    tokenizer: Any, case: str, turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str:
    """Say what becomes of one conversation with one template."""
    if tools and not _has_tools(tokenizer, calls=case.startswith("tool calls")):
        return "no tools"
    document = Document(1, read_turns(turns, "messages"), tools=read_tools(tools))
    try:
        (shown,) = render([document], tokenizer, ALL)
        if isinstance(shown, Unrenderable):
            raise shown.as_error()
        texts = encode([document], tokenizer, 10**6)
    except WorkbenchError as error:
        return "own words" if _refuses(tokenizer, turns, tools) else f"refused: {error.what}"
    wrong = _wrong(tokenizer, turns, tools, [each.text for each in shown], texts)
    return f"silently wrong: {wrong}" if wrong else "right"


def _has_tools(tokenizer: Any, *, calls: bool) -> bool:
    template = ChatTemplate(tokenizer)
    form = tool_forms.form_of(template)
    named = "tool_calls" in str(tokenizer.chat_template) or form is not None
    return named if calls else tool_forms.shows_tools(template) or form is not None


def _refuses(tokenizer: Any, turns: Any, tools: Any) -> bool:
    """Tell whether the template refuses the conversation, or its beginning, by itself."""
    try:
        for asks in (False, True):
            upto = turns[: max(n for n, t in enumerate(turns) if t["role"] == "assistant")]
            tokenizer.apply_chat_template(
                upto if asks else turns, tools=tools, tokenize=False, add_generation_prompt=asks
            )
    except Exception:  # any error of a foreign template
        return True
    return False


def _wrong(tokenizer: Any, turns: Any, tools: Any, texts: list[str], encoded: list[Tokens]) -> str:
    """Return what is wrong with the texts and their tokens; empty where nothing is."""
    ends = set(end_marks.end_tokens(tokenizer))
    learned: list[str] = []
    for text, tokens in zip(texts, encoded, strict=True):
        if tokens.ids.tolist() != tokenizer(text, add_special_tokens=False).input_ids:
            return "the tokens differ from the tokenizer's"
        for ids in _runs(tokens):
            learned.append(tokenizer.decode(ids))
            if ids[-1] not in ends:
                return f"no end mark in {learned[-1]!r}"
    said = [turn for turn in turns if turn["role"] == "assistant"]
    if len(learned) != len(said):
        return f"{len(learned)} answers of {len(said)}"
    for turn, text in zip(said, learned, strict=True):
        if missing := [part for part in _parts(turn) if part not in text]:
            return f"{missing[0]!r} is not in {text!r}"
        if any(part in text for part in FOREIGN):
            return f"another turn in {text!r}"
        if not tools and len(text) > len(turn["content"]) + len(str(thought_in(turn))) + FRAME:
            return f"more than the answer in {text!r}"
    return _unlike(tokenizer, turns, tools, texts)


def thought_in(turn: dict[str, Any]) -> str:
    return str(turn.get("reasoning_content", ""))


def _runs(tokens: Tokens) -> Iterator[list[int]]:
    run: list[int] = []
    for id, flag in zip(tokens.ids.tolist(), [*tokens.learned.tolist(), False], strict=False):
        if flag:
            run.append(id)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _parts(turn: dict[str, Any]) -> list[str]:
    if turn["content"]:
        return [turn["content"].strip()]
    return ["get_weather", *(call["function"]["arguments"]["city"] for call in turn["tool_calls"])]


def _unlike(tokenizer: Any, turns: Any, tools: Any, texts: list[str]) -> str:
    """Return a text that `apply_chat_template` makes of no beginning of the conversation."""
    form = tool_forms.form_of(ChatTemplate(tokenizer)) if tools else None
    if form:  # the calls as this template takes them
        return ""
    places = [n for n, turn in enumerate(turns, 1) if turn["role"] == "assistant"]
    shown = [_applied(tokenizer, turns[:n], tools) for n in {*places, len(turns)}]
    end = tokenizer.eos_token or ""
    for text in texts:
        body = text.removesuffix(end)
        if text not in shown and not any(each.startswith(body) for each in shown):
            return f"{text!r} is not what apply_chat_template makes"
    return ""


def _applied(tokenizer: Any, turns: Any, tools: Any) -> str:
    """Apply the template; where it takes no text as a content, with a list of one part."""
    try:
        shown = str(tokenizer.apply_chat_template(turns, tools=tools, tokenize=False))
    except Exception:  # any error of a foreign template
        shown = ""
    if turns[-1]["content"].strip() in shown:
        return shown
    parts = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns]
    return str(tokenizer.apply_chat_template(parts, tools=tools, tokenize=False))


def tokenizer_for(file: Path) -> Any:
    """Return the starter's tokenizer with a template, and with the template's marks as tokens."""
    template = file.read_text(encoding="utf-8")
    beside = file.with_suffix(".json")
    known = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    end = known.get("eos_token") or next((each for each in ENDS if each in template), "</s>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(STARTER)),
        bos_token=_text(known.get("bos_token")) or "<s>",
        eos_token=_text(end),
    )
    marks = sorted(set(MARKS.findall(template)))
    tokenizer.add_tokens(marks, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token or "")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


if __name__ == "__main__":
    raise SystemExit(main())
