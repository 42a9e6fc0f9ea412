"""Stage ``screen``: drops captions that are surely not English, regions that are in their image twice, and images of evaluation sets.

Everything here needs one image at a time. It also notes how each image looks, so that ``finish`` can find images that come twice without decoding
them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from rb.core.boxes import iou_xyxy
from rb.core.modality import IMAGE_REGION, modality_spec
from rb.core.text import clean_caption, is_caption
from rb.core.urls import Location
from rb.data.formats import find_manifest, manifest_digest, read_manifest_bytes, require_media
from rb.data.index import ManifestReader
from rb.mining.inputs import InputShard
from rb.mining.language import LanguageRule, model_digest
from rb.mining.record import ImageRecord, Region
from rb.mining.settings import ScreenConfig
from rb.mining.stage import Stage, made_of, with_pixels
from rb.mining.work import Made
from rb.sources.images import ImageSource, look_of

SCREEN = "screen"
NO_CAPTION, TWICE, EVALUATION = "no caption", "same caption and place", "image of an evaluation set"


class Screen(Stage):
    """The stage. ``against``: manifests of evaluation sets, whose images are dropped by source id and by look (``rb data verify --against``)."""

    name = SCREEN

    def __init__(self, settings: ScreenConfig, against: Sequence[Location] = ()) -> None:
        self.settings, self.against = settings, [find_manifest(place) for place in against]
        digests = [manifest_digest(read_manifest_bytes(path)) for path in self.against]
        super().__init__({**asdict(settings), "against": sorted(digests)}, model_digest())
        self._rule = LanguageRule(settings.most_foreign, settings.sure)
        self._ids: set[str] = set()
        self._looks: NDArray[np.uint64] = np.zeros((0, 4), np.uint64)

    def start(self) -> None:
        """Loads the language model, and looks at every image of the evaluation sets."""
        self._rule.start()
        looks = []
        for path in self.against:
            reader = ManifestReader(path)
            if modality_spec(reader.manifest.modality).source != modality_spec(IMAGE_REGION).source:
                raise ValueError(f"{path}: holds {reader.manifest.modality}, and images are compared with images only")
            require_media(reader.manifest, path)
            for record, stored in reader.records():
                self._ids.add(record.source_id)
                looks.append(ImageSource().look(stored))
            reader.close()
        self._looks = np.frombuffer(b"".join(looks), np.uint64).reshape(-1, 4)

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        """As of ``Stage``."""
        for record, image in with_pixels(shard, before):
            look = look_of(image)
            record.look = look.hex()
            if record.key in self._ids or self._is_known(look):
                for region in record.kept:
                    region.drop(SCREEN, EVALUATION)
            self._screen(record.kept)
        return made_of(before)

    def _screen(self, regions: Sequence[Region]) -> None:
        stays: list[Region] = []
        for region in regions:
            text = region.caption
            problem = self._rule.problem(text) if text and is_caption(text) else NO_CAPTION
            if problem is None and any(self._same(region, other) for other in stays):
                problem = TWICE
            if problem is None:
                stays.append(region)
            else:
                region.drop(SCREEN, problem)

    def _same(self, one: Region, other: Region) -> bool:
        same_words = clean_caption(one.caption or "") == clean_caption(other.caption or "")
        return same_words and iou_xyxy(one.box, other.box) >= self.settings.same_place

    def _is_known(self, look: bytes) -> bool:
        """Whether a picture of an evaluation set looks so, by the rule of ``rb data verify --against``."""
        if not len(self._looks):
            return False
        mine = np.frombuffer(look, np.uint64)
        distance = np.bitwise_count(self._looks ^ mine).sum(axis=1, dtype=np.int64)
        either = np.bitwise_count(self._looks | mine).sum(axis=1, dtype=np.int64)
        return bool(((distance <= ImageSource.look_tolerance) & (distance * 8 <= either)).any())
