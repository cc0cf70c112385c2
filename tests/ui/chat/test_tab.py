"""The Chat tab on a service without a model: who answers, what is kept, what is marked."""

import threading
import time
from pathlib import Path

import gradio as gr
import pytest

from backend import Settings, errors
from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import rename
from tests.ui.fake_service import FACTS, FakeService
from tests.ui.test_view import job, words
from ui.app.layout import Page
from ui.chat.chat_state import ADAPTER, BASE, ON_NOW, Column, Exchange
from ui.chat.conversation import answers, differing, perplexity
from ui.chat.tab import ChatTab

PIRATE = ADAPTER + "ad_pirate"


@pytest.fixture
def page(service: FakeService) -> Page:
    service.add_adapter("pirate")
    service.add_adapter("polite")
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


@pytest.fixture
def chat(page: Page) -> ChatTab:
    return page.chat


def ask(chat: ChatTab, prompt: str, **changes: object) -> list[dict]:
    settings = {name: each.value for name, each in chat.form.inputs.items()}
    return list(chat.ask(prompt=prompt, **{**settings, **changes}))


def choose(chat: ChatTab, *names: str) -> None:
    """Let the base and adapters answer."""
    library = chat.handle.service.library
    chat.chat_state.choose([BASE, *(ADAPTER + library.get(name).id for name in names)])


def columns(chat: ChatTab) -> list[Column]:
    return chat.chat_state.columns(chat.handle.service.snapshot())


def said(chat: ChatTab) -> list[list[tuple[str, str]]]:
    return [[(e.question, e.answer.strip()) for e in column.exchanges] for column in columns(chat)]


def requests_of(service: FakeService) -> list[rq.SideBySide]:
    """Let every question be answered by "Aye." and collect what the engine was asked."""
    asked: list[rq.SideBySide] = []
    aye = rs.Answer(text="Aye.", tokens=2, seconds=0.1)
    service.script["side-by-side"] = lambda request: (
        asked.append(request) or rs.SideAnswers(answers=[aye] * len(request.variants), batched=1)
    )
    return asked


def test_the_newest_adapter_answers_beside_the_base_at_first(chat: ChatTab) -> None:
    assert [column.title for column in columns(chat)] == ["base", "polite"]


def test_all_chosen_answer_the_same_question(chat: ChatTab) -> None:
    choose(chat, "pirate", "polite")
    drawn = ask(chat, "Where is the cat?")
    assert said(chat) == [
        [("Where is the cat?", "You said: Where is the cat?")],
        [("Where is the cat?", "Arr, Where is the cat?")],
        [("Where is the cat?", "Arr, Where is the cat?")],
    ]
    assert drawn[0][chat.prompt] == ""
    assert drawn[-1][chat.send] == gr.update(value="Ask all 3", interactive=True)


def test_nobody_is_asked_again_while_answers_come(chat: ChatTab, service: FakeService) -> None:
    drawn, ends = threading.Event(), rs.Answer(text="Aye.", tokens=2, seconds=0.1)

    def answered(request: rq.SideBySide) -> rs.SideAnswers:
        assert drawn.wait(10)
        return rs.SideAnswers(answers=[ends, ends], batched=2)

    service.script["side-by-side"] = answered
    settings = {name: each.value for name, each in chat.form.inputs.items()}
    drawing = chat.ask(prompt="Where is the cat?", **settings)
    first = next(drawing)
    drawn.set()
    last = list(drawing)[-1]
    assert not first[chat.send]["interactive"]
    assert first[chat.stop]["interactive"]
    assert last[chat.send]["interactive"]
    assert not last[chat.stop]["interactive"]


def test_each_column_keeps_a_conversation_of_its_own(chat: ChatTab, service: FakeService) -> None:
    ask(chat, "one")
    asked = requests_of(service)
    ask(chat, "two")
    base, polite = ([m.content for m in messages] for messages in asked[0].conversations)
    assert base == ["one", "You said: one", "two"]
    assert polite == ["one", "Arr, one", "two"]


def test_a_column_that_comes_back_remembers(chat: ChatTab) -> None:
    choose(chat, "pirate")
    ask(chat, "one")
    choose(chat)
    ask(chat, "two")
    choose(chat, "pirate")
    assert [question for question, _ in said(chat)[1]] == ["one"]
    assert [question for question, _ in said(chat)[0]] == ["one", "two"]


def test_a_new_adapter_does_not_inherit_the_talk_of_one_with_its_name(
    chat: ChatTab, service: FakeService
) -> None:
    choose(chat, "pirate")
    chat.set_strength(0, 0.5)
    ask(chat, "one")
    old = service.library.get("pirate")
    service.library.discard(old.id)
    service.add_adapter("pirate")
    choose(chat, "pirate")
    assert said(chat)[1] == []
    assert columns(chat)[1].variant == [("pirate", 1.0)]

    asked = requests_of(service)
    ask(chat, "two")
    assert [[m.content for m in each] for each in asked[0].conversations] == [
        ["one", "You said: one", "two"],
        ["two"],
    ]


