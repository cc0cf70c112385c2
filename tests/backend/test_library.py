"""The adapter library: names, colours, and folders that something else wrote into."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from zipfile import ZipFile

import pytest

from backend.errors import DiskFull, InvalidRequest, NotFound
from backend.library import COLOURS, SIDECAR, Library, new_adapter_id
from backend.results import AdapterInfo


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path)


def add(library: Library, name: str, *, created: float = 0.0) -> AdapterInfo:
    info = AdapterInfo(
        id=new_adapter_id(),
        name=name,
        colour=library.next_colour(),
        method="LoRA",
        rank=8,
        parameters=1,
        base_name="starter",
        base_fingerprint="abc",
        created=created,
    )
    library.folder(info.id).mkdir(parents=True)
    library.write_sidecar(library.folder(info.id), info)
    return info


def test_adapters_are_listed_oldest_first(library: Library) -> None:
    add(library, "second", created=2)
    add(library, "first", created=1)

    assert [info.name for info in library.all()] == ["first", "second"]


def test_a_library_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert Library(tmp_path / "nothing").all() == []


def test_an_adapter_is_found_by_name_whatever_its_case(library: Library) -> None:
    info = add(library, "Pirate")

    assert library.get(" pirate ") == info


def test_an_unknown_name_lists_the_known_ones(library: Library) -> None:
    with pytest.raises(NotFound, match=r"There is no adapter called 'x'\. Adapters: none yet\."):
        library.get("x")
    add(library, "pirate")
    with pytest.raises(NotFound, match=r"There is no adapter called 'x'\. Adapters: pirate\."):
        library.get("x")


@pytest.mark.parametrize(
    ("wanted", "free"),
    [
        ("polite", "polite"),
        ("pirate", "pirate 4"),
        ("PIRATE", "PIRATE 4"),
        ("pirate 2", "pirate 4"),
        ("a" * 40, "a" * 36 + " 2"),
    ],
)
def test_a_taken_name_is_counted_up(library: Library, wanted: str, free: str) -> None:
    for name in ("pirate", "Pirate 2", "a" * 40):
        add(library, name)

    assert library.free_name(wanted, taken=["pirate 3"]) == free
    assert len(free) <= 40


def test_a_taken_name_is_refused_with_a_free_one(library: Library) -> None:
    add(library, "pirate")

    with pytest.raises(InvalidRequest) as caught:
        library.require_free("Pirate")

    assert str(caught.value) == ("There is already an adapter called 'pirate'. 'Pirate 2' is free.")
    library.require_free("polite")


def test_colours_are_all_used_before_one_comes_again(library: Library) -> None:
    used = [add(library, f"adapter {number}").colour for number in range(len(COLOURS) + 1)]

    assert used == [*COLOURS, COLOURS[0]]


def test_a_blend_does_not_look_like_its_ingredients_where_colours_come_again(
    library: Library,
) -> None:
    infos = [add(library, f"adapter {number}") for number in range(len(COLOURS))]

    assert library.next_colour(beside=[infos[0].colour, infos[1].colour]) == COLOURS[2]
    library.discard(infos[1].id)
    assert library.next_colour(beside=[infos[1].colour]) == COLOURS[1]


def test_a_freed_colour_comes_next(library: Library) -> None:
    infos = [add(library, f"adapter {number}") for number in range(len(COLOURS))]

    library.discard(infos[3].id)

    assert library.next_colour() == infos[3].colour


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": "ad_1"}', b"\xff\xfe\x00"])
def test_a_damaged_side_car_hides_no_other_adapter(library: Library, content: bytes) -> None:
    good, damaged = add(library, "good"), add(library, "damaged")

    (library.folder(damaged.id) / SIDECAR).write_bytes(content)

    assert library.all() == [good]


def test_a_side_car_of_another_folder_is_not_believed(library: Library) -> None:
    """Its id leads to files, and would lead to those of another adapter or out of the library."""
    good, copied = add(library, "good"), add(library, "copied")
    strange = copied.model_copy(update={"id": "../../elsewhere"})

    library.write_sidecar(library.folder(copied.id), strange)

    assert library.all() == [good]


def test_a_changed_side_car_is_read_again(library: Library) -> None:
    info = add(library, "before")
    assert library.get("before") == info

    library.write_sidecar(library.folder(info.id), info.model_copy(update={"name": "after"}))

    assert [each.name for each in library.all()] == ["after"]


def test_an_id_that_an_adapter_has_is_drawn_again(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, deleted = add(library, "kept").id, add(library, "deleted").id
    library.discard(deleted)
    damaged = library.folder("ad_0123456789abcdef")
    damaged.mkdir()
    drawn = [kept, deleted, damaged.name, "ad_loaded", "ad_free"]
    monkeypatch.setattr("backend.library.new_adapter_id", lambda: drawn.pop(0))

    assert library.new_id({"ad_loaded"}) == "ad_free"


def test_ids_of_older_versions_stay_valid(library: Library) -> None:
    old = add(library, "old").model_copy(update={"id": "ad_3f2a9c"})
    library.folder(old.id).mkdir()
    library.write_sidecar(library.folder(old.id), old)

    assert library.by_id("ad_3f2a9c") == old
    library.discard(old.id)
    assert library.restore("old").id == "ad_3f2a9c"


def test_ids_are_safe_and_differ() -> None:
    ids = {new_adapter_id() for _ in range(100)}

    assert len(ids) == 100
    assert all(id.startswith("ad_") and id[3:].isalnum() for id in ids)
    assert all(len(id) == len("ad_") + 16 for id in ids)


def test_a_zip_that_the_disk_has_no_room_for_is_not_left_cut_off(
    library: Library, tmp_path: Path,
    largest_file: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    info = add(library, "pirate")
    (library.folder(info.id) / "weights").write_bytes(os.urandom(5000))
    exports = tmp_path / "exports"

    with largest_file(3000), pytest.raises(DiskFull, match=r"Could not write pirate\.zip"):
        library.pack(info.id, exports)
    assert list(exports.iterdir()) == []

    packed = library.pack(info.id, exports)
    assert sorted(ZipFile(packed).namelist()) == ["weights", SIDECAR]
