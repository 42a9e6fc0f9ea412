"""Stages caption, name, filter and describe: from regions to regions with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from rb.mining.captioners import Asked, load_captioner
from rb.mining.chunks import Chunker
from rb.mining.config import MiningConfig, Writing
from rb.mining.encoders import check_threshold, load_encoder
from rb.mining.inputs import InputShard
from rb.mining.record import ImageRecord, Region
from rb.mining.stage import Stage, made_of, with_pixels
from rb.mining.views import cropped, on_white
from rb.mining.work import Made

NO_NAME, UNLIKELY, NO_CHUNK, NO_CAPTION, UNLIKE, NO_TEXT = (
    "no name",
    "unlikely name",
    "no noun chunk",
    "image without caption",
    "not in the image's caption",
    "no description",
)
AHEAD = 4  # batches of pictures that are held at once


class _Captioning(Stage):
    """A stage whose captioner is loaded at its start."""

    def __init__(self, config: dict[str, Any], model: str, settings: MiningConfig) -> None:
        super().__init__(config, model)
        self.settings = settings

    def start(self) -> None:
        """Load the captioner."""
        self.captioner = load_captioner(self.settings.captioner, self.settings.device)


class CaptionStage(_Captioning):
    """A caption of each image that has a region left."""

    name = "caption"

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        """As of ``Stage``."""
        waiting: list[tuple[ImageRecord, Image.Image]] = []
        for item in with_pixels(shard, before):
            waiting.append(item)
            if len(waiting) == self.settings.captioner.batch_size:
                self._write(waiting)
        self._write(waiting)
        return made_of(before)

    def _write(self, waiting: list[tuple[ImageRecord, Image.Image]]) -> None:
        writing = self.settings.caption.writing
        written = self.captioner.write([Asked(image, writing.prompt) for _, image in waiting], writing)
        for (record, _), one in zip(waiting, written, strict=True):
            record.caption = one.text
        waiting.clear()


class _OfRegions(_Captioning):
    """A text of each region that is left; batches go over the borders of images."""

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        """As of ``Stage``."""
        waiting: list[tuple[Region, Asked]] = []
        for record, image in with_pixels(shard, before):
            waiting += [(region, self.asked(region, image)) for region in record.kept]
            if len(waiting) >= AHEAD * self.settings.captioner.batch_size:
                self._write(waiting)
        self._write(waiting)
        return made_of(before)

    def asked(self, region: Region, image: Image.Image) -> Asked:
        """What the captioner is shown of a region, and asked."""
        raise NotImplementedError

    def keep(self, region: Region, text: str, logprob: float) -> None:
        """Put what was written into the region, or drop it."""
        raise NotImplementedError

    @property
    def writing(self) -> Writing:
        """How this stage writes."""
        raise NotImplementedError

    def _write(self, waiting: list[tuple[Region, Asked]]) -> None:
        written = self.captioner.write([asked for _, asked in waiting], self.writing)
        for (region, _), one in zip(waiting, written, strict=True):
            self.keep(region, one.text, one.logprob)
        waiting.clear()


def view_of(image: Image.Image, region: Region, view: str, pad: float, square: bool, prompt: str) -> Asked:
    """A region as a view shows it (``NameConfig.view``)."""
    if view == "box":
        return Asked(image, prompt, region.box)
    if view == "white":
        return Asked(on_white(image, region, pad, square), prompt)
    return Asked(cropped(image, region.box, pad, square), prompt)


class NameStage(_OfRegions):
    """What a region is called, of itself."""

    name = "name"

    @property
    def writing(self) -> Writing:
        """As of ``_OfRegions``."""
        return self.settings.name.writing

    def asked(self, region: Region, image: Image.Image) -> Asked:
        """As of ``_OfRegions``."""
        how = self.settings.name
        return view_of(image, region, how.view, how.pad, how.square, how.writing.prompt)

    def keep(self, region: Region, text: str, logprob: float) -> None:
        """As of ``_OfRegions``."""
        region.name, region.name_logprob = text, round(logprob, 4)
        least = self.settings.name.min_logprob
        if not text:
            region.drop(self.name, NO_NAME)
        elif least is not None and logprob < least:
            region.drop(self.name, UNLIKELY)


class FilterStage(Stage):
    """Keeps a region whose name the image's caption speaks of."""

    name = "filter"

    def __init__(self, config: dict[str, Any], model: str, settings: MiningConfig) -> None:
        super().__init__(config, model)
        self.settings = settings
        self.threshold = check_threshold(settings.filter.encoder, settings.filter.threshold, model)

    def start(self) -> None:
        """Load spaCy and the encoder."""
        self.chunker = Chunker()
        self.encoder = load_encoder(self.settings.filter.encoder, self.settings.device)

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:  # noqa: ARG002 (needs no pixels)
        """As of ``Stage``."""
        how = self.settings.filter
        for record in before:
            if not record.kept:
                continue
            texts = {"caption": [record.caption], "alt": [record.alt], "both": [record.caption, record.alt]}[
                how.against
            ]
            given = [text for text in texts if text]
            said = list(dict.fromkeys(c for found in self.chunker.chunks(given, how.stop) for c in found))
            names = self.chunker.chunks([region.name or "" for region in record.kept], how.stop)
            for region, of_name in zip(record.kept, names, strict=True):
                self._judge(region, of_name, said, bool(given))
        return made_of(before)

    def _judge(self, region: Region, of_name: list[str], said: list[str], has_text: bool) -> None:
        if not has_text:
            region.drop(self.name, NO_CAPTION)
            return
        if not of_name:
            region.drop(self.name, NO_CHUNK)
            return
        if not said:
            region.drop(self.name, UNLIKE)
            return
        alike = self.encoder.encode(of_name) @ self.encoder.encode(said).T  # [names, said]
        first, second = np.unravel_index(int(alike.argmax()), alike.shape)
        region.chunks, region.similarity = [of_name[first], said[second]], round(float(alike[first, second]), 4)
        if region.similarity <= self.threshold:
            region.drop(self.name, UNLIKE)


class DescribeStage(_OfRegions):
    """A description of each region in its image."""

    name = "describe"

    @property
    def writing(self) -> Writing:
        """As of ``_OfRegions``."""
        return self.settings.describe.writing

    def asked(self, region: Region, image: Image.Image) -> Asked:
        """As of ``_OfRegions``."""
        how = self.settings.describe
        called = region.chunks[0] if region.chunks else region.name or ""
        return view_of(image, region, how.view, how.pad, how.square, how.writing.prompt.replace("{}", called))

    def keep(self, region: Region, text: str, logprob: float) -> None:  # noqa: ARG002 (as of _OfRegions)
        """As of ``_OfRegions``."""
        region.text = text
        if not text:
            region.drop(self.name, NO_TEXT)