def test_a_renamed_adapter_goes_on_talking(chat: ChatTab, service: FakeService) -> None:
    choose(chat, "pirate")
    ask(chat, "one")
    rename(service, "pirate", "captain")
    assert [column.title for column in columns(chat)] == ["base", "captain"]
    assert said(chat)[1] == [("one", "Arr, one")]


def test_another_base_knows_nothing_of_what_the_last_one_said(
    chat: ChatTab, service: FakeService
) -> None:
    choose(chat)
    ask(chat, "one")
    starter = service.engine.base
    service.engine.base = FACTS.model_copy(update={"fingerprint": "other"})
    choose(chat)
    assert said(chat) == [[]]
    service.engine.base = starter
    assert said(chat) == [[("one", "You said: one")]]


def test_what_several_said_together_is_not_what_others_said(
    chat: ChatTab, service: FakeService
) -> None:
    service.start(rq.SetActive(adapters=[("pirate", 1.0), ("polite", 0.5)])).result(timeout=10)
    ask(chat, "one")
    service.add_adapter("third")
    service.start(rq.SetActive(adapters=[("pirate", 1.0), ("third", 0.5)])).result(timeout=10)
    assert [column.key for column in columns(chat)] == [BASE, ON_NOW]
    assert [len(each) for each in said(chat)] == [1, 0]


def test_a_strength_goes_into_question_and_heading(chat: ChatTab, service: FakeService) -> None:
    asked = requests_of(service)
    choose(chat, "polite", "pirate")
    chat.set_strength(1, 0.5)  # the second slider is the second adapter's
    drawn = ask(chat, "hi", same_seed=False)
    assert asked[0].variants == [[], [("polite", 1.0)], [("pirate", 0.5)]]
    assert not asked[0].same_seed
    assert "pirate 0.5" in words(drawn[-1][chat.answers])


def test_only_adapters_that_can_be_scaled_have_a_slider(
    chat: ChatTab, service: FakeService
) -> None:
    info = service.add_adapter("heavy")
    on_off = info.model_copy(update={"strength": "on-off", "method": "DoRA"})
    service.library.write_sidecar(service.library.folder(info.id), on_off)
    choose(chat, "heavy", "pirate")
    chat.chat_state.set_strength(info.id, 0.5)
    drawn = chat.show(service.snapshot())
    shown = [drawn[slider] for slider in chat.strengths if drawn[slider]["visible"]]
    assert [each["label"] for each in shown] == ["Strength of pirate"]
    assert columns(chat)[1].variant == [("heavy", 1.0)]


def test_several_that_are_on_are_one_choice(chat: ChatTab, service: FakeService) -> None:
    on = [("pirate", 1.0), ("polite", 0.5)]
    service.start(rq.SetActive(adapters=on)).result(timeout=10)
    found = columns(chat)
    assert [column.key for column in found] == [BASE, ON_NOW]
    assert found[1].title == "pirate + polite 0.5"
    assert found[1].variant == on
    assert len(found[1].colours) == 2


def test_at_most_six_answer_and_a_deleted_adapter_leaves(
    chat: ChatTab, service: FakeService
) -> None:
    names = [f"extra {number}" for number in range(7)]
    infos = [service.add_adapter(name) for name in names]
    choose(chat, *names)
    assert len(columns(chat)) == 6
    service.library.discard(infos[0].id)
    assert "extra 0" not in [column.title for column in columns(chat)]


def test_a_second_page_sees_the_answer_that_is_coming(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path / "w")
    with FakeService(settings, word_seconds=0.1) as service:
        service.start(rq.LoadModel()).result(timeout=10)
        with gr.Blocks():
            page = Page(service)
        asking = threading.Thread(target=ask, args=(page.chat, "one two three four five six"))
        asking.start()
        while not page.chat.chat_state.asking:
            time.sleep(0.005)
        followed = list(page.chat.follow())  # what a page does that is opened now
        asking.join()
    assert len(followed) > 2
    assert "six" in words(followed[-1][page.chat.answers])
    assert "six" not in words(followed[0][page.chat.answers]).replace("four five six", "")


def test_stop_keeps_what_was_said(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path / "w")
    with FakeService(settings, word_seconds=0.05) as service:
        service.start(rq.LoadModel()).result(timeout=10)
        with gr.Blocks():
            chat = Page(service).chat
        asking = threading.Thread(target=ask, args=(chat, "word " * 200))
        asking.start()
        while not said(chat)[0] or not said(chat)[0][0][1]:
            time.sleep(0.005)
        chat.chat_state.stop()
        asking.join(10)
        assert not asking.is_alive()
        assert 0 < len(said(chat)[0][0][1].split()) < 200
        chat.chat_state.clear()
        assert said(chat) == [[]]


