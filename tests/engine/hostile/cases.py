"""Every harm with the sentence that refuses it."""

import json
import os
import struct
import zipfile

import torch

from tests.engine.hostile.harm import (
    CENTRAL,
    CONFIG,
    HANGS,
    LOCAL,
    WEIGHTS,
    Harm,
    Q,
    another_ending,
    both,
    cut_off,
    holding,
    huge_header,
    in_place_of,
    moved,
    no_weights,
    not_a_zip,
    padded_list,
    patched,
    pickled,
    said,
    sparse,
    with_number,
    with_tensor,
    without,
    written,
    zipped,
)

AGAIN = "Download it again, or train it again."

FOLDERS: dict[str, tuple[Harm, str]] = {
    "pickle only": (
        pickled,
        "{name} has its weights only as adapter_model.bin, a format that can run code. Save it "
        "again as safetensors where it was trained.",
    ),
    "no weights": (no_weights, f"{{name}} has no {WEIGHTS}. The folder is incomplete."),
    "no tensors": (without("lora"), "{name} contains no weights at all."),
    "cut off": (cut_off, "The weights of {name} are damaged or cut off (*"),
    "a FIFO as configuration": (
        in_place_of(CONFIG, os.mkfifo),
        f"The {CONFIG} of {{name}} is a FIFO, not a file. Put the file itself in its place.",
    ),
    "a FIFO as weights": (
        in_place_of(WEIGHTS, os.mkfifo),
        f"The {WEIGHTS} of {{name}} is a FIFO, not a file. Put the file itself in its place.",
    ),
    "a device as weights": (
        in_place_of(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
        f"The {WEIGHTS} of {{name}} is a device, not a file. Put the file itself in its place.",
    ),
    "a folder as configuration": (
        in_place_of(CONFIG, os.mkdir),
        f"The {CONFIG} of {{name}} is a folder, not a file. Put the file itself in its place.",
    ),
    "endless weights": (
        in_place_of(WEIGHTS, lambda path: sparse(path, 9 * 2**30)),
        f"The {WEIGHTS} of {{name}} has 9.0 GB, and at most 8.0 GB are read. Check *",
    ),
    "endless header": (
        in_place_of(
            WEIGHTS, lambda path: sparse(path, 50 * 2**20, start=struct.pack("<Q", 40 * 2**20))
        ),
        f"The header of {WEIGHTS} has 40 MB, and at most 32 MB are read. Store it in more files, "
        "or download it again.",
    ),
    "huge header": (huge_header, "The weights of {name} are damaged or cut off (*"),
    "base layer inside": (
        with_tensor(f"{Q}.base_layer.weight", 64, 64),
        f"{{name}} contains '{Q}.base_layer.weight', which is not an adapter weight. Such a file "
        "could overwrite the base; only LoRA weights are accepted.",
    ),
    "head inside": (
        with_tensor("base_model.model.lm_head.weight", 4, 64),
        "{name} contains 'base_model.model.lm_head.weight', which is not an adapter weight. *",
    ),
    "embedding inside": (
        with_tensor("base_model.model.model.embed_tokens.weight", 4, 64),
        "{name} contains 'base_model.model.model.embed_tokens.weight', which is not *",
    ),
    "bias inside": (
        with_tensor(f"{Q}.lora_B.bias", 64),
        f"{{name}} contains '{Q}.lora_B.bias', which is not an adapter weight. *",
    ),
    "a tensor without its ending": (
        with_tensor(f"{Q}.lora_A", 4, 64),
        f"{{name}} contains '{Q}.lora_A', which is not an adapter weight. *",
    ),
    "a tensor of another program": (
        with_tensor("exec", 1),
        "{name} contains 'exec', which is not an adapter weight. *",
    ),
    "NaN": (
        with_number(float("nan")),
        f"{{name}} contains numbers that are not finite, in {Q}.lora_B.weight. Train it again.",
    ),
    "infinity": (
        with_number(float("-inf")),
        f"{{name}} contains numbers that are not finite, in {Q}.lora_B.weight. Train it again.",
    ),
    "whole numbers": (
        with_tensor(f"{Q}.lora_A.weight", 4, 64, dtype=torch.int64),
        f"{{name}} stores {Q}.lora_A.weight in a dtype that adapters do not use.",
    ),
    "eight bits": (
        with_tensor(f"{Q}.lora_A.weight", 4, 64, dtype=torch.uint8),
        f"{{name}} stores {Q}.lora_A.weight in a dtype that adapters do not use.",
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
        "The rank_pattern of {name} has regular expressions, which could block the app. Use "
        "plain module names there.",
    ),
    "alpha pattern that hangs": (
        said(alpha_pattern={HANGS: 4}),
        "The alpha_pattern of {name} has regular expressions, which could block the app. Use *",
    ),
    "a pattern that is nearly a name": (
        said(alpha_pattern={"^" + "(model.)*" * 20 + "q_proj$": 4}),
        "The alpha_pattern of {name} has regular expressions, which could block the app. Use *",
    ),
    "as many patterns as layers, and both are many": (
        both(
            said(alpha_pattern={f"^layer{number}.x": 4 for number in range(900)}),
            holding(
                lambda tensors: tensors.update(
                    {f"module.l{n}.x.lora_A.weight": torch.ones(1, 1) for n in range(20_000)}
                )
            ),
        ),
        "The alpha_pattern of {name} has too many entries (900).",
    ),
    "endless patterns": (
        said(alpha_pattern={f"layer{number}": 4 for number in range(20_000)}),
        "The alpha_pattern of {name} has too many entries (20000).",
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
        "model.layers.0.self_attn.q_proj of {name} has shapes (1, 4, 64) and (64, 4), "
        "which are not matrices.",
    ),
    "half a layer": (
        without("q_proj.lora_B"),
        "{name} lacks a part of model.layers.0.self_attn.q_proj. " + AGAIN,
    ),
    "too few layers": (
        without("v_proj"),
        "{name} lacks weights for 1 of the layers that it should change, "
        "including model.layers.0.self_attn.v_proj. It was made for a smaller base, or *",
    ),
    "too many layers": (
        moved("layers.0", "layers.7"),
        "{name} was made for another base: there is no model.layers.7.self_attn.q_proj here. "
        "Load the base it was made for.",
    ),
    "the head": (
        moved("model.layers.0.self_attn.q_proj", "lm_head"),
        "{name} changes the output head or the embeddings, which cannot be blended or merged "
        "safely. Use an adapter for the layers between them.",
    ),
    "magnitudes without DoRA": (
        with_tensor(f"{Q}.lora_magnitude_vector", 64),
        "{name} has DoRA magnitudes, but its configuration says that it is not DoRA.",
    ),
    "DoRA without magnitudes": (
        said(use_dora=True),
        "{name} lacks a part of model.layers.0.self_attn.q_proj. " + AGAIN,
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
        "{name} uses the option 'use_superlora' = True, which this version of PEFT does not know "
        "and would silently ignore. Use an adapter without it.",
    ),
    "broken JSON": (written('{"r": 4,'), f"{{name}} has no readable {CONFIG}: *"),
    "bottomless JSON": (written("[" * 100_000), f"{{name}} has no readable {CONFIG}: *"),
    "not an object": (written("[1]"), f"The {CONFIG} of {{name}} is not a JSON object."),
    "not text": (written("\x00\x01"), f"{{name}} has no readable {CONFIG}: *"),
    "endless JSON": (
        written(json.dumps({"r": "4" * 2_000_000})),
        f"The {CONFIG} of {{name}} has 2 MB, and at most 1 MB are read. Check that it is the file "
        "you mean, and get it again.",
    ),
    "modules_to_save": (
        said(modules_to_save=["lm_head"]),
        "{name} contains whole layers (modules_to_save), which cannot be blended or "
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
        "{name} needs its own program code to be loaded (megatron_config). *",
    ),
    "auto_mapping": (
        said(auto_mapping={"base_model_class": "system", "parent_library": "os"}),
        "{name} needs its own program code to be loaded (auto_mapping). *",
    ),
    "a start by chance": (
        said(init_lora_weights="pissa_niter_4"),
        "{name} was initialised with 'pissa_niter_4', which changes the base's own weights. "
        "Convert it to plain LoRA where it was trained.",
    ),
    "DoRA on PiSSA": (
        said(init_lora_weights="pissa", use_dora=True),
        "{name} is DoRA on a base changed by pissa, which cannot become plain LoRA. *",
    ),
    "KaSA": (said(kasa_config={"x": 1}), "{name} is a KaSA adapter, which changes the base's *"),
}

ESCAPES = "bad.zip contains a path outside its folder: {path}. Make a zip of the *"
ZIPS: dict[str, tuple[Harm, str]] = {
    "not a zip": (
        not_a_zip,
        "bad.zip is not a zip file. Use an adapter's folder, or a zip of it.",
    ),
    "another kind of file": (another_ending, "bad.tar is not a zip file. Use an adapter's *"),
    "a path upwards": (zipped(("../../up.txt", "x")), ESCAPES.format(path="'../../up.txt'")),
    "an absolute path": (zipped(("/tmp/up.txt", "x")), ESCAPES.format(path="'/tmp/up.txt'")),
    "backslashes": (zipped(("a\\..\\up.txt", "x")), ESCAPES.format(path=r"'a\\..\\up.txt'")),
    "backslashes upwards": (
        zipped(("..\\..\\up.txt", "x")),
        ESCAPES.format(path=r"'..\\..\\up.txt'"),
    ),
    "an absolute path of Windows": (
        zipped(("\\up.txt", "x")),
        ESCAPES.format(path=r"'\\up.txt'"),
    ),
    "a folder upwards": (zipped(("a/../../up/", "")), ESCAPES.format(path="'a/../../up/'")),
    "the same file in both spellings": (
        zipped((f"adapter\\{CONFIG}", "{}")),
        f"bad.zip contains {CONFIG} twice. Make a new zip of the folder.",
    ),
    "thousands of adapters": (
        zipped(*((f"{number}/{CONFIG}", "") for number in range(9000))),
        f"bad.zip contains 9001 {CONFIG}, so it is not the zip of one adapter. Make *",
    ),
    "a path of thousands of folders": (
        both(zipped(("a/" * 30_000 + CONFIG, ""), leave_out=(CONFIG,))),
        f"bad.zip contains no {CONFIG}, so it is not the zip of one adapter. Make *",
    ),
    "a drive": (zipped(("C:\\up.txt", "x")), ESCAPES.format(path=r"'C:\\up.txt'")),
    "two adapters": (
        zipped((f"other/{CONFIG}", "{}")),
        f"bad.zip contains 2 {CONFIG}, so it is not the zip of one adapter. Make *",
    ),
    "no adapter": (
        zipped(leave_out=(CONFIG,)),
        f"bad.zip contains no {CONFIG}, so it is not the zip of one adapter. Make *",
    ),
    "pickle in a zip": (
        both(pickled, zipped()),
        "bad.zip has its weights only as adapter_model.bin, a format that can run code. *",
    ),
    "weights elsewhere in the zip": (
        zipped((f"elsewhere/{WEIGHTS}", "x"), leave_out=(WEIGHTS,)),
        f"bad has no {WEIGHTS}. The folder is incomplete.",
    ),
    "a bomb as configuration": (
        both(written(" " * 3_000_000), zipped()),
        f"The {CONFIG} in bad.zip has 3 MB, and at most 1 MB are read. Make a new zip of the "
        "adapter's folder.",
    ),
    "a bomb as weights": (
        zipped((f"adapter/{WEIGHTS}", "\0" * 105_000_000), leave_out=(WEIGHTS,)),
        "bad.zip unpacks to more than 100 times its size, which weights never do. Make *",
    ),
    "gigabytes": (
        patched(24, struct.pack("<I", 2**32 - 2), CENTRAL),
        f"The {CONFIG} in bad.zip has 4.0 GB, and at most 1 MB are read. Make *",
    ),
    "a list of a million files": (
        padded_list(2_000_000),
        "The list of files in bad.zip has 2 MB, and at most 1 MB are read. Make a zip of the "
        "adapter's folder only.",
    ),
    "a bomb that deflate does not know": (
        zipped(
            (f"adapter/{WEIGHTS}", "\0" * 10_000_000), leave_out=(WEIGHTS,), how=zipfile.ZIP_BZIP2
        ),
        "bad.zip uses an unusual compression method. Make the zip again with the "
        "usual method (deflate).",
    ),
    "encrypted": (
        both(patched(8, b"\x01\x00", CENTRAL)),
        "bad.zip is damaged or locked: *",
    ),
    "unknown compression": (
        patched(10, b"\x63\x00", CENTRAL),
        "bad.zip uses an unusual compression method. *",
    ),
    "damaged content": (patched(60, b"\xff" * 9, LOCAL), "bad.zip is damaged or locked: *"),
}
