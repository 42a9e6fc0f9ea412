"""The shipped toy foundation: small, complete, in the public checkpoints' forms, and it sees; its pre-training runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rb.toy
from rb.model.point_encoder import PointBert, PointBertConfig, from_original
from rb.toy.pretraining import __main__ as pretrain
from rb.toy.pretraining.data import SEED, to_pixels
from rb.toy.pretraining.export import SEEING, SPEAKING
from rb.toy.pretraining.score import captions_of, load_foundation
from rb.toy.world.scenes import make_cloud, make_scene
from rb.toy.world.truth import scene_truth, true_whole

FOLDER = Path(rb.toy.__file__).parent / "foundation"


LLMS = ("opt", "t5")


@pytest.fixture(scope="module")
def loaded():
    return load_foundation(FOLDER)


@pytest.fixture(scope="module")
def loaded_t5():
    return load_foundation(FOLDER, llm="t5")


def test_it_is_small_and_says_how_it_was_made():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert "python -m rb.toy.pretraining" in (FOLDER / "README.md").read_text(encoding="utf-8")
    tree = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))
    for scores in (tree["scores"], tree["t5_scores"]):
        assert scores["true_whole"] >= 0.85
        assert scores["true_whole_beam_5"] >= 0.9
        assert scores["true_whole_blind"] < 0.2


@pytest.mark.parametrize("llm", LLMS)
def test_plain_transformers_writes_true_captions_with_it(llm: str, request: pytest.FixtureRequest):
    model, tokenizer = request.getfixturevalue("loaded" if llm == "opt" else "loaded_t5")
    scenes = [make_scene(SEED, "held-out-test", i) for i in range(50)]
    captions = captions_of(model, tokenizer, to_pixels(scene.image for scene in scenes))
    true = [true_whole(caption, scene_truth(scene)) for caption, scene in zip(captions, scenes, strict=True)]
    assert sum(true) >= 35, captions
    others = [true_whole(captions[i], scene_truth(scenes[i - 1])) for i in range(50)]
    assert sum(others) <= 10
    assert len(set(captions)) > 30


def test_blip2s_own_generate_says_the_same(loaded):
    model, tokenizer = loaded
    pixels = to_pixels([make_scene(SEED, "held-out-test", 0).image])
    own = model.generate(pixel_values=pixels, max_new_tokens=24)
    text = tokenizer.batch_decode(own, skip_special_tokens=True)[0].strip()
    assert text == captions_of(model, tokenizer, pixels)[0]


def test_opt_and_t5_see_with_one_file(loaded, loaded_t5):
    opt, t5 = (FOLDER / f"blip2-{llm}" / SEEING for llm in LLMS)
    assert t5.is_symlink()
    assert not t5.readlink().is_absolute()  # so that a clone anywhere has it
    assert t5.samefile(opt)
    ours = loaded[0].state_dict()
    shared = {k: v for k, v in loaded_t5[0].state_dict().items() if not k.startswith("language_")}
    assert shared.keys() == load_file(opt).keys()
    assert all(torch.equal(value, ours[name]) for name, value in shared.items())


def test_t5_is_as_flan(loaded_t5):
    model, tokenizer = loaded_t5
    llm = model.language_model
    assert not torch.equal(llm.lm_head.weight, llm.shared.weight)
    assert torch.equal(llm.encoder.embed_tokens.weight, llm.shared.weight)
    stored = load_file(FOLDER / "blip2-t5" / SPEAKING)
    assert torch.equal(llm.lm_head.weight, stored["language_model.lm_head.weight"].float())
    assert torch.equal(llm.shared.weight, stored["language_model.shared.weight"].float())
    assert (llm.config.scale_decoder_outputs, llm.config.is_gated_act) == (False, True)
    assert tokenizer("a photo of")["input_ids"][-1] == tokenizer.eos_token_id


def test_the_generation_checkpoint_has_no_text_branch_and_the_other_file_has_it(loaded):
    generation = load_file(FOLDER / "blip2-opt" / SEEING) | load_file(FOLDER / "blip2-opt" / SPEAKING)
    assert all(value.dtype == torch.float16 for value in generation.values())
    assert not any(
        ".intermediate.dense" in name or (".output.dense" in name and "attention" not in name)
        for name in generation
        if name.startswith("qformer")
    )
    text = load_file(FOLDER / "text_branch" / "text_branch.safetensors")
    layers = loaded[0].config.qformer_config.num_hidden_layers
    for name in (
        "Qformer.bert.embeddings.word_embeddings.weight",
        "Qformer.cls.predictions.decoder.weight",
        f"Qformer.bert.encoder.layer.{layers - 1}.output.LayerNorm.bias",
        "vision_proj.weight",
        "itm_head.bias",
        "temp",
    ):
        assert name in text
    spread = loaded[0].query_tokens.std(dim=1).mean()
    assert spread > 0.1  # equal queries would see one thing


def test_point_bert_loads_from_its_original_names():
    settings = PointBertConfig(**json.loads((FOLDER / "point_bert" / "config.json").read_text(encoding="utf-8")))
    tensors = load_file(FOLDER / "point_bert" / "point_bert.safetensors")
    assert all(name.startswith("transformer_q.") for name in tensors)
    encoder = PointBert(settings)
    encoder.load_state_dict(from_original(tensors, settings))
    points = torch.from_numpy(make_cloud(SEED, "held-out-test", 0).points)[:768]
    points = (points - points.mean(0)) / (points - points.mean(0)).norm(dim=1).max()
    with torch.no_grad():
        tokens = encoder(points[None])
    assert tokens.shape == (1, 1 + settings.num_group, settings.trans_dim)
    assert tokens.isfinite().all()
    assert tokens.std(dim=1).mean() > 0.1


def test_a_finished_stage_of_pretraining_is_kept_and_made_the_same_again(tmp_path: Path, monkeypatch):
    """All stages, export and scores: `make drill PART=pretraining`."""
    monkeypatch.setattr(pretrain, "STAGES", dict.fromkeys(pretrain.STAGES, (2, 130)))
    pretrain.run_stage("vision", tmp_path, 1.0)
    before = (tmp_path / "vision.safetensors").read_bytes()
    stamp = (tmp_path / "vision.json").stat().st_mtime_ns
    pretrain.run_stage("vision", tmp_path, 1.0)
    assert (tmp_path / "vision.json").stat().st_mtime_ns == stamp  # not trained again
    (tmp_path / "vision.json").unlink()
    pretrain.run_stage("vision", tmp_path, 1.0)
    assert (tmp_path / "vision.safetensors").read_bytes() == before
