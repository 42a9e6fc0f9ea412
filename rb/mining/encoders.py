"""Text encoders that compare noun chunks: CLIP's text tower, or a sentence encoder. Each string is encoded once.

A threshold belongs to one encoder: unrelated phrases have a cosine of 0.6 to 0.8 in CLIP's text space and of 0.2 in a sentence encoder's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from rb.core.library_folders import read_model, read_tokenizer
from rb.mining.captioners import model_digest, model_files
from rb.mining.config import EncoderConfig, Threshold, missing_package

PACKAGE = "package:"
BATCH = 256


class TextEncoder(Protocol):
    """Texts to vectors of length 1."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[n, D] float32."""


def encoder_folder(config: EncoderConfig) -> Path:
    """The folder of the weights.

    Raises:
        ValueError: a package that is not installed, or brings no model.
    """
    if not config.model.startswith(PACKAGE):
        return Path(config.model)
    name = config.model.removeprefix(PACKAGE)
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or found.origin is None:
        raise missing_package(name)
    return Path(found.origin).parent / "model"


def encoder_digest(config: EncoderConfig) -> str:
    """Identity of the encoder's files, by content. ``ValueError``: they are missing."""
    return model_digest(encoder_folder(config), "filter.encoder.model")


def encoder_name(config: EncoderConfig) -> str:
    """What a threshold is stored with: the name of the encoder's folder (or package), and the template around a chunk."""
    return f"{config.model.removeprefix(PACKAGE).rstrip('/').rsplit('/', 1)[-1]} {config.template}"


def check_threshold(config: EncoderConfig, threshold: Threshold | None, weights: str = "") -> float:
    """The threshold, if it was set for this encoder.

    Args:
        weights: digest of the encoder's files; empty where they were not looked at yet.

    Raises:
        ValueError: there is none, or it is another encoder's.
    """
    here = encoder_name(config)
    if threshold is None:
        raise ValueError(
            f"filter.threshold: none is set for the encoder {here!r}; let `rb mine calibrate` find one, or set filter.threshold"
        )
    if threshold.encoder != here:
        raise ValueError(
            f"filter.threshold: {threshold.value} was set for the encoder {threshold.encoder!r} and means nothing for {here!r}; "
            "let `rb mine calibrate` find one for it"
        )
    if weights and threshold.weights and threshold.weights != weights:
        raise ValueError(
            f"filter.threshold: {threshold.value} was set for other files of the encoder {here!r}; let `rb mine calibrate` find one for these"
        )
    return threshold.value


def load_encoder(config: EncoderConfig, device: str) -> TextEncoder:
    """The encoder of a configuration."""
    return _Encoder(config, device)


class _Encoder:
    """Either tower of transformers, with the template put around each text."""

    def __init__(self, config: EncoderConfig, device: str) -> None:
        from transformers import AutoModel, CLIPTextModelWithProjection

        from rb.core.device import usable_device

        folder = encoder_folder(config)
        model_files(folder, "filter.encoder.model")
        self.template, self.is_clip, self.device = config.template, config.kind == "clip", usable_device(device)
        kind: Any = CLIPTextModelWithProjection if self.is_clip else AutoModel
        self.model = read_model(kind, folder, "filter.encoder.model", not_used=("pooler.",)).to(self.device).eval()
        self.tokenizer = read_tokenizer(folder)
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """As of ``TextEncoder``."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            self._known |= dict(
                zip(part, self._vectors([self.template.replace("{}", text) for text in part]), strict=True)
            )
        return np.stack([self._known[text] for text in texts]) if texts else np.zeros((0, 1), np.float32)

    @torch.inference_mode()
    def _vectors(self, texts: list[str]) -> np.ndarray:
        limit = self.model.config.max_position_embeddings
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(
            self.device
        )
        if self.is_clip:
            vectors = self.model(**inputs).text_embeds
        else:
            states, mask = self.model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            vectors = (states * mask).sum(1) / mask.sum(1)
        return F.normalize(vectors.float(), dim=-1).cpu().numpy()
