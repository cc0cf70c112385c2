"""Adapters that would harm: each is refused with a reason before anything of it is loaded."""

import json
import os
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import Service
from backend import requests as rq
from backend.engine import incoming, scan
from backend.errors import NotFound, WorkbenchError
from tests.engine import tiny

Q = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HANGS = "(([a-z0-9_.])+)+!"
Harm = Callable[[Path], Path]


class Bench(NamedTuple):
    service: Service
    good: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("hostile")
    base = tiny.write_base(root / "base")
    config = tiny.lora(r=4, target_modules=["q_proj", "v_proj"])
    good = tiny.write_adapter(root / "good", base, config)
    with tiny.start_service(root / "workspace", base) as service:
        tiny.enlist(service, "resident", tiny.lora(r=2), seed=3)
        service.start(rq.SetActive(adapters=[("resident", 0.5)])).result(timeout=60)
        yield Bench(service, good)


# -- what is done to a good folder ---------------------------------------------------------------


def said(**fields: Any) -> Harm:
    """Change the configuration."""

    def harm(folder: Path) -> Path:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        return folder

    return harm


def written(text: str) -> Harm:
    """Replace the configuration's text."""

    def harm(folder: Path) -> Path:
        (folder / CONFIG).write_text(text)
        return folder

    return harm


def holding(change: Callable[[dict[str, torch.Tensor]], Any]) -> Harm:
    """Change the tensors."""

    def harm(folder: Path) -> Path:
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        return folder

    return harm


def both(*harms: Harm) -> Harm:
    def harm(folder: Path) -> Path:
        for each in harms:
            folder = each(folder)
        return folder

    return harm


def with_tensor(key: str, *shape: int, dtype: torch.dtype = torch.float32) -> Harm:
    return holding(lambda tensors: tensors.update({key: torch.ones(shape, dtype=dtype)}))


def with_number(value: float) -> Harm:
    return holding(lambda tensors: tensors[f"{Q}.lora_B.weight"][0].fill_(value))


def without(*parts: str) -> Harm:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if any(part in key for part in parts)]:
            del tensors[key]

    return holding(change)


