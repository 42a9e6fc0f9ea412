"""What the messages about files of weights advise helps: BLIP-2 folders, text branches, Point-BERT, LAVIS sets, another LLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Blip2ForConditionalGeneration, T5Config

from rb.core.config import FoundationConfig, InitConfig
from rb.model.weights.assemble import assemble
from rb.model.weights.build import build_model
from rb.model.weights.convert import convert
from rb.model.weights.readers import read_headers, read_json, read_tensors
from tests.model.weights.test_released import write_bert
from tests.model.weights.test_weights_lies import change
from tests.support import tiny
from tests.support.remedies import Said, covers, helps, remedy
from tests.support.small_llm import write_llm
from tests.support.weights_files import in_layout, itm_folder, lavis_stage2, lavis_vit, llm_folder, no_key_bias


@pytest.fixture(scope="module")
def published(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything as it is published, in one folder, to be downloaded again: a BLIP-2 whole and in shards, LAVIS's files of it, others."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("blip2-opt", "text_branch", "point_bert"):
        shutil.copytree(Path(foundation.blip2).parent / name, folder / name)
    in_layout(folder / "blip2-opt", folder / "sharded", "sharded")
    itm_folder(folder / "blip2-opt", folder / "text_branch", folder / "itm", len(tiny.WORDS) + 6)
    write_bert(folder / "bert", foundation)
    for file in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(folder / "text_branch" / file, folder / "bert")
    shutil.copytree(folder / "blip2-opt", folder / "lavis")
    no_key_bias(folder / "lavis")
    state = load_file(folder / "lavis/model.safetensors")
    state = Blip2ForConditionalGeneration.from_pretrained(folder / "lavis", dtype=torch.float32).state_dict()
    torch.save({"model": lavis_stage2(state, "opt_proj")}, folder / "stage2.pth")
    torch.save({"model": lavis_stage2(state, "t5_proj")}, folder / "stage2_t5.pth")
    torch.save(lavis_vit(state), folder / "eva_vit_g.pth")
    llm_folder(folder / "lavis", folder / "llm")
    write_llm(folder / "qwen2")
    return folder


@dataclass
class Build:
    """A model's files in a folder that a test spoils, and what it asks of them."""

    published: Path
    folder: Path
    foundation: FoundationConfig
    changes: dict[str, Any]
    device: str = "meta"

    def run(self) -> None:
        build_model(tiny.model_config(self.foundation, **self.changes), 0, device=self.device)

    def name(self, **parts: str) -> None:
        """Name files of the folder in ``model.foundation``."""
        self.foundation = replace(self.foundation, **{k: v and str(self.folder / v) for k, v in parts.items()})

    def download(self) -> None:
        """Every file again, under the names that it had."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.published, self.folder)

    def shards(self) -> tuple[Path, dict[str, str]]:
        """(index of the sharded BLIP-2, which is used from now on, its weight map)."""
        self.name(blip2="sharded")
        index = self.folder / "sharded/model.safetensors.index.json"
        return index, json.loads(index.read_text())["weight_map"]


@pytest.fixture
def it(published: Path, tmp_path: Path) -> Build:
    folder = shutil.copytree(published, tmp_path / "files")
    made = Build(published, folder, FoundationConfig("", ""), {})
    made.name(blip2="blip2-opt", text_branch="text_branch", point_encoder="point_bert")
    return made


def config_of(it: Build, edit: Callable[[dict[str, Any]], object], place: str = "blip2-opt") -> None:
    path = it.folder / place / "config.json"
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


def mapped(it: Build, weight_map: dict[str, str] | None) -> None:
    it.shards()[0].write_text(json.dumps({} if weight_map is None else {"weight_map": weight_map}))


def lose_a_shard(it: Build) -> None:
    index, names = it.shards()
    (index.parent / sorted(set(names.values()))[-1]).unlink()


def mix_shards(it: Build) -> None:
    index, names = it.shards()
    some, *_, last = sorted(set(names.values()))
    shutil.copy(index.parent / some, index.parent / last)


def list_too_much(it: Build) -> None:
    index, names = it.shards()
    mapped(it, names | {"no.such.weight": sorted(set(names.values()))[0]})
    assert index


def another_llm(it: Build) -> None:
    t5 = tiny.write_foundation(it.folder / "t5", llm="t5")
    shutil.copy(Path(t5.blip2) / "model.safetensors", it.folder / "blip2-opt")


def as_itm(it: Build) -> None:
    it.name(text_branch="itm", bert="bert")
    it.changes["text_branch"] = "hub-itm"


def matching_as_generation(it: Build, _: Said) -> None:
    it.download()
    as_itm(it)


BLIP2 = "blip2-opt/model.safetensors"
download = lambda it, _: it.download()  # noqa: E731
# Message -> (what is wrong, what follows the message).
BUILDS: dict[str, tuple[Callable[[Build], object], Callable[[Build, Said], object]]] = {
    "holds none of {}; download its weights": (lambda it: (it.folder / BLIP2).unlink(), download),
    "has no weight_map; download it again": (lambda it: mapped(it, None), download),
    "lacks {} of {} shards: {}; download them": (lose_a_shard, download),
    "files of two checkpoints may be mixed in {}: download it again": (mix_shards, download),
    "weights that its shards do not have: {}; download them again": (list_too_much, download),
    "is not set; name a Hugging Face BLIP-2 folder in the run file": (
        lambda it: it.name(blip2=""),
        lambda it, _: it.name(blip2="blip2-opt"),
    ),
    "but model.llm is {}; name a folder of that kind, or change model.llm": (
        lambda it: it.changes.update(llm="encoder_decoder"),
        lambda it, said: it.changes.update(llm=said.found("which is of kind .(\\w+).")),
    ),
    "token embeddings; take the config.json that belongs to these weights": (
        lambda it: config_of(it, lambda tree: tree.update(image_token_index=999)),
        lambda it, _: shutil.copy(it.published / "blip2-opt/config.json", it.folder / "blip2-opt"),
    ),
    "this is a matching checkpoint (blip2-itm-*): name a generation checkpoint here, this one as text_branch": (
        lambda it: shutil.copy(it.folder / "itm/model.safetensors", it.folder / BLIP2),
        matching_as_generation,
    ),
    "config.json and weights describe different LLMs: download both from one repository": (another_llm, download),
    "{} {}{}; {}": (lambda it: change(it.folder / BLIP2, query_tokens=None), download),
    "is not set; name a folder or file in the run file": (
        lambda it: it.name(text_branch=""),
        lambda it, _: it.name(text_branch="text_branch"),
    ),
    "{} is not set; model.text_branch: hub-itm needs a blip2-itm-vit-g folder there": (
        lambda it: (as_itm(it), it.name(text_branch="")),
        lambda it, _: it.name(text_branch="itm"),
    ),
    "{} is not set; model.text_branch: bert needs a bert-base-uncased folder there": (
        lambda it: (it.changes.update(text_branch="bert"), it.name(text_branch="")),
        lambda it, _: it.name(text_branch="bert"),
    ),
    "it must be {}: name such a folder, or choose another model.text_branch": (
        lambda it: (it.changes.update(text_branch="bert"), it.name(text_branch="itm")),
        lambda it, _: it.name(text_branch="bert"),
    ),
    "it must be a stage-1 checkpoint (blip2_pretrained.pth;": (
        lambda it: it.name(text_branch="stage2.pth"),
        lambda it, _: it.name(text_branch="text_branch"),
    ),
    "is not set; model.init.point_qformer: bert needs a bert-base-uncased folder there": (
        lambda it: it.changes.update(point_qformer="separate", init=InitConfig(point_qformer="bert")),
        lambda it, _: it.name(bert="bert"),
    ),
    "give Point-BERT's own file, ULIP's or PointLLM's as published": (
        lambda it: change(it.folder / "point_bert/point_bert.safetensors", transformer_q__norm__bias=None),
        download,
    ),
    "LAVIS's ViT has none; use model.numerics: hf": (
        lambda it: (it.changes.update(numerics="lavis"), setattr(it, "device", "cpu")),
        lambda it, said: it.changes.update(numerics=said.found("use model.numerics: (\\w+)")),
    ),
}


@pytest.mark.parametrize(
    "says",
    covers(BUILDS, also=["is it a complete BLIP-2 generation checkpoint with its own config.json? download it again"]),
)
def test_files_of_a_model(it: Build, says: str) -> None:
    spoil, follow = BUILDS[says]
    spoil(it)
    helps(says, it.run, lambda said: follow(it, said))


@remedy("is not available for the {} LLM of {}; set model.attention=eager")
def test_an_attention_that_a_family_lacks(tmp_path: Path):
    foundation, changes = tiny.write_foundation(tmp_path, llm="gemma2"), {}
    follow = lambda said: changes.update(attention=said.found(r"set model\.attention=(\w+)"))  # noqa: E731
    return lambda: bool(build_model(tiny.model_config(foundation, **changes), 0) is None), follow


FILES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "checkpoint file {} does not exist; check model.foundation in the run file": (Path.unlink, read_headers),
    "files that need to run code are refused: if it is cut short, download it again": (
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        read_tensors,
    ),
    "claims more numbers than the file holds, or another layout; do not use it": (
        lambda path: torch.save({"a": torch.ones(1).expand(1000)}, path),
        read_tensors,
    ),
}


@pytest.mark.parametrize("says", covers(FILES))
def test_one_file(tmp_path: Path, says: str) -> None:
    """The right file in its place, as it is published."""
    path, (spoil, read) = tmp_path / "a.pth", FILES[says]
    torch.save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    spoil(path)
    helps(says, lambda: read(path), lambda _: path.write_bytes(whole))


JSONS = {
    "{} does not exist; check model.foundation in the run file": Path.unlink,
    "is not valid JSON ({}); download it again": lambda path: path.write_text("{"),
}


@pytest.mark.parametrize("says", covers(JSONS))
def test_one_config(tmp_path: Path, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    JSONS[says](path)
    helps(says, lambda: read_json(path), lambda _: path.write_text("{}"))


# Message -> (arguments of `rb weights convert`, those that follow the message); ``out`` is new unless named.
SOUND = {"stage2": "stage2.pth", "vit": "eva_vit_g.pth", "llm": "llm", "config": "lavis/config.json", "out": "new"}
CONVERTS: dict[str, tuple[dict[str, str | None], dict[str, str]]] = {
    "--out {} exists already; name a new folder": ({"out": "llm"}, {"out": "new"}),
    "holds no ViT; give eva_vit_g.pth with --vit": ({"vit": None}, {"vit": "eva_vit_g.pth"}),
    "without q_bias or v_bias {}; give eva_vit_g.pth": ({"vit": "stage2.pth"}, {"vit": "eva_vit_g.pth"}),
    "give the config.json of a BLIP-2": ({"config": "broken.json"}, {"config": "lavis/config.json"}),
    "give a stage-2 file": ({"stage2": "eva_vit_g.pth"}, {"stage2": "stage2.pth"}),
    "but --llm holds a {} model; give the LLM that belongs to the file": (
        {"stage2": "stage2_t5.pth"},
        {"stage2": "stage2.pth"},
    ),
    "take files of one model, or give its sizes with --config": (
        {"config": "narrow.json"},
        {"config": "lavis/config.json"},
    ),
    "holds no tokenizer; download it with the weights": ({"llm": "mute"}, {"llm": "llm"}),
}


@pytest.mark.parametrize("says", covers(CONVERTS))
def test_a_lavis_set(it: Build, says: str) -> None:
    given, advised = CONVERTS[says]
    parts = SOUND | given
    (it.folder / "broken.json").write_text('{"text_config": 3}')
    shutil.copytree(it.folder / "llm", it.folder / "mute")
    for file in (it.folder / "mute").glob("*token*"):
        file.unlink()
    shutil.copy(it.folder / "lavis/config.json", it.folder / "narrow.json")
    tree = json.loads((it.folder / "narrow.json").read_text())
    tree["vision_config"]["intermediate_size"] = 8
    (it.folder / "narrow.json").write_text(json.dumps(tree))
    names = ("stage2", "vit", "llm", "out", "config")
    call = lambda: convert(*(parts[name] and it.folder / parts[name] for name in names))  # noqa: E731
    helps(says, call, lambda _: parts.update(advised))


@remedy("it is a stage-1 file, which is read as it is: name it in model.foundation.text_branch")
def test_a_stage_1_file_to_convert(it: Build):
    """Its tensors are what the foundation's text branch holds."""
    torch.save(
        {"model": load_file(it.folder / "text_branch/text_branch.safetensors")}, it.folder / "text_branch/stage1.pth"
    )
    call = [lambda: convert(*(it.folder / n for n in ("text_branch/stage1.pth", "eva_vit_g.pth", "llm", "new")))]

    def follow(said: Said) -> None:
        it.name(**{said.found(r"name it in model\.foundation\.(\w+)"): "text_branch/stage1.pth"})
        call[0] = it.run

    return lambda: call[0](), follow


