"""Scores of a toy foundation on held-out scenes, read back from its files by plain transformers: how many whole captions are true.

And two controls: the same model with its image features set to zero, and its captions compared with other scenes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerBase

from rb.core.library_folders import read_tokenizer
from rb.core.modality import IMAGE, modality_spec
from rb.core.text import one_line
from rb.model.blip2_config import llm_config_of
from rb.toy.pretraining.data import SEED, to_pixels
from rb.toy.world.scenes import IMAGE_SIZE, ToyScene, make_scene
from rb.toy.world.truth import parse_caption, scene_truth, true_counted, true_whole

HELD_OUT = "held-out"
_CHUNK = 50


def load_foundation(folder: Path, llm: str = "opt") -> tuple[Blip2ForConditionalGeneration, PreTrainedTokenizerBase]:
    """The BLIP-2 of a foundation in fp32, with ``opt`` or ``t5``, and the LLM's tokenizer."""
    model = Blip2ForConditionalGeneration.from_pretrained(
        folder / f"blip2-{llm}", dtype=torch.float32, trust_remote_code=False
    )
    return model.eval(), read_tokenizer(folder / f"blip2-{llm}")


@torch.no_grad()
def captions_of(
    model: Blip2ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    pixels: Tensor,
    blind: bool = False,
    num_beams: int = 1,
    length_penalty: float = 1.0,
) -> list[str]:
    """Captions of images [B, 3, 64, 64], greedy by default; ``blind`` sets the image features to zero."""
    captions: list[str] = []
    settings = copy.deepcopy(model.generation_config)
    settings.num_beams, settings.length_penalty = num_beams, length_penalty
    # OPT begins at its start token, T5 reads the paper's prefix.
    t5 = llm_config_of(model.config).is_encoder_decoder
    prompt_ids = tokenizer(modality_spec(IMAGE).t5_prefix if t5 else "")["input_ids"]
    for chunk in pixels.split(_CHUNK):
        embeds = model.vision_model(chunk).last_hidden_state
        embeds = torch.zeros_like(embeds) if blind else embeds
        queries = model.query_tokens.expand(len(chunk), -1, -1)
        output = model.qformer(query_embeds=queries, encoder_hidden_states=embeds).last_hidden_state
        prompt = model.get_input_embeddings()(torch.tensor([prompt_ids] * len(chunk)))
        inputs = torch.cat([model.language_projection(output), prompt], dim=1)
        assert inputs.shape[1] == model.config.num_query_tokens + len(prompt_ids)
        ids = model.language_model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.int64),
            generation_config=settings,
        )
        captions += [one_line(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return captions


def score_foundation(folder: Path, num_scenes: int = 400, llm: str = "opt") -> tuple[dict[str, float], list[str]]:
    """Shares of true captions, and some captions to look at."""
    model, tokenizer = load_foundation(folder, llm)
    scenes = [make_scene(SEED, HELD_OUT, i) for i in range(num_scenes)]
    truths = [scene_truth(scene) for scene in scenes]
    pixels = to_pixels(scene.image for scene in scenes)
    captions = captions_of(model, tokenizer, pixels)
    blind = captions_of(model, tokenizer, pixels, blind=True)
    beams = captions_of(model, tokenizer, pixels, num_beams=5)
    scores = {
        "scenes": float(num_scenes),
        "true_whole": _share(true_whole(c, t) for c, t in zip(captions, truths, strict=True)),
        "true_counted": _share(true_counted(c, t) for c, t in zip(captions, truths, strict=True)),
        "true_whole_beam_5": _share(true_whole(c, t) for c, t in zip(beams, truths, strict=True)),
        "true_whole_blind": _share(true_whole(c, t) for c, t in zip(blind, truths, strict=True)),
        "true_whole_other_scene": _share(true_whole(c, truths[(i + 1) % num_scenes]) for i, c in enumerate(captions)),
        "distinct_captions": float(len(set(captions))) / num_scenes,
    }
    for context in (1.0, 1.3, 2.0):
        crops = to_pixels(_crop(scene, context) for scene in scenes)
        named = captions_of(model, tokenizer, crops)
        scores[f"crop_{context}x_names_object"] = _share(_names(c, s) for c, s in zip(named, scenes, strict=True))
    return scores, captions[:10]


def _share(hits: Iterable[bool]) -> float:
    return float(np.mean(list(hits)))


def _crop(scene: ToyScene, context: float) -> np.ndarray:
    """The first object of a scene cut out with some of what is around it, stretched to the full image."""
    x0, y0, x1, y1 = scene.objects[0].box
    cx, cy, half_w, half_h = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 * context, (y1 - y0) / 2 * context
    window = (
        max(0, int(cx - half_w)),
        max(0, int(cy - half_h)),
        min(IMAGE_SIZE, int(np.ceil(cx + half_w))),
        min(IMAGE_SIZE, int(np.ceil(cy + half_h))),
    )
    image = Image.fromarray(scene.image).crop(window).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _names(caption: str, scene: ToyScene) -> bool:
    phrases = parse_caption(caption)
    target = scene.objects[0]
    return phrases is not None and any((p.shape, p.colour) == (target.shape, target.colour) for p in phrases)
