"""What the released code does with lengths, prompts, order, boxes and captions, each as an option; the values are its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rb.core.config import ModelConfig, RunConfig, TrainConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.run_file import load_run
from rb.data.index import ManifestReader
from rb.data.samples import SampleTransform
from rb.inference.predicting import RELEASED_DECODING
from rb.model.language import Generation, generate
from rb.model.weights.build import build_model, text_processor
from rb.sources.points import decode_points
from rb.sources.source import EncoderSettings
from rb.sources.table import SOURCES
from rb.training.schedule import Schedule
from tests.support import tiny
from tests.support.small_data import write_set

ROOT = Path(__file__).parents[3]


def old_lengths(llm: str) -> tuple[int, int]:
    """New tokens, fewest and most, of the released calls by the rule of transformers 4.27 to 4.33: ``min_length`` and ``max_length`` count
    the start token that generation is given (OPT's, T5's decoder's), ``max_new_tokens`` does not."""
    given, min_length = 1, 8
    return min_length - given, 30 - given if llm == "opt" else 30


@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_released_lengths_are_reached_and_not_passed(llm: str, tmp_path: Path) -> None:
    own = tiny.model_config(tiny.write_foundation(tmp_path, llm=llm))
    built = build_model(own, seed=0)
    decode = dataclasses.replace(RELEASED_DECODING[built.text.llm_kind], num_beams=1)
    how = Generation.of(built.text, IMAGE, decode)
    language = built.model.blip2.language_model
    # An LLM that always wants to end, and one that never does.
    wish = torch.zeros(language.get_output_embeddings().out_features)
    language.get_output_embeddings().register_forward_hook(lambda _module, _inputs, out: out * 0 + wish)
    soft_prompt = torch.zeros(1, 4, language.get_input_embeddings().weight.shape[1])
    found = []
    for sign in (1e3, -1e3):
        wish[built.text.end_token_id] = sign
        ids = generate(language, soft_prompt, how)[0].tolist()
        ids = ids[1:] if llm == "t5" and ids[0] == language.config.decoder_start_token_id else ids
        found.append(len([i for i in ids if i != built.text.end_token_id]))
    assert tuple(found) == old_lengths(llm)


def test_the_order_of_an_epoch_may_be_the_released_one() -> None:
    names = [IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION]
    run = load_run(ROOT / "launch/runs/released_opt_2.7b.yaml", keep_unset=True)
    tasks = {
        IMAGE_REGION: "ImageRegionText",
        POINT_CLOUD: "PointcloudText",
        POINT_CLOUD_REGION: "PointcloudRegionText",
    }
    assert run.train.in_order(names) == sorted(tasks, key=tasks.__getitem__)  # by the released tasks' names
    schedule = Schedule("sequential", dict.fromkeys(run.train.in_order(names), 4), 2)
    assert [schedule.at(step).modality for step in range(0, 6, 2)] == [IMAGE_REGION, POINT_CLOUD_REGION, POINT_CLOUD]
    assert TrainConfig(order=(POINT_CLOUD,)).in_order(names) == [POINT_CLOUD, IMAGE_REGION, POINT_CLOUD_REGION]
    with pytest.raises(ValueError, match="unknown modality 'sounds'"):
        TrainConfig(order=("sounds",))


def test_boxes_and_captions_as_the_released_code_reads_them(tmp_path: Path) -> None:
    write_set(tmp_path / "regions", IMAGE_REGION, 1)
    row = ManifestReader(tmp_path / "regions" / "manifest.json").example(0)
    width, height = row.stored.size
    item = dataclasses.replace(row.item, box=[1.9, 2.2, width - 0.1, 5.7])
    row = dataclasses.replace(row, item=item, caption="A Chair (brown), in FRONT.")
    settings = EncoderSettings(16)
    boxes, captions = [], []
    for box2d, raw in (("exact", ()), ("whole_pixels", (IMAGE_REGION,))):
        of_source = {"image": SOURCES["image"].transform(ModelConfig(box2d=box2d), settings)}
        sample = SampleTransform(of_source, raw_captions=raw).training_sample(row, IMAGE_REGION, 0)
        boxes.append((sample.box * torch.tensor([width, height, width, height])).tolist())
        captions.append(sample.caption)
    assert boxes[0] == pytest.approx([1.9, 2.2, width - 0.1, 5.7], rel=1e-5)
    assert boxes[1] == pytest.approx([1, 2, width - 1, 5], rel=1e-5)
    assert captions == ["a chair brown , in front", "A Chair (brown), in FRONT."]


def test_the_run_file_asks_for_what_the_released_code_does_with_geometry() -> None:
    run = load_run(ROOT / "launch/runs/released_opt_2.7b.yaml", keep_unset=True)
    assert (run.model.box2d, run.model.box3d, run.model.cloud_frame) == ("whole_pixels", "metres_corners", "metres")
    assert (run.data.mirror, run.data.dropped_points) == ({POINT_CLOUD_REGION: "always"}, "first")
    assert RunConfig().data.mirror == {}


def test_a_released_scene_is_mirrored_under_a_caption_that_says_left(tmp_path: Path) -> None:
    write_set(tmp_path / "scenes", POINT_CLOUD_REGION, 1)
    row = ManifestReader(tmp_path / "scenes" / "manifest.json").example(0)
    row = dataclasses.replace(row, caption="The chair on the left.")
    config = ModelConfig(num_points=40, cloud_frame="metres", box3d="metres_corners")
    points = {"points": SOURCES["points"].transform(config, EncoderSettings(16))}
    asked = SampleTransform(points, raw_captions=(POINT_CLOUD_REGION,), mirror={POINT_CLOUD_REGION: "always"})
    samples = [asked.training_sample(row, POINT_CLOUD_REGION, position) for position in range(60)]
    assert {sample.caption for sample in samples} == {"The chair on the left."}
    still = decode_points(row.media, "x").astype(np.float64)
    turns = [np.linalg.lstsq(still, sample.inputs.double().numpy(), rcond=None)[0].T for sample in samples]
    signs = [tuple(np.sign(np.diag(turn)).astype(int)) for turn in turns]
    assert {1, -1} == {round(np.linalg.det(turn)) for turn in turns}
    for expected in ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)):  # a quarter each
        assert 5 <= signs.count(expected) <= 27
    # The corners' extents of y and z are exchanged; their centre is the moved box's.
    assert row.item is not None
    low, high = np.array(row.item.box[:3]), np.array(row.item.box[3:])
    for sample, turn in zip(samples, turns, strict=True):
        assert sample.box is not None
        assert np.allclose(sample.box.view(8, 3).mean(0), turn @ ((low + high) / 2), atol=1e-4)
        extents = np.abs(turn) @ (high - low)
        assert np.allclose(np.ptp(sample.box.view(8, 3).numpy(), axis=0), extents[[0, 2, 1]], atol=1e-4)


@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_a_prompt_loses_the_spaces_at_its_end(llm: str, tmp_path: Path) -> None:
    foundation = tiny.write_foundation(tmp_path, llm=llm)
    clean, spaced, blank, none = (
        text_processor(tiny.model_config(foundation, prompt=prompt))
        for prompt in ("a photo of", "a photo of   ", "  ", "")
    )
    again = dataclasses.replace(none, prompt="a photo of ")  # as the API and rb caption --prompt give one
    for one, like in ((spaced, clean), (again, clean), (blank, none)):
        assert one.prompt == like.prompt
        assert torch.equal(one.encode_prompt(IMAGE), like.encode_prompt(IMAGE))
        assert all(map(torch.equal, one.encode_llm(["red cube"]), like.encode_llm(["red cube"])))
