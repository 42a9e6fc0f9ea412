"""What the messages of rb/core advise helps: run files, their paths, devices, ranks, batch sizes, files of others."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rb.core import dist, locks
from rb.core.colours import unit_colours
from rb.core.device import usable_device
from rb.core.library_folders import read_tokenizer
from rb.core.metrics import cider_remark
from rb.core.npy_files import read_npy_header
from rb.core.run_file import load_run
from rb.core.run_paths import find_run_file, open_run
from rb.core.stand_ins import stand_in
from rb.core.step_layout import StepLayout
from rb.core.strict_json import read
from rb.core.tensor_files import read_tensor_file
from rb.core.text import TextProcessor, check_llm_ids, end_token
from tests.support.remedies import Said, covers, helps, remedy, typed

# Message -> (overrides of an empty run file that it refuses, those that follow it; {PATTERN}: its first group in the message).
OVERRIDES = {
    "so no layer has LoRA; set one of them to true": (
        ["model.lora.llm=false", "model.lora.qformer=false"],
        ["model.lora.llm=true"],
    ),
    "but model.lora.llm is false; remove the names, or": (
        ["model.lora.llm=false", "model.lora.targets=[q_proj]"],
        ["{or set (model.lora.llm=true)}"],
    ),
    "all terms are 0, there is nothing to train; give one a positive weight": (
        [f"model.loss_weights={{{', '.join(f'{t}: 0' for t in ('itc', 'itm', 'itg', 'llm', 'reg'))}}}"],
        ["model.loss_weights.itc=1"],
    ),
    "no Q-Former is read by all modalities; set model.point_qformer=shared, or": (
        ["model.lora.shared=true", "model.point_qformer=separate"],
        ["{set (model.point_qformer=shared)}"],
    ),
    "applies to {}; give another term a weight, or take {}": (
        [f"model.loss_weights={{{', '.join(f'{t}: 0' for t in ('itc', 'itm', 'itg', 'llm'))}, reg: 1}}"],
        ["model.loss_weights.llm=1"],
    ),
    "no manifest listed; list one, or remove the modality": (
        ["data.train.image_region=[]"],
        ["data.train.image_region=[{manifest: x}]"],
    ),
    "has data but is not in model.train_modalities ({}); list it there, or remove": (
        ["model.train_modalities=[image_region]", "data.train.image=[{manifest: x}]"],
        ["model.train_modalities=[image_region, image]"],
    ),
    "but data.val lists no manifest; list held-out manifests there, or set it to 0": (
        ["validation.every=5"],
        ["validation.every=0"],
    ),
}


@pytest.mark.parametrize("says", covers(OVERRIDES))
def test_a_run_file_is_corrected_as_it_is_said(tmp_path: Path, says: str) -> None:
    (tmp_path / "run.yaml").write_text("")
    given, advised = list(OVERRIDES[says][0]), OVERRIDES[says][1]

    def follow(said: Said) -> None:
        given.extend(said.found(one[1:-1]) if one.startswith("{") else one for one in advised)

    helps(says, lambda: load_run(tmp_path / "run.yaml", given), follow)


@remedy("unknown key {}; {}known keys: {}", also=["did you mean {}? "])
def test_misspelt_key(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("optim: {beta: [0.9, 0.98]}")
    return lambda: load_run(path), lambda said: path.write_text(
        f"optim: {{{said.found('did you mean .(.*?).[?]')}: [0.9, 0.98]}}"
    )


@remedy("name the file itself in the command")
def test_base_as_an_override(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("")
    given = {"path": tmp_path / "run.yaml", "overrides": ["base=other.yaml"]}
    (tmp_path / "other.yaml").write_text("name: other")
    return lambda: load_run(**given), lambda _: given.update(path=tmp_path / "other.yaml", overrides=[])


@pytest.mark.parametrize(
    ("says", "call"),
    {
        "run file {} does not exist; `rb runs list`": load_run,
        "or name of one of the project's runs; `rb runs list` shows those": find_run_file,
    }.items(),
)
def test_the_list_names_one_that_is_there(says: str, call) -> None:
    name = ["toy_op"]

    def follow(said: Said) -> None:
        listed = typed(*said.commands[0].split()[1:], "--json")
        name[0] = next(row["file"] for row in json.loads(listed) if row["name"] == "toy_opt")

    helps(says, lambda: call(name[0]), follow)


covers(
    ["run file {} does not exist; `rb runs list`", "or name of one of the project's runs; `rb runs list` shows those"]
)


@remedy("no such run file or plan; `rb runs list` shows them")
def test_run_file_by_another_name():
    name = ["opt_2.8b"]

    def follow(said: Said) -> None:
        assert "opt_2.7b" in typed(*said.commands[0].split()[1:])
        name[0] = "opt_2.7b"

    return lambda: typed("runs", "show", name[0]), follow


@remedy("{}: exists already; name another file", also=["{}: edit it, then rb {} {}"])
def test_copy_of_a_run_file(tmp_path: Path):
    target = [tmp_path / "mine.yaml"]
    assert f"then rb train --run {target[0]}" in typed("runs", "copy", "toy_opt", target[0])
    assert load_run(target[0], keep_unset=True).name == "toy_opt"
    return lambda: typed("runs", "copy", "toy_opt", target[0]), lambda _: target.append(
        target.pop().with_name("b.yaml")
    )


@remedy("does not exist{}; correct it in the run file, or give {}=PATH")
def test_path_of_a_run(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("init_from: there/before")
    (tmp_path / "before").mkdir()
    given: list[str] = []
    follow = lambda said: given.append(said.found(r"give (\S+=)PATH") + str(tmp_path / "before"))  # noqa: E731
    return lambda: open_run(tmp_path / "run.yaml", given), follow


@remedy("device {}: {}, or use the device cpu")
def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name = ["cuda"]
    return lambda: usable_device(name[0]), lambda said: name.append(
        name.pop() and said.found("or use the device (cpu)")
    )


@remedy("RANK={} is set, but {} is not; {}", also=["unset RANK if it was left in the shell, or set all of {}"])
def test_rank_left_in_the_shell(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return dist.init, lambda said: monkeypatch.delenv(said.found(r"unset (\w+) "))


@remedy("RANK={} and WORLD_SIZE={}: must be whole numbers, RANK below WORLD_SIZE; {}")
def test_rank_beyond_the_world(monkeypatch):
    for name, value in {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    return dist.init, lambda said: monkeypatch.delenv(said.found(r"unset (\w+) "))


@remedy("start as many ranks on a host as it has GPUs")
def test_more_ranks_than_gpus(monkeypatch):
    """A rank of a number that the host's GPUs do not reach; the number of GPUs is all that is not real."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "2")
    return dist.device, lambda _: monkeypatch.setenv("LOCAL_RANK", "1")


