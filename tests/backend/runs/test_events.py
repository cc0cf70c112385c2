"""Event files: appended by one process, read by others, cut off by crashes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from backend import Service
from backend.errors import DiskFull
from backend.runs.events import Event, EventReader, EventWriter, curve


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def writer(file: Path) -> Iterator[EventWriter]:
    opened = EventWriter(file)
    yield opened
    opened.close()


def write_steps(file: Path, first: int, last: int) -> None:
    writer = EventWriter(file)
    for step in range(first, last + 1):
        writer.write("step", step=step, loss=1 / step)
    writer.close()


def test_what_is_written_is_read_in_order(file: Path, writer: EventWriter) -> None:
    written = [writer.write("started", total_steps=2), writer.write("step", step=1, loss=0.5)]

    assert EventReader(file).poll() == written
    assert [event.seq for event in written] == [1, 2]


def test_an_event_is_there_for_others_before_the_file_is_closed(
    file: Path, writer: EventWriter
) -> None:
    writer.write("notice", text="The base was loaded again.")

    assert len(EventReader(file).poll()) == 1


def test_a_file_that_is_not_there_yet_has_no_events(file: Path) -> None:
    reader = EventReader(file)
    assert reader.poll() == []

    write_steps(file, 1, 3)

    assert len(reader.poll()) == 3


def test_half_a_last_line_is_not_read_and_counts_once_it_is_whole(file: Path) -> None:
    write_steps(file, 1, 3)
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    reader = EventReader(file)

    before = [event.step for event in reader.poll()]
    file.write_bytes(content)
    after = [event.step for event in reader.poll()]

    assert (before, after) == ([1, 2], [1, 2, 3])


def test_a_writer_removes_half_a_last_line_and_goes_on_counting(file: Path) -> None:
    write_steps(file, 1, 3)
    file.write_bytes(file.read_bytes()[:-10])

    write_steps(file, 3, 4)

    assert [(event.seq, event.step) for event in EventReader(file).poll()] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
    ]


@pytest.mark.parametrize("damage", [b"\x00\xff\xfe", b"{}", b'{"seq": 2, "type": "flying"}', b"[]"])
def test_a_damaged_middle_line_hides_no_other(file: Path, damage: bytes) -> None:
    write_steps(file, 1, 3)
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))

    assert [event.step for event in EventReader(file).poll()] == [1, 3]


def test_a_poll_reads_only_what_is_new(file: Path) -> None:
    write_steps(file, 1, 3)
    reader = EventReader(file)
    reader.poll()
    size = file.stat().st_size
    file.write_bytes(b" " * size)  # what was read before is gone, and is not missed
    write_steps_after(file, first=4)

    assert [event.step for event in reader.poll()] == [1, 2, 3, 4]


def write_steps_after(file: Path, first: int) -> None:
    event = Event(seq=first, time=0, type="step", step=first, loss=0.1)
    with file.open("a", encoding="utf-8") as appended:
        appended.write(event.model_dump_json() + "\n")


@pytest.mark.parametrize("lost", [set[int](), {2}, {2, 3, 4}])
def test_since_leaves_out_what_was_seen_and_nothing_else(
    tmp_path: Path, scripted: Callable[[], Service], lost: set[int]
) -> None:
    folder = tmp_path / "runs" / "some-run"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text("{}", encoding="utf-8")
    write_steps(folder / "events.jsonl", 1, 6)
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    kept = ["damaged" if n in lost else line for n, line in enumerate(lines, 1)]
    (folder / "events.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    service = scripted()

    for since in range(7):
        seen = [event.seq for event in service.events("some-run", since=since)]
        assert seen == [n for n in range(1, 7) if n > since and n not in lost]


def test_a_curve_after_resuming_has_no_gap_and_no_repeat(file: Path, writer: EventWriter) -> None:
    for step in range(1, 8):
        writer.write("step", step=step, loss=float(step), learning_rate=0.1)
        if step == 5:
            writer.write("saved", step=5)
        if step in (3, 6):
            writer.write("evaluation", step=step, loss=9.0, exact_match=0.0)
    writer.write("interrupted", text="It was killed.")
    writer.write("resumed", step=5)
    for step in range(6, 11):
        writer.write("step", step=step, loss=-float(step))
    writer.write("evaluation", step=6, loss=8.0, exact_match=0.5)

    points = curve(EventReader(file).poll())

    assert points.step == list(range(1, 11))
    assert points.loss == [1, 2, 3, 4, 5, -6, -7, -8, -9, -10]
    assert (points.eval_step, points.eval_loss) == ([3, 6], [9.0, 8.0])
    assert points.marks == [(5, "saved"), (5, "resumed")]
    assert points.generation == 1


def test_each_resume_starts_a_new_generation_of_points(file: Path, writer: EventWriter) -> None:
    for end in (3, 4, 5):
        writer.write("resumed", step=0)
        for step in range(1, end):
            writer.write("step", step=step, loss=1.0)

    points = curve(EventReader(file).poll())

    assert (points.generation, points.step) == (3, [1, 2, 3, 4])


def test_a_loss_that_is_no_number_is_left_out_of_the_curve(file: Path, writer: EventWriter) -> None:
    writer.write("step", step=1, loss=0.5)
    writer.write("step", step=2, loss=float("nan"))
    writer.write("failed", text="The loss became nan in step 2.")

    events = EventReader(file).poll()

    assert [event.type for event in events] == ["step", "step", "failed"]
    assert curve(events).step == [1]


def test_an_event_that_the_disk_has_no_room_for_leaves_no_half_line(
    file: Path, writer: EventWriter, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    writer.write("started", total_steps=2)
    before = file.read_bytes()

    with (
        largest_file(len(before) + 20),
        pytest.raises(DiskFull, match=r"Could not write events\.jsonl"),
    ):
        writer.write("notice", text="x" * 100)

    assert file.read_bytes() == before
    after = writer.write("step", step=1, loss=0.5)
    writer.close()
    assert [event.seq for event in EventReader(file).poll()] == [1, 2]
    assert after.seq == 2
