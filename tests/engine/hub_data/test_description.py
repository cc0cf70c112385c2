"""What is said of a data set of the Hub before its download, over real HTTP from a stand-in."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from backend.sizes import size_text
from tests.hub_bench import Bench, lines, metadata
from tests.hub_stand_in import HubStandIn, know_only

pytestmark = pytest.mark.slow
ENGLISH = [{"text": f"row {number}"} for number in range(60)]
GERMAN = [{"text": f"Zeile {number}"} for number in range(50)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("hub-description")
    hub = HubStandIn({})
    with pytest.MonkeyPatch.context() as patch:
        know_only(hub, root / "home", patch)
        yield Bench(hub, root)
    hub.close()


@pytest.fixture(scope="module")
def languages(bench: Bench) -> str:
    """A data set with two configurations, one of which has three splits."""
    configs = [
        {
            "config_name": "en",
            "data_files": [
                {"split": "train", "path": "en/train.jsonl"},
                {"split": "validation", "path": "en/validation.jsonl"},
                {"split": "test", "path": "en/test.jsonl"},
            ],
        },
        {"config_name": "de", "data_files": [{"split": "pairs", "path": "de.jsonl"}]},
    ]
    splits = [
        {"name": "train", "num_bytes": 1000, "num_examples": 60},
        {"name": "validation", "num_bytes": 10, "num_examples": 1},
    ]
    return bench.add(
        "languages",
        metadata(
            license="cc-by-4.0",
            configs=configs,
            dataset_info=[{"config_name": "en", "splits": splits}],
        ),
        en___train__jsonl=lines(*ENGLISH),
        en___validation__jsonl=lines({"text": "held out"}),
        en___test__jsonl=lines({"text": "tested"}),
        de__jsonl=lines(*GERMAN),
    )


def test_parts_size_licence_and_first_rows_are_shown_before_the_download(
    bench: Bench, languages: str
) -> None:
    bench.hub.sent.clear()

    (said,) = bench.ask(("describe", f"{languages}:en"))

    size = len(lines(*ENGLISH)) + len(lines({"text": "held out"}))
    assert said["problem"] is None
    assert said["source"] == f"{languages}:en:train"
    assert said["license"] == "cc-by-4.0"
    assert said["configurations"] == ["en", "de"]
    assert said["splits"] == ["train", "validation", "test"]
    assert (said["split"], said["held_out"]) == ("train", "validation")
    assert (said["rows"], said["held_out_rows"]) == (60, 1)
    assert (said["files"], said["download_bytes"], said["kept_bytes"]) == (2, size, 0)
    assert (said["prepared_bytes"], said["needed_bytes"]) == (1010, 1010 + size)
    assert not said["prepared_is_estimate"]
    assert said["free_bytes"] > 0
    assert not said["ready"]
    assert said["first_rows"] == ENGLISH[:3]
    assert not [name for name, *_ in bench.hub.sent if name.startswith(("de", "en/v", "en/test"))]


def test_a_choice_that_is_missing_is_asked_for_with_the_names(bench: Bench, languages: str) -> None:
    none, wrong, no_train, no_split, opened = bench.ask(
        ("describe", languages),
        ("describe", f"{languages}:eng"),
        ("describe", f"{languages}:de"),
        ("describe", f"{languages}:en:tests"),
        ("open", languages),
    )

    several = f"The data set {languages!r} has 2 configurations: en, de."
    cure = f"Choose one: write it after the name, as in {languages}:en."
    assert (none["problem"]["what"], none["problem"]["cure"]) == (several, cure)
    assert none["configurations"] == ["en", "de"]
    assert none["license"] == "cc-by-4.0"
    assert opened == f"DataError: {several} {cure}"
    assert wrong["problem"]["what"] == (
        f"The data set {languages!r} has no configuration 'eng'. It has en, de."
    )
    assert no_train["problem"]["what"] == (
        f"The data set {languages!r} has no split 'train'. It has pairs."
    )
    assert no_train["problem"]["cure"].endswith(f"as in {languages}:de:pairs.")
    assert (no_train["configuration"], no_train["splits"]) == ("de", ["pairs"])
    assert no_split["problem"]["what"] == (
        f"The data set {languages!r} has no split 'tests'. It has test, train, validation."
    )


def test_the_validation_split_is_held_out_and_only_what_is_used_is_downloaded(
    bench: Bench, languages: str
) -> None:
    bench.hub.sent.clear()

    opened, again, other = bench.ask(
        ("open", f"{languages}:en"),
        ("describe", f"{languages}:en"),
        ("open", f"{languages}:de:pairs"),
    )

    assert opened["rows"] == ENGLISH
    assert opened["held_out"] == [{"text": "held out"}]
    assert opened["notes"] == [
        "The split 'validation' of the data set is held out.",
        "Other splits of the data set are not used: test.",
    ]
    assert again["ready"]
    assert again["needed_bytes"] == 0
    assert other["rows"] == GERMAN
    assert other["held_out"] == []
    assert "en/test.jsonl" not in [name for name, *_ in bench.hub.sent]


def test_without_validation_the_test_split_is_held_out(bench: Bench) -> None:
    id = bench.add(
        "tested",
        train__jsonl=lines(*ENGLISH),
        test__jsonl=lines({"text": "tested"}),
    )

    plain, named, of_test = bench.ask(
        ("open", id), ("open", f"{id}::train"), ("open", f"{id}@v1::test")
    )

    assert plain == named
    assert plain["held_out"] == [{"text": "tested"}]
    assert plain["notes"] == ["The split 'test' of the data set is held out."]
    assert of_test["rows"] == [{"text": "tested"}]
    assert of_test["held_out"] == []


def test_addresses_name_data_sets(bench: Bench, languages: str) -> None:
    page = f"https://huggingface.co/datasets/{languages}"

    viewer, tree, file, model = bench.ask(
        ("open", f"{page}/viewer/en/validation?row=1"),
        ("describe", f"{page}/tree/v1"),
        ("describe", f"{page}/blob/main/de.jsonl"),
        ("describe", f"{page}/tree/nowhere"),
    )

    assert viewer["rows"] == [{"text": "held out"}]
    assert tree["configurations"] == ["en", "de"]
    assert file.startswith("InvalidRequest: ")
    assert "cannot be named alone" in file
    assert model == f"NotFound: {languages!r} has no revision 'nowhere'."


def test_what_was_prepared_is_used_without_a_connection(bench: Bench) -> None:
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}.jsonl"}]}
        for name in ("one", "two", "three")
    ]
    id = bench.add(
        "kept",
        metadata(configs=configs),
        one__jsonl=lines(*ENGLISH), two__jsonl=lines(*GERMAN), three__jsonl=lines(*GERMAN),
    )  # fmt: skip
    bench.ask(("open", f"{id}:one"), ("open", f"{id}@v1:two"))

    with bench.hub.unreachable():
        one, two, at, neither, three, said = bench.ask(
            ("open", f"{id}:one"),
            ("open", f"{id}:two"),
            ("open", f"{id}@v1:two:train"),
            ("open", id),
            ("open", f"{id}:three"),
            ("describe", f"{id}:one"),
        )

    assert one["rows"] == ENGLISH
    assert two["rows"] == at["rows"] == GERMAN
    assert neither == (
        f"DataError: Of the data set {id!r}, these configurations are on this machine: one, two. "
        f"Choose one: write it after the name, as in {id}:one."
    )
    assert three.startswith(f"NotFound: The data set '{id}:three' is not on this machine")
    assert said["ready"]
    assert said["notes"][0].startswith("The Hub cannot be reached.")


def test_what_the_library_prepared_itself_is_used_without_a_connection(bench: Bench) -> None:
    """As an earlier version of the app left it."""
    id = bench.add("older", train__jsonl=lines(*ENGLISH), validation__jsonl=lines(*GERMAN))
    load = "import sys, datasets; datasets.load_dataset(sys.argv[1])"
    subprocess.run([sys.executable, "-c", load, id], check=True, capture_output=True)

    with bench.hub.unreachable():
        (opened,) = bench.ask(("open", id))

    assert opened["rows"] == ENGLISH
    assert opened["held_out"] == GERMAN


def test_a_gated_data_set_says_how_to_get_access(bench: Bench) -> None:
    id = bench.add(
        "gated", gated=True, card={"license": "llama3"}, train__jsonl=lines({"text": "secret"})
    )

    said, opened, missing = bench.ask(
        ("describe", id), ("open", id), ("describe", "someone/nothing")
    )

    access = (
        f"Accept its conditions on {bench.hub.url}/datasets/{id}, then run 'hf auth login' once "
        "or set HF_TOKEN, and try again."
    )
    assert said["gated"]
    assert said["license"] == "llama3"
    assert said["problem"]["what"] == f"{id!r} is a gated repository."
    assert said["problem"]["cure"] == access
    assert opened == f"NotFound: {id!r} is a gated repository. {access}"
    assert missing == (
        "NotFound: 'someone/nothing' does not exist on the Hub, or it is private. Check the "
        "spelling. If it is yours, run 'hf auth login' once or set HF_TOKEN."
    )


def test_first_rows_of_each_format(bench: Bench, tmp_path: Path) -> None:
    columns = {"question": ["a", "b", "c", "d"], "turns": [[{"x": 1}], [], [], []]}
    table = pa.table({**columns, "noise": ["é" * 2000] * 4})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    rows = [{"text": str(number)} for number in range(200_000)]
    files = {
        "parquet": {"data___train-00000-of-00001__parquet": (tmp_path / "x.parquet").read_bytes()},
        "csv": {"train__csv": "text,n\nhello,1\nyou,2\n"},
        "gz": {"train__jsonl__gz": gzip.compress(lines(*rows).encode())},
        "list": {"train__json": json.dumps(rows)},
        "objects": {"train__json": lines(*rows)},
        "wide": {"train__jsonl": lines({"text": "x" * 3_000_000})},
    }
    ids = {name: bench.add(f"rows-{name}", **each) for name, each in files.items()}

    answers = bench.ask(*(("describe", id) for id in ids.values()))

    found = dict(zip(ids, answers, strict=True))
    first = found["parquet"]["first_rows"]
    assert [row["question"] for row in first] == ["a", "b", "c"]
    assert first[0]["turns"] == '[{"x": 1}]'
    assert first[0]["noise"] == "é" * 300 + "..."
    assert found["csv"]["first_rows"] == [{"text": "hello", "n": "1"}, {"text": "you", "n": "2"}]
    for name in ("gz", "list", "objects"):
        assert found[name]["first_rows"] == [{"text": "0"}, {"text": "1"}, {"text": "2"}], name
        assert found[name]["prepared_is_estimate"]
    assert found["wide"]["first_rows"] == []
    assert found["wide"]["first_rows_note"] == (
        "The first rows cannot be shown before the download: train.jsonl has no whole row in its "
        "first 1 MB."
    )
    assert sum(size for name, _, size in bench.hub.sent if name == "train.json") < 3_000_000


def test_a_download_is_continued_where_it_was_stopped(bench: Bench) -> None:
    content = lines(*({"text": f"{number} " + "x" * 100} for number in range(300_000)))
    id = bench.add("long", train__jsonl=content, test__jsonl=lines({"text": "tested"}))
    (stopped,) = bench.ask(("download-and-stop", id))
    (between,) = bench.ask(("describe", id))
    bench.hub.sent.clear()

    (done,) = bench.ask(("download", id))

    size = len(content)
    assert stopped["error"] == (
        f"Stopped: The download of {id} was stopped, as requested. What has arrived is kept: the "
        "next attempt continues there."
    )
    assert 0 < between["kept_bytes"] < size
    ((first, sent),) = [each[1:] for each in bench.hub.sent if each[0] == "train.jsonl"]
    assert first == between["kept_bytes"]
    assert first + sent == size
    assert (done["rows"], done["held_out_rows"]) == (300_000, 1)
    assert done["downloaded_bytes"] == size - first + len(lines({"text": "tested"}))
    assert f" of {size_text(size)}" in next(text for text in done["told"] if "Downloading" in text)


def test_a_connection_that_breaks_is_continued(bench: Bench) -> None:
    content = lines(*({"text": f"{number} " + "y" * 100} for number in range(30_000)))
    id = bench.add("broken", broken__jsonl=content)
    bench.hub.breaks_after["broken.jsonl"] = 1_500_000
    bench.hub.sent.clear()

    (done,) = bench.ask(("download", id))

    parts = [each[1:] for each in bench.hub.sent if each[0] == "broken.jsonl"]
    assert done["rows"] == 30_000
    assert [first > 0 for first, _ in parts] == [False, True]


def test_a_beginning_that_is_damaged_is_noticed(bench: Bench) -> None:
    content = lines(*({"text": f"{number} " + "z" * 100} for number in range(30_000)))
    id = bench.add("damaged", damaged__jsonl=content)
    (stopped,) = bench.ask(("download-and-stop", id))
    (begun,) = (bench.root / "home").rglob(
        "datasets--someone--damaged/blobs/*.workbench.incomplete"
    )
    begun.write_bytes(b"?" * begun.stat().st_size)

    refused, done = bench.ask(("download", id), ("download", id))

    assert stopped["error"].startswith("Stopped: ")
    assert refused["error"] == (
        "VerificationFailed: damaged.jsonl arrived damaged: its content is not what the Hub "
        "states. It was removed. Download it again."
    )
    assert done["rows"] == 30_000


def test_too_little_disk_space_is_said_before_it_begins(bench: Bench) -> None:
    splits = [{"name": "train", "num_bytes": 2**50, "num_examples": 1}]
    id = bench.add(
        "huge", metadata(dataset_info={"splits": splits}), train__jsonl=lines({"text": "x"})
    )
    bench.hub.sent.clear()

    said, refused = bench.ask(("describe", id), ("download", id))

    assert said["problem"]["what"].startswith("The data set needs about 1048576 GB of disk")
    assert refused["error"].startswith(f"DiskFull: The data set {id!r} needs about 1048576 GB of")
    sent = [name for name, first, size in bench.hub.sent if name == "train.jsonl"]
    assert len(sent) == 1  # the first rows