def test_a_stop_is_told_from_an_empty_answer(chat: ChatTab, service: FakeService) -> None:
    choose(chat, "pirate", "polite")
    cut = rs.Answer(text="", tokens=0, seconds=0.0, stopped=True)
    whole = rs.Answer(text="", tokens=1, seconds=0.1)
    service.script["side-by-side"] = lambda request: rs.SideAnswers(
        answers=[whole, cut, whole], batched=2
    )
    ask(chat, "one")
    drawn = words(chat.show(service.snapshot())[chat.answers])  # as after a reload
    assert drawn.count("(stopped before it could answer)") == 1
    assert drawn.count("(an empty answer)") == 2

    asked = requests_of(service)
    ask(chat, "two")
    base, pirate, _ = ([m.content for m in messages] for messages in asked[0].conversations)
    assert base == ["one", "", "two"]
    assert pirate == ["two"]  # it was never asked the first


def test_a_cut_answer_says_so_and_is_nothing_to_compare_with() -> None:
    base = Column(BASE, "base", [], (), (Exchange(1, "q", "one two", False, stopped=True),))
    whole = Column(PIRATE, "pirate", [], ("#E69F00",), (Exchange(1, "q", "three", False),))
    drawn = answers([base, whole])
    assert words(drawn).count("(stopped)") == 1
    assert "aw-differs" not in str(drawn)


def test_trouble_gives_the_question_back(chat: ChatTab, service: FakeService) -> None:
    no_memory = errors.OutOfMemory("No memory left.", cure="Less.")
    service.script["side-by-side"] = lambda request: no_memory
    last = ask(chat, "hi")[-1]
    assert "No memory left. Less." in words(last[chat.trouble])
    assert last[chat.prompt] == "hi"
    assert said(chat) == [[], []]
    assert "Enter a question first" in words(ask(chat, " ")[-1][chat.trouble])


def test_a_busy_session_is_said(chat: ChatTab, service: FakeService) -> None:
    service.load_seconds = 0.5
    job = service.start(rq.LoadModel())
    refused = ask(chat, "hi")[-1]
    assert "still going on" in words(refused[chat.trouble])
    assert chat.prompt not in refused  # the question stays where it was written
    job.result(timeout=10)
    free = chat.show(chat.handle.service.snapshot())
    assert "still going on" not in words(free[chat.trouble])


def test_why_nobody_can_be_asked_is_said_before_anybody_tries(chat: ChatTab) -> None:
    service = chat.handle.service
    training = job(title="Training pirate", run_id="r1")
    held = service.snapshot().model_copy(update={"phase": "training", "job": training})

    shown = chat.show(held)

    assert "pirate is training" in words(shown[chat.trouble])
    assert "To ask now, pause it at the top" in words(shown[chat.trouble])
    assert not shown[chat.send]["interactive"]
    assert not shown[chat.score]["interactive"]
    assert words(chat.show(service.snapshot())[chat.trouble]) == ""


def test_html_is_text(chat: ChatTab) -> None:
    ask(chat, "<img src=x> &amp; ${me}")
    assert "<img src=x> &amp; ${me}" in words(
        chat.show(chat.handle.service.snapshot())[chat.answers]
    )


def test_words_that_differ_from_the_base_are_marked() -> None:
    parts = differing("The cat is on the mat.", "Arr, the cat be on the mat.")
    assert "".join(part for part, _ in parts) == "Arr, the cat be on the mat."
    marked = [part.strip() for part, new in parts if new]
    assert marked == ["Arr, the", "be"]
    assert differing("same words", "same words") == [("same words", False)]


def test_only_answers_to_the_same_question_are_compared() -> None:
    base = Column(BASE, "base", [], (), (Exchange(1, "q", "one two", coming=False),))
    later = Column(PIRATE, "pirate", [], ("#E69F00",), (Exchange(2, "q", "three", coming=False),))
    assert "aw-differs" not in str(answers([base, later]))
    same = Column(PIRATE, "pirate", [], ("#E69F00",), (Exchange(1, "q", "three", coming=False),))
    assert "aw-differs" in str(answers([base, same]))


def test_an_empty_answer_is_no_words_that_differ() -> None:
    base = Column(BASE, "base", [], (), (Exchange(1, "q", "one two", coming=False),))
    empty = Column(PIRATE, "pirate", [], ("#E69F00",), (Exchange(1, "q", " ", coming=False),))
    drawn = answers([base, empty])
    assert "(an empty answer)" in words(drawn)
    assert "aw-differs" not in str(drawn)


def test_a_text_is_scored_by_all_who_answer(chat: ChatTab) -> None:
    found = words(chat.score_text("Arr!"))
    assert "base -10.00 nats 2.72" in found
    assert "polite -15.00 nats 4.48" in found
    assert "Lowest perplexity: base." in found
    assert "Over 10 tokens, without the first" in found
    assert "no text to score" in words(chat.score_text(""))


def test_perplexity_is_per_scored_token() -> None:
    assert perplexity(-10.0, 10) == pytest.approx(2.71828, rel=1e-5)
    assert perplexity(0.0, 0) == 1.0