@remedy("is not a multiple of train.micro_batch_size {} x {} ranks = {}; choose sizes that divide{}")
def test_batch_that_does_not_divide():
    sizes = {"global_batch_size": 16, "micro_batch_size": 3, "pool_size": 8, "world_size": 2}
    return lambda: StepLayout(**sizes), lambda _: sizes.update(micro_batch_size=4)


@pytest.mark.parametrize("advice", [r"nearest: (\d+)", r"nearest: \d+ or (\d+)", r"micro_batch_size=(\d+)"])
def test_pool_that_does_not_divide(advice: str) -> None:
    sizes = {
        "global_batch_size": 32,
        "micro_batch_size": 3 if "micro" in advice else 4,
        "pool_size": 10,
        "world_size": 1,
    }
    if "micro" in advice:
        sizes |= {"global_batch_size": 48, "pool_size": 8}
    key = "micro_batch_size" if "micro" in advice else "pool_size"
    helps(POOL, lambda: StepLayout(**sizes), lambda said: sizes.update({key: int(said.found(advice))}))


POOL = "and divide train.global_batch_size {}; nearest: {}{}"
covers([POOL])


@remedy("{} is more than the {} positions of the Q-Former's text branch; lower it")
def test_texts_longer_than_the_branch(foundation):
    length = [33]

    def fits() -> None:
        folders = Path(foundation.text_branch), Path(foundation.blip2)
        TextProcessor.from_folders(*folders, "decoder", length[0], "").check_fits(100, 32, 100)

    return fits, lambda said: length.append(length.pop() and int(said.found(r"than the (\d+) positions")))


