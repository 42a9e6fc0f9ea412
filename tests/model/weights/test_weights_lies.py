"""Checkpoints that lie: each a clear error with the file, the keys and the remedy, by ``rb weights check`` as by loading."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Blip2ForConditionalGeneration

from rb.cli import main
from rb.core.config import FoundationConfig
from rb.model.weights.build import build_model
from rb.model.weights.convert import convert
from rb.model.weights.readers import CheckpointError, read_headers, read_tensors
from tests.support import tiny
from tests.support.weights_files import golden, in_layout, itm_folder, lavis_stage2, lavis_vit, llm_folder, no_key_bias


class _Runs:
    """Makes a folder when it is unpickled by a reader that runs code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def copy(foundation: FoundationConfig, tmp_path: Path) -> FoundationConfig:
    """A private copy to spoil."""
    for name in ("blip2-opt", "text_branch", "point_bert"):
        shutil.copytree(Path(foundation.blip2).parent / name, tmp_path / name)
    return FoundationConfig(str(tmp_path / "blip2-opt"), str(tmp_path / "text_branch"), str(tmp_path / "point_bert"))


def refused(
    foundation: FoundationConfig, *words: str, by: tuple[str, ...] = ("meta", "cpu"), **changes: object
) -> None:
    """Both ways must refuse it and say all of ``words``."""
    for device in by:
        with pytest.raises(CheckpointError) as error:
            build_model(tiny.model_config(foundation, **changes), seed=0, device=device)
        for word in words:
            assert word in str(error.value), f"{device}: {word!r} is not in: {error.value}"


def change(path: Path, **edits: Tensor | None) -> None:
    """Set tensors of a safetensors file by name (``__`` for a dot); None removes."""
    tensors = load_file(path)
    for name, value in edits.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, path, metadata={"format": "pt"})


def test_wrong_shapes(copy: FoundationConfig) -> None:
    change(Path(copy.blip2) / "model.safetensors", language_projection__weight=torch.zeros(3, 3))
    refused(copy, copy.blip2, "another shape", "language_projection.weight [3, 3] instead of [20, 16]")
    change(Path(copy.text_branch) / "text_branch.safetensors", itm_head__weight=torch.zeros(2, 5))
    good = tiny.write_foundation(Path(copy.blip2).parent / "good")
    mixed = dataclasses.replace(good, text_branch=copy.text_branch)
    refused(mixed, "text_branch.safetensors : itm_head.weight", "[2, 5]", "files of different models may be mixed")


@pytest.mark.parametrize(
    "file", ["blip2-opt/model.safetensors", "text_branch/text_branch.safetensors", "point_bert/point_bert.safetensors"]
)
def test_truncated_safetensors(copy: FoundationConfig, file: str) -> None:
    path = Path(copy.blip2).parent / file
    path.write_bytes(path.read_bytes()[:-100])
    refused(copy, str(path), "not a complete safetensors file", "download it again")


def test_a_truncated_pth(copy: FoundationConfig, tmp_path: Path) -> None:
    path = tmp_path / "blip2_pretrained.pth"
    torch.save({"model": load_file(Path(copy.text_branch) / "text_branch.safetensors")}, path)
    path.write_bytes(path.read_bytes()[:-2000])
    refused(dataclasses.replace(copy, text_branch=str(path)), str(path), "cut short", by=("cpu",))


@pytest.mark.parametrize("old_format", [False, True])
def test_pickles_with_code_do_not_run(copy: FoundationConfig, tmp_path: Path, old_format: bool) -> None:
    target = tmp_path / "ran"
    code = {"model": {"query_tokens": torch.zeros(1)}, "args": _Runs(target)}
    folder = Path(copy.blip2)
    (folder / "model.safetensors").unlink()
    for path in (folder / "pytorch_model.bin", tmp_path / "stage1.pth", tmp_path / "point.pt"):
        torch.save(code, path, _use_new_zipfile_serialization=not old_format)
        for read in (read_tensors, read_headers):
            with pytest.raises(CheckpointError, match=r"mkdir.*need to run code are refused.*safetensors"):
                read(path)
    refused(copy, "pytorch_model.bin", "refused")
    assert not target.exists()
    torch.load(tmp_path / "point.pt", weights_only=False)  # the control: a reader that trusts the file does run it
    assert target.exists()


