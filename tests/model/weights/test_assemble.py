"""``rb weights assemble``: another LLM in OPT's place, here a tiny Qwen2 whose tokenizer has no start token; from parts to a caption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    T5Config,
)

from rb.api import RegionBLIP
from rb.checkpoints.export_folder import files_of
from rb.cli import main as rb
from rb.core.config import DecodeConfig, FoundationConfig
from rb.core.modality import IMAGE_REGION
from rb.exporting.writing import export_run
from rb.model.weights.assemble import assemble
from rb.model.weights.build import build_model, text_processor
from rb.model.weights.readers import CheckpointError
from tests.support import tiny
from tests.support.exported import make_run
from tests.support.guide import guide_caption
from tests.support.small_llm import WORDS, write_llm


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[FoundationConfig, Path, FoundationConfig]:
    """(a BLIP-2 with OPT, the folder of another LLM, the foundation of both), the last by the command."""
    folder = tmp_path_factory.mktemp("assembled")
    given, llm, out = (
        tiny.write_foundation(folder / "given"),
        write_llm(folder / "qwen2", chat_template="{{ messages }}"),
        folder / "new" / "blip2-qwen2",
    )
    command = ["weights", "assemble", "--vit", given.blip2, "--qformer", given.blip2, "--llm", str(llm)]
    assert rb([*command, "--out", str(out)]) == 0
    return given, llm, FoundationConfig(str(out), given.text_branch, given.point_encoder)


@torch.no_grad()
def test_every_part_is_the_one_that_was_given(world: tuple[FoundationConfig, Path, FoundationConfig]) -> None:
    given, llm, made = world
    ours, blip2 = (Blip2ForConditionalGeneration.from_pretrained(f.blip2).eval() for f in (made, given))
    theirs = blip2.state_dict()
    copied = [name for name in ours.state_dict() if name.startswith(("vision_model.", "qformer.", "query_tokens"))]
    assert len(copied) > 50
    assert all(torch.equal(ours.state_dict()[name], theirs[name]) for name in copied)
    plain = AutoModelForCausalLM.from_pretrained(llm).eval()
    ids = torch.arange(len(WORDS))[None]
    logits = ours.language_model(ids).logits
    assert torch.equal(logits[..., : len(WORDS)], plain(ids).logits)  # the LLM is the same, in one row more
    table = ours.language_model.get_input_embeddings().weight
    assert logits.shape[-1] == len(table) == len(WORDS) + 1
    torch.testing.assert_close(table[-1], table[:-1].mean(0))
    # The projection makes soft prompts as loud as words; PyTorch's default would not.
    pixels = torch.randn(4, 3, tiny.IMAGE_SIDE, tiny.IMAGE_SIDE, generator=torch.Generator().manual_seed(0))
    queries = ours.qformer(
        query_embeds=ours.query_tokens.expand(4, -1, -1),
        encoder_hidden_states=ours.vision_model(pixels).last_hidden_state,
    ).last_hidden_state
    loudness = ours.language_projection(queries).square().mean().sqrt() / table[:-1].square().mean().sqrt()
    assert 0.7 < loudness < 1.4
    assert not ours.language_projection.bias.any()


def test_the_processor_and_the_model_agree_on_the_image_token(
    world: tuple[FoundationConfig, Path, FoundationConfig],
) -> None:
    """As anybody uses a BLIP-2 folder with plain transformers."""
    folder = world[2].blip2
    processor, model = Blip2Processor.from_pretrained(folder), Blip2ForConditionalGeneration.from_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    asked = processor(images=image, text="a red cube on", return_tensors="pt")
    assert (asked["input_ids"] == model.config.image_token_index).sum() == model.config.num_query_tokens == 4
    assert model.config.image_token_index == len(WORDS)
    assert model.generate(**asked, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_it_trains_and_its_export_captions_without_this_project(
    world: tuple[FoundationConfig, Path, FoundationConfig], tmp_path: Path
) -> None:
    made = world[2]
    config = tiny.model_config(made, train_modalities=(IMAGE_REGION,))
    model, text = build_model(config, seed=0).model, text_processor(config)
    assert text.encode_prompt(IMAGE_REGION).shape == (1, 0)  # no start token
    batch = tiny.make_batch(IMAGE_REGION, text, range(4))
    losses = tiny.train_some(model, model.trainable_parameters().values(), batch, 8)
    assert losses[-1] < losses[0] - 0.1

    out = tmp_path / "out"
    export_run(make_run(tmp_path / "runs", made), out, merge=True)
    image, box = Image.effect_noise((23, 17), 90).convert("RGB"), [3.0, 2.0, 11.0, 9.0]
    image.save(tmp_path / "photo.png")
    ours = RegionBLIP.from_pretrained(out, made)
    ours.decode = DecodeConfig(num_beams=5, max_new_tokens=30, min_new_tokens=0)
    expected = ours.caption(image, box, box_format="pixels")
    assert guide_caption(made.blip2, out / IMAGE_REGION, tmp_path / "photo.png", box) == expected
    assert len(expected) > 3
    sent = {
        path.relative_to(out).as_posix() for path in files_of(out)
    }  # rb push takes all of it, the chat template too
    assert {f"{IMAGE_REGION}/merged/{name}" for name in ("tokenizer.json", "chat_template.jinja")} <= sent


@torch.no_grad()
@pytest.mark.parametrize(
    ("spare", "tied", "words", "says"),
    [
        (3, True, WORDS, "a row that the LLM's tables had to spare"),
        (0, False, [*WORDS, "<image>"], "known to the tokenizer"),
        (0, False, WORDS, "1 more rows"),
    ],
)
def test_where_the_image_token_goes(
    spare: int,
    tied: bool,
    words: list[str],
    says: str,
    world: tuple[FoundationConfig, Path, FoundationConfig],
    tmp_path: Path,
) -> None:
    folder = Path(world[0].blip2)
    lines = assemble(folder, folder, write_llm(tmp_path / "llm", spare, tied, words), tmp_path / "out")
    assert any(line.startswith(f"image token: <image> has id {len(WORDS)}, {says}") for line in lines)
    ours = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out").language_model
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    assert torch.equal(ours.lm_head.weight[: theirs.lm_head.weight.shape[0]], theirs.lm_head.weight)
    assert (ours.lm_head.weight is ours.get_input_embeddings().weight) is tied
    assert len(ours.lm_head.weight) == max(len(WORDS) + 1, len(theirs.lm_head.weight))


def test_parts_that_do_not_fit_are_refused_by_name(
    world: tuple[FoundationConfig, Path, FoundationConfig], tmp_path: Path
) -> None:
    given, llm, made = world
    good, new = Path(given.blip2), tmp_path / "new"
    wide = shutil.copytree(good, tmp_path / "wide")
    tree = json.loads((wide / "config.json").read_text())
    tree["vision_config"]["hidden_size"] = 48
    (wide / "config.json").write_text(json.dumps(tree))
    T5Config().save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "model.safetensors").touch()
    mute = shutil.copytree(llm, tmp_path / "mute")
    for file in mute.glob("tokenizer*"):
        file.unlink()
    late = write_llm(tmp_path / "late", pad_token="<late pad>")
    cases = [
        ((good, good, llm, Path(made.blip2)), "exists already; name a new folder"),
        ((llm, good, llm, new), r"--vit: .*describes a 'qwen2' model, not 'blip-2'"),
        ((good, wide, llm, new), "--qformer .* reads image features of width 48, but --vit gives 24"),
        ((wide, wide, llm, new), r"--vit: .* has other shapes: vision_model\."),
        ((good, good, tmp_path / "none", new), "--llm: .* is not a Hugging Face model folder"),
        ((good, good, tmp_path / "no.gguf", new), "--llm .*no.gguf: no such file"),
        ((good, good, tmp_path / "t5", new), "--llm .*an encoder-decoder; give a causal LM"),
        (
            (good, good, mute, new),
            r"mute cannot be read \(it has no words\); no tokenizer there",
        ),
        ((good, good, late, new), r"its padding token '<late pad>' has id \d+, but the LLM has \d+ token embeddings"),
    ]
    for parts, words in cases:
        with pytest.raises(ValueError, match=words) as error:
            assemble(*parts)
        assert "\n" not in str(error.value)
    assert not new.exists()
    assert issubclass(CheckpointError, ValueError)
