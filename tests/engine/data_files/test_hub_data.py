"""Data sets by Hub id: over real HTTP from a stand-in, and never anything else than their files."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as FORMATS

from backend.engine.data_files import sources
from backend.engine.data_files.hub import hub_card
from backend.errors import DataError, NotFound
from tests.hub_bench import Bench, metadata
from tests.hub_stand_in import HubStandIn, know_only

SECRET = "the secret of this machine"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("hub-data")
    (root / "work" / "someone" / "good").mkdir(parents=True)
    for name in ("work/secret.txt", "work/someone/good/train.txt", "secret.txt"):
        (root / name).write_text(SECRET + "\n")
    hub = HubStandIn({})
    with pytest.MonkeyPatch.context() as patch:
        know_only(hub, root / "home", patch)
        yield Bench(hub, root)
    hub.close()


def configured(**fields: Any) -> str:
    """Return a README whose metadata say where the data are; JSON is YAML, too."""
    return metadata(configs=[{"config_name": "default", **fields}])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_name_of_a_file_format_is_no_data_set(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        sources.open_source(name)

    assert str(caught.value) == (
        f"{name!r} is the name of a file format, not of a data set. "
        "Write the full path of your file, or an id such as owner/name."
    )


@pytest.mark.parametrize("name", ["buckets/someone", "datasets/someone", "a--b", "a..b", "x.git"])
def test_what_cannot_be_an_id_is_said(name: str) -> None:
    with pytest.raises(NotFound, match=r"part of the Hub|nor a Hub id"):
        sources.open_source(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "json", "sql", "spark", "cache", "secret"])
def test_the_working_folder_is_never_read(bench: Bench, name: str) -> None:
    assert bench.open(name).startswith("NotFound: ")
    assert SECRET not in bench.kept()


@pytest.mark.slow
def test_a_data_set_is_read_from_the_hub_and_again_without_it(bench: Bench) -> None:
    """A folder of its name lies in the working folder."""
    rows = [{"text": "a"}, {"text": "b"}]
    id = bench.add("good", train__jsonl="".join(json.dumps(row) + "\n" for row in rows))

    assert bench.open(id) == rows
    with bench.hub.unreachable():
        assert bench.open(id) == rows
        assert bench.open("someone/other").startswith("NotFound: The data set 'someone/other' is ")
    assert SECRET not in bench.kept()


@pytest.mark.slow
def test_files_may_be_named_in_the_readme(bench: Bench) -> None:
    readme = configured(data_files=[{"split": "train", "path": "first*.csv"}])
    id = bench.add("named", readme, first_1__csv="text\na\n", second__csv="text\nb\n")

    assert bench.open(id) == [{"text": "a"}]


@pytest.mark.slow
def test_a_compressed_file_is_read(bench: Bench) -> None:
    id = bench.add("packed", train__jsonl__gz=gzip.compress(b'{"text": "a"}\n'))

    assert bench.open(id) == [{"text": "a"}]


@pytest.mark.parametrize(
    "fields",
    [
        {"data_files": "/etc/passwd"},
        {"data_files": ["data.csv", "../../secret.txt"]},
        {"data_files": [{"split": "train", "path": "/secret.txt"}]},
        {"data_files": [{"split": "train", "path": ["https://example.org/data.csv"]}]},
        {"data_files": "hf://datasets/other/data/data.csv"},
        {"data_files": "file:///etc/passwd"},
        {"data_files": "zip://data.csv::http://127.0.0.1/data.zip"},
        {"data_files": "~/secret.txt"},
        {"data_files": "C:\\secret.txt"},
        {"data_files": "data.csv", "data_dir": "/etc"},
        {"data_dir": "../.."},
    ],
)
def test_metadata_name_files_of_their_own_repository_only(fields: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        hub_card.require_own_files({"configs": [{"config_name": "default", **fields}]}, "a/b")

    assert str(caught.value).startswith("The data set 'a/b' refers to data outside its own files: ")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["README__md", "__huggingface__yaml"])
def test_a_path_of_this_machine_in_the_metadata_is_refused(bench: Bench, place: str) -> None:
    secret = str(bench.root / "secret.txt")
    readme = configured(data_files=secret)
    content = {"README__md": readme, "__huggingface__yaml": readme.split("---")[1]}[place]
    name = f"bad-{place.strip('_')[:4].lower()}"

    id = bench.add(name, **{"train__csv": "text\na\n", place: content})

    assert bench.open(id) == (
        f"DataError: The data set {id!r} refers to data outside its own files: {secret!r}. "
        "Use another data set, or download the file and enter its path."
    )
    assert SECRET not in bench.kept()


@pytest.mark.slow
def test_a_column_of_pictures_opens_no_file(bench: Bench) -> None:
    """`datasets` opens what a column of type image names: here a path of this machine."""
    features = {"features": [{"name": "text", "dtype": "image"}]}
    readme = f"---\ndataset_info: {json.dumps(features)}\n---\n"
    secret = str(bench.root / "secret.txt")
    id = bench.add("pictures", readme, train__jsonl=json.dumps({"text": secret}) + "\n")

    found = bench.open(id)

    assert found == [{"text": {"bytes": None, "path": secret}}] or found.startswith("DataError: ")


@pytest.mark.slow
def test_program_code_of_a_data_set_is_never_run(bench: Bench) -> None:
    id = bench.add("script", script__py="raise SystemExit('It ran.')", train__csv="text\na\n")

    assert bench.open(id).startswith(f"DataError: The data set {id!r} cannot be read: ")


@pytest.mark.slow
def test_archives_and_pictures_are_no_data(bench: Bench) -> None:
    id = bench.add("archive", train__tar=b"\0" * 1024)

    assert bench.open(id) == (
        f"DataError: The data set {id!r} is stored as webdataset, which is not supported. "
        "Use a data set of Parquet, JSONL, JSON, CSV or text files."
    )


@pytest.mark.slow
def test_what_would_fill_the_memory_is_refused_before_it_is_read(
    bench: Bench, tmp_path: Path
) -> None:
    values = pa.DictionaryArray.from_arrays(
        pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 13_000_000])
    )
    table = pa.table(
        {"text": pa.ListArray.from_arrays(pa.array([0, 100_000]).cast("int32"), values)}
    )
    parquet.write_table(table, tmp_path / "x.parquet", compression="zstd", store_schema=False)
    bomb = bench.add("bomb", train__parquet=(tmp_path / "x.parquet").read_bytes())
    line = bench.add("line", train__txt__gz=gzip.compress(b"x" * 20_000_000))

    assert bench.open(bomb).startswith("DataError: A row group of train.parquet of someone/bomb")
    assert bench.open(line).startswith("DataError: A line of train.txt.gz of someone/line has 20,")