class _Allocates:
    """A pickle of some bytes that asks for gigabytes."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (1 << 33,)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_asks_for_memory_gets_none(tmp_path: Path, old_format: bool) -> None:
    path = tmp_path / "point.pt"
    torch.save(
        {"model": {"a": torch.zeros(1)}, "rest": _Allocates()}, path, _use_new_zipfile_serialization=not old_format
    )
    with pytest.raises(CheckpointError, match=r"point\.pt cannot be read as plain tensors \(holds a bytearray\)"):
        read_tensors(path)


def test_a_stage2_file_as_stage1_and_the_other_way_round(copy: FoundationConfig, tmp_path: Path) -> None:
    no_key_bias(Path(copy.blip2))
    state = Blip2ForConditionalGeneration.from_pretrained(copy.blip2, dtype=torch.float32).state_dict()
    stage2, vit = tmp_path / "stage2.pth", tmp_path / "eva_vit_g.pth"
    torch.save({"model": lavis_stage2(state, "opt_proj")}, stage2)
    torch.save(lavis_vit(state), vit)
    shutil.copyfile(stage2, Path(copy.text_branch) / "blip2_pretrained.pth")
    (Path(copy.text_branch) / "text_branch.safetensors").unlink()
    refused(
        copy,
        "blip2_pretrained.pth",
        "Qformer.bert.embeddings.word_embeddings.weight",
        "it is a stage-2 file",
        "model.text_branch: hub-itm or bert",
    )
    llm = llm_folder(Path(copy.blip2), tmp_path / "llm")
    config = Path(copy.blip2) / "config.json"
    stage1 = tmp_path / "stage1.pth"
    torch.save({"model": golden("lavis_stage1")[1]}, stage1)
    cases = [
        (
            (stage1, vit, llm),
            r"stage1\.pth has neither opt_proj nor t5_proj; it is a stage-1 file.*model\.foundation\.text_branch",
        ),
        ((stage2, None, llm), r"stage2\.pth holds no ViT; give eva_vit_g\.pth with --vit"),
        ((stage2, stage2, llm), r"no ViT of LAVIS's.*give eva_vit_g\.pth"),
    ]
    for files, words in cases:
        with pytest.raises(CheckpointError, match=words):
            convert(*files, tmp_path / "out", config)
    short = {k: v for k, v in lavis_vit(state).items() if not k.startswith("blocks.1.mlp")}
    torch.save(short, vit)
    with pytest.raises(CheckpointError, match=r"together lack 4: vision_model\.encoder\.layers\.1\.mlp\.fc1\.bias"):
        convert(stage2, vit, llm, tmp_path / "out", config)
    assert not list(tmp_path.glob("*out*"))  # nothing half-written


def test_llms_that_do_not_belong(copy: FoundationConfig, tmp_path: Path) -> None:
    t5 = tiny.write_foundation(tmp_path / "t5", llm="t5")
    refused(t5, t5.blip2, "holds a t5 LLM", "model.llm is 'decoder'", "name a folder of that kind", llm="decoder")
    shutil.copyfile(
        Path(t5.blip2) / "model.safetensors", Path(copy.blip2) / "model.safetensors"
    )  # weights of T5, config of OPT
    refused(copy, "lacks", "language_model.model.decoder", "language_model.decoder.block.0", "different LLMs")
    no_key_bias(Path(t5.blip2))
    state = Blip2ForConditionalGeneration.from_pretrained(t5.blip2, dtype=torch.float32).state_dict()
    torch.save({"model": lavis_stage2(state, "t5_proj")}, tmp_path / "t5.pth")
    torch.save(lavis_vit(state), tmp_path / "vit.pth")
    foundation = tiny.write_foundation(tmp_path / "opt")
    llm = llm_folder(Path(foundation.blip2), tmp_path / "llm")
    with pytest.raises(CheckpointError, match=r"t5\.pth has t5_proj, but --llm holds a opt model"):
        convert(
            tmp_path / "t5.pth", tmp_path / "vit.pth", llm, tmp_path / "out", Path(foundation.blip2) / "config.json"
        )


def test_a_t5_without_its_own_head(tmp_path: Path) -> None:
    t5 = tiny.write_foundation(tmp_path / "t5", llm="t5")
    change(Path(t5.blip2) / "model.safetensors", language_model__lm_head__weight=None)
    refused(t5, "lacks 1 weights: language_model.lm_head.weight")


def test_a_matching_checkpoint_as_generation_and_a_generation_one_as_matching(
    copy: FoundationConfig, tmp_path: Path
) -> None:
    itm_folder(Path(copy.blip2), Path(copy.text_branch), tmp_path / "itm", len(tiny.WORDS) + 6)
    refused(
        dataclasses.replace(copy, text_branch=copy.blip2, bert=copy.blip2),
        "lacks",
        "qformer.encoder.layer.0.intermediate.dense.bias",
        "blip2-itm-*",
        text_branch="hub-itm",
    )
    refused(
        dataclasses.replace(copy, text_branch=str(tmp_path / "itm")),
        "model.foundation.bert is not set",
        "bert-base-uncased",
        text_branch="hub-itm",
    )
    refused(
        dataclasses.replace(copy, text_branch=str(tmp_path / "itm")),
        "lacks",
        "encoder.layer.0.intermediate.dense.bias",
        "bert-base-uncased",
        text_branch="bert",
    )
    shutil.copyfile(tmp_path / "itm/model.safetensors", Path(copy.blip2) / "model.safetensors")
    refused(copy, "lacks", "language_model.lm_head.weight", "itm_head.bias", "this is a matching checkpoint")


@pytest.mark.parametrize("prefix", ["", "module.", "encoder_q."])
def test_point_keys_that_a_loose_loader_would_skip(copy: FoundationConfig, prefix: str) -> None:
    """The released code keeps keys that start with ``transformer_q`` and loads nothing of a fine-tuned file, saying "Successful"."""
    _, weights, sizes = golden("point_bert")
    folder = Path(copy.point_encoder)
    names = ("trans_dim", "depth", "num_heads", "group_size", "num_group", "encoder_dims")
    (folder / "config.json").write_text(json.dumps({name: sizes[name] for name in names}))
    (folder / "point_bert.safetensors").unlink()
    torch.save({"base_model": {prefix + key: value for key, value in weights.items()}}, folder / "point_bert.pth")
    if prefix != "encoder_q.":
        encoder = build_model(tiny.model_config(copy), seed=0).model.point_encoder
        assert encoder is not None
        assert torch.equal(encoder.blocks[2].attn.qkv.weight, weights["blocks.blocks.2.attn.qkv.weight"])
        del weights["norm.bias"]
        torch.save({"base_model": {prefix + key: value for key, value in weights.items()}}, folder / "point_bert.pth")
        refused(copy, "point_bert.pth", "missing ['norm.bias']", "as published")
    else:
        refused(copy, "point_bert.pth", "not a Point-BERT", "encoder_q.", "as published")


def test_shards_that_are_not_there_or_not_what_the_index_says(copy: FoundationConfig, tmp_path: Path) -> None:
    folder = in_layout(Path(copy.blip2), tmp_path / "sharded", "sharded")
    where = dataclasses.replace(copy, blip2=str(folder))
    index = folder / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    some, *_, last = sorted(set(tree["weight_map"].values()))
    (folder / last).rename(folder / "away")
    refused(where, str(folder), "lacks 1 of", last, "download them")
    (folder / "away").rename(folder / last)
    shutil.copyfile(folder / some, folder / last)
    refused(where, last, "repeats", "files of two checkpoints may be mixed")
    change(folder / some, query_tokens=None)
    shutil.copyfile(folder / some, folder / last)
    tree["weight_map"] = {"query_tokens": some}
    index.write_text(json.dumps(tree))
    refused(where, "lists 1 weights that its shards do not have: query_tokens")
    tree["weight_map"] = {"query_tokens": "../elsewhere.safetensors"}
    index.write_text(json.dumps(tree))
    refused(where, "names files outside its folder")


def test_twins_and_biases_that_disagree(copy: FoundationConfig, tmp_path: Path) -> None:
    t5 = tiny.write_foundation(tmp_path / "t5", llm="t5")
    shared = load_file(Path(t5.blip2) / "model.safetensors")["language_model.shared.weight"]
    change(Path(t5.blip2) / "model.safetensors", language_model__encoder__embed_tokens__weight=shared + 1)
    refused(t5, "encoder.embed_tokens.weight differs from language_model.shared.weight", by=("cpu",))
    refused(copy, "the key part of vision_model", "numerics: hf", by=("cpu",), numerics="lavis")


def test_the_command_says_what_is_wrong_in_one_line(
    copy: FoundationConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run.yaml"
    foundation = "\n".join(f"    {k}: {v}" for k, v in dataclasses.asdict(copy).items() if v)
    run.write_text(f"model:\n  train_modalities: [image_region]\n  max_text_tokens: 12\n  foundation:\n{foundation}\n")
    assert main(["weights", "check", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "missing: none" in said
    assert "  image_region: " in said
    assert main(["weights", "check", "--run", str(run), "model.text_branch=hub-itm"]) == 2
    assert "is not a Hugging Face model folder" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["blip2-opt/model.safetensors", "point_bert/point_bert.pth"])
def test_a_git_lfs_pointer_is_named(copy: FoundationConfig, file: str) -> None:
    """What `git clone` without git-lfs leaves of a model's repository."""
    path = Path(copy.blip2).parent / file
    path.with_suffix(".safetensors").unlink()
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    refused(copy, str(path), "it is a git-lfs pointer", "run `git lfs pull`", by=("meta",))
