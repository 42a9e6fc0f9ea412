"""What the released code does with lengths, prompts, order, boxes and captions, each as an option; the values are its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from rb.core.config import ModelConfig, TrainConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.run_file import load_run
from rb.data.index import ManifestReader
from rb.data.samples import SampleTransform
from rb.inference.predicting import RELEASED_DECODING
from rb.model.language import Generation, generate
from rb.model.weights.build import build_model, text_processor
from rb.sources.images import CLIP_MEAN, CLIP_STD
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
    settings = EncoderSettings(16, CLIP_MEAN, CLIP_STD, 3)
    boxes, captions = [], []
    for box2d, raw in (("exact", ()), ("whole_pixels", (IMAGE_REGION,))):
        of_source = {"image": SOURCES["image"].transform(ModelConfig(box2d=box2d), settings)}
        sample = SampleTransform(of_source, raw_captions=raw).training_sample(row, IMAGE_REGION, 0)
        boxes.append((sample.box * torch.tensor([width, height, width, height])).tolist())
        captions.append(sample.caption)
    assert boxes[0] == pytest.approx([1.9, 2.2, width - 0.1, 5.7], rel=1e-5)
    assert boxes[1] == pytest.approx([1, 2, width - 1, 5], rel=1e-5)
    assert captions == ["a chair brown , in front", "A Chair (brown), in FRONT."]


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