ASSEMBLES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "--qformer {} reads image features of width {}, but --vit gives {}; take both from one BLIP-2": (
        {"qformer": "wide"},
        {"qformer": "blip2-opt"},
    ),
    "an encoder-decoder; give a causal LM": ({"llm": "t5"}, {"llm": "qwen2"}),
    "take a complete BLIP-2 generation checkpoint": (
        {"vit": "lossy", "qformer": "lossy"},
        {"vit": "blip2-opt", "qformer": "blip2-opt"},
    ),
    "which says how images are scaled; download it": ({"vit": "unscaled"}, {"vit": "blip2-opt"}),
}


@pytest.mark.parametrize("says", covers(ASSEMBLES))
def test_another_llm_in_opts_place(it: Build, says: str) -> None:
    given, advised = ASSEMBLES[says]
    parts = {"vit": "blip2-opt", "qformer": "blip2-opt", "llm": "qwen2"} | given
    for name in ("wide", "lossy", "unscaled"):
        shutil.copytree(it.folder / "blip2-opt", it.folder / name)
    config_of(it, lambda tree: tree["vision_config"].update(hidden_size=48), "wide")
    config_of(it, lambda tree: tree["qformer_config"].update(encoder_hidden_size=48), "wide")
    change(it.folder / "lossy/model.safetensors", query_tokens=None)
    (it.folder / "unscaled/preprocessor_config.json").unlink()
    T5Config().save_pretrained(it.folder / "t5")
    (it.folder / "t5/model.safetensors").touch()
    call = lambda: assemble(*(it.folder / parts[name] for name in ("vit", "qformer", "llm")), it.folder / "new")  # noqa: E731
    helps(says, call, lambda _: parts.update(advised))


# Notes of a conversion that worked; every set that test_weights_sources.py and test_assemble.py convert is then built with such a file.
covers(
    [
        "text branch: none in these files; name LAVIS's blip2_pretrained.pth in model.foundation.text_branch",
        "text branch: that of the Q-Former's own BLIP-2; name it in model.foundation.text_branch",
    ]
)