@remedy("use the tokenizer that belongs to these weights")
def test_tokenizer_of_other_weights(foundation, tmp_path: Path):
    shutil.copytree(foundation.blip2, tmp_path / "llm")
    tokenizer = read_tokenizer(tmp_path / "llm")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<another>"})
    tokenizer.save_pretrained(tmp_path / "llm")
    put_back = lambda _: shutil.copytree(foundation.blip2, tmp_path / "llm", dirs_exist_ok=True)  # noqa: E731
    return lambda: check_llm_ids(read_tokenizer(tmp_path / "llm"), "decoder", rows), put_back


@remedy("set eos_token in its tokenizer_config.json to the token that ends its texts")
def test_tokenizer_without_an_end(foundation, tmp_path: Path):
    shutil.copytree(foundation.blip2, tmp_path / "llm")
    path = tmp_path / "llm/tokenizer_config.json"
    tree = json.loads(path.read_text())
    end = tree.pop("eos_token")
    path.write_text(json.dumps(tree))
    follow = lambda said: path.write_text(json.dumps(tree | {said.found(r"set (\w+) in its"): end}))  # noqa: E731
    return lambda: end_token(read_tokenizer(tmp_path / "llm"), "encoder_decoder"), follow


@remedy(
    "{} cannot be read ({}); {}", also=["no tokenizer there; {}", "use a folder with the tokenizer files of its model"]
)
def test_folder_without_a_tokenizer(foundation, tmp_path: Path):
    shutil.copy(Path(foundation.blip2) / "config.json", tmp_path)

    def follow(said: Said) -> None:
        assert "use a folder with the tokenizer files" in said
        for file in Path(foundation.blip2).glob("*token*"):
            shutil.copy(file, tmp_path)

    return lambda: read_tokenizer(tmp_path), follow


@remedy("which is never run: use a folder whose tokenizer transformers knows")
def test_tokenizer_with_code(foundation, tmp_path: Path):
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}}')
    folder = [tmp_path]
    return lambda: read_tokenizer(folder[0]), lambda _: folder.append(folder.pop() and Path(foundation.blip2))


@remedy("what two processes write there at once is not kept apart; let one command at a time work there")
def test_file_system_without_locks(tmp_path: Path, monkeypatch):
    """The command goes on, and one at a time is enough."""
    monkeypatch.setattr(locks, "_without_locks", set())

    def no_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)

    def write() -> None:
        with (tmp_path / "file").open("a") as file, locks.locked(file.fileno(), tmp_path / "file"):
            file.write("whole\n")

    return write, lambda _: write()


@remedy("{}: not valid JSON ({}); {}", also=["write or download it again", "download it again"])
def test_json_cut_short(tmp_path: Path):
    path = tmp_path / "settings.json"
    path.write_text('{"a": 1}'[:5])

    def follow(said: Said) -> None:
        assert said.endswith("write or download it again")
        path.write_text('{"a": 1}')

    return lambda: read(path), follow


@remedy("{} is not a complete safetensors file ({}); {}")
def test_tensors_cut_short(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(9)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    return lambda: read_tensor_file(path), lambda said: said.endswith("download it again") and path.write_bytes(whole)


@remedy("; save it by numpy.save")
def test_npy_of_another_version(tmp_path: Path):
    path = tmp_path / "points.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.ones(3), version=(3, 0))

    def header() -> object:
        with path.open("rb") as file:
            return read_npy_header(file)

    return header, lambda _: np.save(path, np.ones(3))


@remedy("If these columns are something else, keep x y z alone")
def test_columns_that_are_no_colours():
    normals = [np.array([[-1.0, 0.0, 0.5]])]
    return lambda: unit_colours(normals[0]), lambda _: normals.append(normals.pop()[:, :0])


@remedy("score more examples, or look at the other metrics")
def test_cider_of_one_example():
    attainable = {"CIDEr": 0.0}
    return lambda: cider_remark(attainable) or "", lambda _: attainable.update(CIDEr=2.5)


@pytest.mark.parametrize(
    ("says", "head"),
    {
        "it is a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        "it is a git-annex pointer": b"/annex/objects/SHA256E-s1--00.png\n",
        "it is a web page": b"\n<!DOCTYPE html>\n<html>",
    }.items(),
)
def test_what_a_failed_download_left(tmp_path: Path, says: str, head: bytes) -> None:
    """`git lfs pull` and the like put the file itself in its place."""
    data = [head]
    helps(says, lambda: stand_in(data[0]) or "", lambda _: data.append(data.pop() and b"\x89PNG\r\n\x1a\n"))


covers(["it is a git-lfs pointer", "it is a git-annex pointer", "it is a web page"])
