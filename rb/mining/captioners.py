"""The models that write captions for mining, behind one face: BLIP-2 of transformers, or a run of ours.

Both give, for each picture, a text and the mean log-probability of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from rb.core.fingerprints import fingerprint
from rb.core.library_folders import read_model, read_tokenizer
from rb.core.text import one_line
from rb.mining.config import CaptionerConfig, Writing
from rb.sources.images import ImageTransform, Normalisation, normalised


@dataclass(frozen=True)
class Asked:
    """One picture to caption.

    Attributes:
        box: x1 y1 x2 y2 in pixels of the picture, of a region that is to be told from its surroundings; only a run of ours reads it.
        prompt: what the model is asked or continues.
    """

    picture: Image.Image
    prompt: str
    box: Sequence[float] | None = None


@dataclass(frozen=True)
class Written:
    """A caption and the mean log-probability of its tokens, in nats."""

    text: str
    logprob: float


class Captioner(Protocol):
    """Writes captions."""

    def write(self, asked: Sequence[Asked], writing: Writing) -> list[Written]:
        """A caption of each picture, in order."""


def model_files(folder: Path, what: str) -> list[Path]:
    """The files that make a model what it is: all in its folder but hidden ones.

    Raises:
        ValueError: no such folder, or nothing of a model in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{what}: {folder} is not a folder; give the folder of the model's files")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not any(p.suffix in (".safetensors", ".bin") for p in files):
        raise ValueError(f"{what}: {folder} holds no weights; give the folder of the model's files")
    return files


def model_digest(folder: Path, what: str) -> str:
    """Identity of a model's folder: of all its files."""
    return fingerprint(model_files(folder, what))


def load_captioner(config: CaptionerConfig, device: str) -> Captioner:
    """The captioner of a configuration."""
    return Blip2Captioner(config, device) if config.kind == "blip2" else RunCaptioner(config, device)


class Blip2Captioner:
    """``Blip2ForConditionalGeneration``: pictures of one prompt go through it together."""

    def __init__(self, config: CaptionerConfig, device: str) -> None:
        from transformers import Blip2ForConditionalGeneration

        from rb.core.device import usable_device

        folder = Path(config.model)
        model_files(folder, "captioner.model")
        self.device, self.batch_size = usable_device(device), config.batch_size
        self.dtype = getattr(torch, config.dtype)
        self.model = read_model(Blip2ForConditionalGeneration, folder, "captioner.model", self.dtype)
        if self.model.config.image_token_index is None:  # as in the first files of BLIP-2
            raise ValueError(
                f"captioner.model: {config.model}/config.json has no image_token_index; download the folder again, or set it there"
            )
        self.model.to(self.device).eval()
        self.tokenizer = read_tokenizer(folder)
        # BLIP's own preprocessing: squashed, bicubic, CLIP's mean and deviation. transformers' processor needs torchvision.
        self.pixels = ImageTransform(self.model.config.vision_config.image_size)
        self.table = Normalisation().table().to(self.device)

    @torch.inference_mode()
    def write(self, asked: Sequence[Asked], writing: Writing) -> list[Written]:
        """As of ``Captioner``."""
        assert all(item.box is None for item in asked), "BLIP-2 reads no boxes"
        written: list[Written | None] = [None] * len(asked)
        for prompt, rows in _of_one_prompt(asked, self.batch_size):
            pictures = torch.stack([self.pixels(asked[row].picture) for row in rows]).to(self.device)
            ids = self._prompt_ids(prompt).expand(len(rows), -1)
            found = self.model.generate(
                pixel_values=normalised(pictures, self.table).to(self.dtype),
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                num_beams=writing.num_beams,
                max_new_tokens=writing.max_new_tokens,
                length_penalty=writing.length_penalty,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
            )
            texts = self.tokenizer.batch_decode(found.sequences[:, -len(found.scores) :], skip_special_tokens=True)
            for row, text, logprob in zip(rows, texts, self._mean_logprobs(found, writing), strict=True):
                written[row] = Written(one_line(text), logprob)
        return [item for item in written if item is not None]

    def _prompt_ids(self, prompt: str) -> Tensor:
        """[1, Q + T]: a place for each query token, then the prompt, as transformers' processor has it."""
        config = self.model.config
        places = [config.image_token_index] * config.num_query_tokens
        return torch.tensor([[*places, *self.tokenizer(prompt)["input_ids"]]], device=self.device)

    def _mean_logprobs(self, found: Any, writing: Writing) -> list[float]:
        """Of the tokens that were written, up to the end token; from the search's own scores."""
        beams = getattr(found, "beam_indices", None) if writing.num_beams > 1 else None
        scores = self.model.language_model.compute_transition_scores(
            found.sequences, found.scores, beam_indices=beams, normalize_logits=True
        )
        ends = self.model.generation_config.eos_token_id or self.model.config.text_config.eos_token_id
        counted = _counted(found.sequences[:, -scores.shape[1] :], ends) & torch.isfinite(scores)
        means = torch.where(counted, scores, 0).sum(1) / counted.sum(1).clamp(min=1)
        return [float(value) for value in means]


class RunCaptioner:
    """A run or an export of ours: whole pictures by its image modality, boxes by its region modality."""

    def __init__(self, config: CaptionerConfig, device: str) -> None:
        from rb.api.model import RegionBLIP

        self.model = RegionBLIP.from_pretrained(config.model, config.foundation, device)
        self.batch_size = config.batch_size

    def write(self, asked: Sequence[Asked], writing: Writing) -> list[Written]:
        """As of ``Captioner``."""
        decode = replace(
            self.model.decode,
            num_beams=writing.num_beams,
            max_new_tokens=writing.max_new_tokens,
            length_penalty=writing.length_penalty,
        )
        written: list[Written | None] = [None] * len(asked)
        for prompt, rows in _of_one_prompt(asked, self.batch_size):
            pictures = [asked[row].picture for row in rows]
            boxes = None if asked[rows[0]].box is None else [[asked[row].box] for row in rows]
            # A region may be the first pixel.
            modality, sources, _ = self.model.image_sources(pictures, boxes, "pixels", check_format=False)
            features = self.model.model.encode(
                modality, torch.stack([source.tensor for source in sources]).to(self.model.model.device)
            )
            numbers = None if boxes is None else torch.cat([s.boxes for s in sources if s.boxes is not None])
            how = self.model.search(modality, decode, prompt or None)
            ids, logprobs = self.model.model.generate_scored(
                modality, features, None if numbers is None else numbers.to(features.device), how
            )
            lengths = _counted(ids, how.end_token_id).sum(1).cpu()
            texts = self.model.text.decode_llm(ids.cpu())
            for row, text, logprob in zip(rows, texts, (logprobs.cpu() / lengths).tolist(), strict=True):
                written[row] = Written(text, logprob)
        return [item for item in written if item is not None]


def _of_one_prompt(asked: Sequence[Asked], batch_size: int) -> Iterator[tuple[str, list[int]]]:
    """(prompt, rows) of each batch: rows of one prompt, in order, at most ``batch_size``."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for row, item in enumerate(asked):
        groups.setdefault((item.prompt, item.box is None), []).append(row)
    for (prompt, _), rows in groups.items():
        for start in range(0, len(rows), batch_size):
            yield prompt, rows[start : start + batch_size]


def _counted(ids: Tensor, ends: int | list[int]) -> Tensor:
    """Which tokens [B, T] were written: up to the end token, and that too."""
    is_end = torch.isin(ids, torch.as_tensor(ends, device=ids.device)).long()
    return is_end.cumsum(1) - is_end == 0