def moved(old: str, new: str) -> Harm:
    """Call layers otherwise."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return holding(change)


def pickled(folder: Path) -> Path:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    return folder


def no_weights(folder: Path) -> Path:
    (folder / WEIGHTS).unlink()
    return folder


def cut_off(folder: Path) -> Path:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    return folder


def huge_header(folder: Path) -> Path:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    return folder


FOLDERS: dict[str, tuple[Harm, str]] = {
    "pickle only": (
        pickled,
        "{name} has its weights only as adapter_model.bin, a format that can run code. Save it "
        "again as safetensors where it was trained.",
    ),
    "no weights": (no_weights, f"{{name}} has no {WEIGHTS}. The folder is not complete."),
    "no tensors": (without("lora"), "{name} holds no weights at all."),
    "cut off": (cut_off, "The weights of {name} are damaged or cut off (*"),
    "huge header": (huge_header, "The weights of {name} are damaged or cut off (*"),
    "base layer inside": (
        with_tensor(f"{Q}.base_layer.weight", 64, 64),
        f"{{name}} holds '{Q}.base_layer.weight', which is not an adapter weight. Such a file "
        "could overwrite the base; only LoRA weights are accepted.",
    ),
    "head inside": (
        with_tensor("base_model.model.lm_head.weight", 4, 64),
        "{name} holds 'base_model.model.lm_head.weight', which is not an adapter weight. *",
    ),
    "embedding inside": (
        with_tensor("base_model.model.model.embed_tokens.weight", 4, 64),
        "{name} holds 'base_model.model.model.embed_tokens.weight', which is not *",
    ),
    "bias inside": (
        with_tensor(f"{Q}.lora_B.bias", 64),
        f"{{name}} holds '{Q}.lora_B.bias', which is not an adapter weight. *",
    ),
    "a tensor without its ending": (
        with_tensor(f"{Q}.lora_A", 4, 64),
        f"{{name}} holds '{Q}.lora_A', which is not an adapter weight. *",
    ),
    "a tensor of another program": (
        with_tensor("exec", 1),
        "{name} holds 'exec', which is not an adapter weight. *",
    ),
    "NaN": (
        with_number(float("nan")),
        f"{{name}} holds numbers that are not finite, in {Q}.lora_B.weight. Train it again.",
    ),
    "infinity": (
        with_number(float("-inf")),
        f"{{name}} holds numbers that are not finite, in {Q}.lora_B.weight. Train it again.",
    ),
    "whole numbers": (
        with_tensor(f"{Q}.lora_A.weight", 4, 64, dtype=torch.int64),
        f"{{name}} stores {Q}.lora_A.weight in a type that adapters do not use.",
    ),
    "eight bits": (
        with_tensor(f"{Q}.lora_A.weight", 4, 64, dtype=torch.uint8),
        f"{{name}} stores {Q}.lora_A.weight in a type that adapters do not use.",
    ),
    "huge rank": (
        said(r=20_000_000),
        "{name} has r = 20000000, which cannot be right.",
    ),
    "large rank": (said(r=5000), "{name} has rank 5000; whole ranks up to 4096 can be added."),
    "another rank": (
        said(r=8),
        "model.layers.0.self_attn.q_proj of {name} has shapes (4, 64) and (64, 4), which do not "
        "fit rank 8 on a layer of 64 by 64. *",
    ),
    "half a rank": (said(r=4.5), "{name} has rank 4.5; whole ranks up to 4096 can be added."),
    "no rank": (said(r=0), "{name} has r = 0, which cannot be right."),
    "rank of words": (said(r="eval(1)"), "{name} has r = eval(1), which cannot be right."),
    "rank beyond numbers": (
        said(r=10**400),
        "{name} has r = 1" + "0" * 39 + ", which cannot be right.",
    ),
    "alpha is NaN": (
        said(lora_alpha=float("nan")),
        "{name} has lora_alpha = nan, which cannot be right.",
    ),
    "alpha below zero": (said(lora_alpha=-8), "{name} has lora_alpha = -8, which cannot be right."),
    "huge rank in a pattern": (
        said(rank_pattern={"q_proj": 10**8}),
        "{name} has rank_pattern = 100000000, which cannot be right.",
    ),
    "dropout of words": (
        said(lora_dropout="much"),
        "{name} has lora_dropout = much, which cannot be right.",
    ),
    "a flag of words": (
        said(use_dora="false"),
        "{name} has use_dora = false, which is neither true nor false.",
    ),
    "rank pattern that hangs": (
        said(rank_pattern={HANGS: 4}),
        "The rank_pattern of {name} has regular expressions, which could hang the app. Write "
        "plain module names there.",
    ),
    "alpha pattern that hangs": (
        said(alpha_pattern={HANGS: 4}),
        "The alpha_pattern of {name} has regular expressions, which could hang the app. Write *",
    ),
    "endless patterns": (
        said(alpha_pattern={f"layer{number}": 4 for number in range(20_000)}),
        "The alpha_pattern of {name} has 20000 entries, which is too many.",
    ),
    "another base": (
        holding(
            lambda tensors: tensors.update(
                {key: tensor.repeat_interleave(2, -1) for key, tensor in tensors.items()}
            )
        ),
        "model.layers.0.self_attn.q_proj of {name} has shapes (4, 128) and (64, 8), which do *",
    ),
    "shapes of three sides": (
        with_tensor(f"{Q}.lora_A.weight", 1, 4, 64),
        "model.layers.0.self_attn.q_proj of {name} has shapes (1, 4, 64) and (64, 4): no matrices.",
    ),
    "half a layer": (
        without("q_proj.lora_B"),
        "{name} lacks a part of model.layers.0.self_attn.q_proj. Download it again.",
    ),
    "too few layers": (
        without("v_proj"),
        "{name} lacks weights for 1 of the layers it should change, "
        "model.layers.0.self_attn.v_proj among them. It was made for a smaller base, or *",
    ),
    "too many layers": (
        moved("layers.0", "layers.7"),
        "{name} was made for another base: there is no model.layers.7.self_attn.q_proj here. "
        "Load the base it was made for.",
    ),
    "the head": (
        moved("model.layers.0.self_attn.q_proj", "lm_head"),
        "{name} changes the output head or the embeddings, which cannot be blended or merged "
        "safely. Use an adapter of the layers between them.",
    ),
    "magnitudes without DoRA": (
        with_tensor(f"{Q}.lora_magnitude_vector", 64),
        "{name} brings DoRA magnitudes but says that it is not DoRA.",
    ),
    "DoRA without magnitudes": (
        said(use_dora=True),
        "{name} lacks a part of model.layers.0.self_attn.q_proj. Download it again.",
    ),
    "magnitudes that do not fit": (
        both(
            said(use_dora=True),
            with_tensor(f"{Q}.lora_magnitude_vector", 63),
            with_tensor(f"{Q.replace('q_proj', 'v_proj')}.lora_magnitude_vector", 32),
        ),
        "The DoRA magnitudes of model.layers.0.self_attn.q_proj in {name} do not fit this base.",
    ),
    "unknown method": (
        said(peft_type="FOO\u2028\ud800"),
        "{name} is a FOO?? adapter. LoRA, rsLoRA and DoRA adapters can be added.",
    ),
    "no method": (
        said(peft_type=None),
        "{name} is a None adapter. LoRA, rsLoRA and DoRA adapters can be added.",
    ),
    "a key of the future": (
        said(use_superlora=True),
        "{name} asks for 'use_superlora', which this version of PEFT does not know: it would be "
        "left out without a word. Use an adapter without it.",
    ),
    "broken JSON": (written('{"r": 4,'), f"{{name}} has no readable {CONFIG}: *"),
    "bottomless JSON": (written("[" * 100_000), f"{{name}} has no readable {CONFIG}: *"),
    "not an object": (written("[1]"), f"The {CONFIG} of {{name}} is not a JSON object."),
    "not text": (written("\x00\x01"), f"{{name}} has no readable {CONFIG}: *"),
    "endless JSON": (
        written(json.dumps({"r": "4" * 2_000_000})),
        f"The {CONFIG} of {{name}} is far too large to be one.",
    ),
    "modules_to_save": (
        said(modules_to_save=["lm_head"]),
        "{name} brings whole layers of its own (modules_to_save), which cannot be blended or "
        "weighted. Use an adapter without it, or merge it into its base where it was trained.",
    ),
    "bias": (
        said(bias="all"),
        "{name} changes the base's biases, so that switching it off would not restore the base. *",
    ),
    "bias of its own": (
        said(lora_bias=True),
        "{name} adds biases, which cannot be merged or blended. *",
    ),
    "trainable tokens": (
        said(trainable_token_indices=[1, 2]),
        "{name} changes single tokens (trainable_token_indices), which cannot be blended or *",
    ),
    "layer_replication": (
        said(layer_replication=[[0, 1], [0, 1]]),
        "{name} repeats layers of the base, which PEFT merges wrongly. *",
    ),
    "aLoRA": (
        said(alora_invocation_tokens=[5]),
        "{name} answers only after a special phrase (aLoRA), and cannot be merged. *",
    ),
    "megatron": (
        said(megatron_config={"a": 1}, megatron_core="os"),
        "{name} wants program code of its own to be loaded (megatron_config). *",
    ),
    "auto_mapping": (
        said(auto_mapping={"base_model_class": "system", "parent_library": "os"}),
        "{name} wants program code of its own to be loaded (auto_mapping). *",
    ),
    "a start by chance": (
        said(init_lora_weights="pissa_niter_4"),
        "{name} was started with 'pissa_niter_4', which changes the base's own weights. "
        "Convert it to plain LoRA where it was trained.",
    ),
    "DoRA on PiSSA": (
        said(init_lora_weights="pissa", use_dora=True),
        "{name} is DoRA on a base that pissa changed, which cannot be plain LoRA. *",
    ),
    "KaSA": (said(kasa_config={"x": 1}), "{name} is a KaSA adapter, which changes the base's *"),
}


# -- zips ----------------------------------------------------------------------------------------


def zipped(
    *more: tuple[str, str], inside: str = "adapter/", leave_out: tuple[str, ...] = ()
) -> Harm:
    """Zip the folder with further members."""

    def harm(folder: Path) -> Path:
        path = folder.parent / "bad.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.iterdir()):
                if file.name not in leave_out:
                    archive.write(file, inside + file.name)
            for name, content in more:
                archive.writestr(name, content)
        return path

    return harm


def not_a_zip(folder: Path) -> Path:
    path = folder.parent / "bad.zip"
    path.write_bytes(b"MZ" + bytes(100))
    return path


def another_ending(folder: Path) -> Path:
    return zipped()(folder).rename(folder.parent / "bad.tar")


def patched(offset: int, value: bytes, of: bytes) -> Harm:
    """Overwrite bytes of the headers that begin with `of`."""

    def harm(folder: Path) -> Path:
        path = zipped()(folder)
        content = bytearray(path.read_bytes())
        start = content.find(of)
        while start >= 0:
            content[start + offset : start + offset + len(value)] = value
            start = content.find(of, start + 4)
        path.write_bytes(content)
        return path

    return harm


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
ESCAPES = "bad.zip holds a path that leaves its folder: {path}. Make the zip of the *"
ZIPS: dict[str, tuple[Harm, str]] = {
    "not a zip": (
        not_a_zip,
        "bad.zip is not a zip file. Use an adapter's folder, or a zip of it.",
    ),
    "another kind of file": (another_ending, "bad.tar is not a zip file. Use an adapter's *"),
    "a path upwards": (zipped(("../../up.txt", "x")), ESCAPES.format(path="'../../up.txt'")),
    "an absolute path": (zipped(("/tmp/up.txt", "x")), ESCAPES.format(path="'/tmp/up.txt'")),
    "backslashes": (zipped(("a\\..\\up.txt", "x")), ESCAPES.format(path=r"'a\\..\\up.txt'")),
    "a drive": (zipped(("C:\\up.txt", "x")), ESCAPES.format(path=r"'C:\\up.txt'")),
    "two adapters": (
        zipped((f"other/{CONFIG}", "{}")),
        f"bad.zip holds 2 {CONFIG}, so it is not the zip of one adapter. Make *",
    ),
    "no adapter": (
        zipped(leave_out=(CONFIG,)),
        f"bad.zip holds no {CONFIG}, so it is not the zip of one adapter. Make *",
    ),
    "pickle in a zip": (
        both(pickled, zipped()),
        "bad.zip has its weights only as adapter_model.bin, a format that can run code. *",
    ),
    "weights elsewhere in the zip": (
        zipped((f"elsewhere/{WEIGHTS}", "x"), leave_out=(WEIGHTS,)),
        f"bad has no {WEIGHTS}. The folder is not complete.",
    ),
    "a bomb as configuration": (
        both(written(" " * 3_000_000), zipped()),
        f"The {CONFIG} in bad.zip is far too large to be one.",
    ),
    "a bomb as weights": (
        zipped((f"adapter/{WEIGHTS}", "\0" * 101_000_000), leave_out=(WEIGHTS,)),
        "bad.zip unpacks to more than 100 times its size, as no weights do. Make *",
    ),
    "gigabytes": (
        patched(24, struct.pack("<I", 2**32 - 2), CENTRAL),
        f"The {CONFIG} in bad.zip is far too large to be one.",
    ),
    "encrypted": (
        both(patched(8, b"\x01\x00", CENTRAL)),
        "bad.zip is damaged or locked: *",
    ),
    "unknown compression": (
        patched(10, b"\x63\x00", CENTRAL),
        "bad.zip is damaged or locked: *",
    ),
    "damaged content": (patched(60, b"\xff" * 9, LOCAL), "bad.zip is damaged or locked: *"),
}


def says(sentence: str, name: str) -> Any:
    """Compare a whole sentence, or its beginning where it ends with a star."""
    expected = sentence.replace("{name}", name)

    class Sentence:
        def __eq__(self, other: object) -> bool:
            if expected.endswith("*"):
                return str(other).startswith(expected[:-1].rstrip())
            return other == expected

        def __repr__(self) -> str:
            return repr(expected)

    return Sentence()


def inspect(service: Service, source: Path) -> Any:
    return service.start(rq.InspectAdapter(source=str(source))).result(timeout=60)


def state(service: Service) -> Any:
    """Everything that a refused adapter must not change."""
    variants: list[rq.Variant] = [[], [("resident", 1.0)], [("resident", 0.5)]]
    request = rq.Score(texts=[tiny.TEXTS[0]], variants=variants)
    scored = service.start(request).result(timeout=60).scores
    snapshot = service.snapshot()
    folders = sorted(path.name for path in service.library.root.iterdir())
    return snapshot.active, snapshot.status, snapshot.irregular, folders, scored


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [pytest.param(*each, id=name) for name, each in (FOLDERS | ZIPS).items()],
)
def test_it_is_refused_with_a_reason_and_nothing_changes(
    bench: Bench, tmp_path: Path, harm: Harm, sentence: str
) -> None:
    service = bench.service
    before = state(service)
    source = harm(Path(shutil.copytree(bench.good, tmp_path / "bad")))

    report = inspect(service, source)
    with pytest.raises(WorkbenchError) as refused:
        service.start(rq.LoadAdapter(source=str(source), name="newcomer")).result(timeout=60)

    reason = report.reasons[0]
    assert report.verdict == "cannot"
    assert f"{reason.what} {reason.cure}".strip() == says(sentence, "bad")
    assert str(refused.value) == says(sentence, "bad")
    assert state(service) == before
    assert not (tmp_path.parent / "up.txt").exists()


def test_the_name_of_a_refused_adapter_is_free_for_a_good_one(bench: Bench, tmp_path: Path) -> None:
    service = bench.service
    before = state(service)
    for number, name in enumerate(("NaN", "too few layers", "another base")):
        bad = shutil.copytree(bench.good, tmp_path / f"bad {number}")
        with pytest.raises(WorkbenchError):
            service.start(rq.LoadAdapter(source=str(FOLDERS[name][0](bad)), name="phoenix")).result(
                timeout=60
            )

    added = service.start(rq.LoadAdapter(source=str(bench.good), name="phoenix")).result(timeout=60)

    assert added.adapter.name == "phoenix"
    assert tiny.scores(service, [("phoenix", 1.0)]) != tiny.scores(service, [])
    service.start(rq.DeleteAdapter(name="phoenix")).result(timeout=60)
    assert state(service)[4] == before[4]


@pytest.mark.parametrize(
    "harm",
    [
        said(target_modules=HANGS),
        said(target_modules=[HANGS]),
        said(target_modules=["q_proj", "v_proj"], exclude_modules=HANGS),
        said(target_modules="all-linear"),
        said(target_modules=["q_proj", "v_proj", "lm_head", "no_such_layer"]),
    ],
)
def test_targets_are_those_of_the_file_whatever_the_configuration_says(
    bench: Bench, tmp_path: Path, harm: Harm
) -> None:
    """PEFT 0.21.2 would match `(([a-z0-9_.])+)+!` for longer than anybody waits."""
    service, source = bench.service, harm(Path(shutil.copytree(bench.good, tmp_path / "odd")))
    started = time.process_time()

    added = service.start(rq.LoadAdapter(source=str(source), name="odd")).result(timeout=60)

    assert time.process_time() - started < 30, "A regular expression of the adapter was run."
    kept = json.loads((service.library.folder(added.adapter.id) / CONFIG).read_text())
    assert {each.rsplit(".", 1)[-1] for each in kept["target_modules"]} == {"q_proj", "v_proj"}
    assert kept["exclude_modules"] is None
    expected = tiny.plain_scores(Path(service.snapshot().base.path), bench.good)  # type: ignore[union-attr]
    assert tiny.scores(service, [("odd", 1.0)]) == pytest.approx(expected, rel=1e-5)
    service.start(rq.DeleteAdapter(name="odd")).result(timeout=60)


def test_paths_in_a_configuration_are_never_followed(bench: Bench, tmp_path: Path) -> None:
    service = bench.service
    trap = tmp_path / "trap"
    trap.mkdir()
    os.mkfifo(trap / "config.json")  # whoever opens it waits for ever
    source = said(base_model_name_or_path=str(trap), revision="../..", megatron_core="os")(
        Path(shutil.copytree(bench.good, tmp_path / "pointing"))
    )

    report = inspect(service, source)
    added = service.start(rq.LoadAdapter(source=str(source), name="pointing")).result(timeout=60)

    kept = json.loads((service.library.folder(added.adapter.id) / CONFIG).read_text())
    assert report.made_for == "trap"
    assert report.verdict == "warning"
    assert str(trap) not in json.dumps(kept)
    service.start(rq.DeleteAdapter(name="pointing")).result(timeout=60)


def test_what_peft_writes_without_a_task_is_no_program_code(bench: Bench, tmp_path: Path) -> None:
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models"}
    source = said(auto_mapping=mapping, task_type=None)(
        Path(shutil.copytree(bench.good, tmp_path / "untasked"))
    )
    assert inspect(bench.service, source).verdict == "fits"


@pytest.mark.parametrize(
    "sidecar",
    ["{", "[]", '{"id": "ad_000000"}', "x" * 3_000_000, "\x00"],
    ids=["broken", "list", "short", "endless", "not text"],
)
def test_a_strange_side_car_is_not_believed(bench: Bench, tmp_path: Path, sidecar: str) -> None:
    source = Path(shutil.copytree(bench.good, tmp_path / "beside"))
    (source / "workbench.json").write_text(sidecar)
    report = inspect(bench.service, source)
    assert (report.verdict, report.suggested_name) == ("fits", "beside")


def test_a_hostile_side_car_gives_no_name_and_no_numbers(bench: Bench, tmp_path: Path) -> None:
    """Python reads NaN and writes null: the library could not read such a side-car again."""
    service, source = bench.service, Path(shutil.copytree(bench.good, tmp_path / "beside"))
    ours = json.loads(service.library.get("resident").model_dump_json())
    ours |= {"name": "<b>a</b>\n" * 99, "recipe": "\n# heading" * 999, "max_difference": 0.0}
    (source / "workbench.json").write_text(json.dumps(ours))

    added = service.start(rq.LoadAdapter(source=str(source))).result(timeout=60).adapter
    ours["max_difference"] = float("nan")
    (source / "workbench.json").write_text(json.dumps(ours))
    second = service.start(rq.LoadAdapter(source=str(source))).result(timeout=60).adapter

    assert len(added.name) <= 40
    assert "<" not in added.name + second.name
    assert "\n" not in added.recipe
    assert len(added.recipe) < 300
    for each in (added, second):
        assert service.library.get(each.name).id == each.id
        service.start(rq.DeleteAdapter(name=each.name)).result(timeout=60)


def test_weights_that_overflow_are_noticed_and_taken_off(bench: Bench, tmp_path: Path) -> None:
    service, before = bench.service, state(bench.service)
    source = holding(lambda tensors: [t.fill_(1e30) for t in tensors.values()])(
        Path(shutil.copytree(bench.good, tmp_path / "bad"))
    )
    with pytest.raises(WorkbenchError, match="differ by nan"):
        service.start(rq.LoadAdapter(source=str(source), name="newcomer")).result(timeout=60)
    assert state(service) == before


def test_nothing_of_a_zip_is_written_outside_a_place_of_our_own(
    bench: Bench, tmp_path: Path
) -> None:
    places = []
    real = incoming._unpack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            incoming, "_unpack", lambda path, folder: places.append(folder) or real(path, folder)
        )
        source = zipped(("adapter/handler.py", "raise SystemExit"), ("adapter/x.bin", "x"))(
            Path(shutil.copytree(bench.good, tmp_path / "good"))
        )
        assert inspect(bench.service, source).verdict == "fits"
    assert places
    assert not places[0].exists()


def test_any_damage_to_a_file_is_a_sentence(bench: Bench, tmp_path: Path) -> None:
    """Flipped bytes anywhere: only errors that a person can read, never another exception."""
    source = zipped()(Path(shutil.copytree(bench.good, tmp_path / "bad")))
    whole, layers = source.read_bytes(), [scan.Target("model.layers.0.self_attn.q_proj", 64, 64)]
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for place in torch.randint(len(whole), (4,), generator=generator).tolist():
            content[place] ^= 0xFF
        source.write_bytes(content)
        try:
            with incoming.incoming(str(source), bench.service.library, None) as found:  # type: ignore[arg-type]
                scan.scan(found.folder, layers)
        except WorkbenchError:
            refused += 1
    assert refused > 250


def test_a_folder_that_is_not_there_is_said(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no folder or zip called 'nowhere'"):
        inspect(bench.service, tmp_path / "nowhere")
