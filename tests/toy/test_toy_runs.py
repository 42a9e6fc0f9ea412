"""The toy run files with the shipped foundations, OPT and T5: a few steps of every trained modality leave the base model's captions alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rb.toy
from rb.core import seeding
from rb.core.batch import Batch
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION, modality_spec
from rb.core.run_file import load_run, to_tree
from rb.core.text import TextProcessor
from rb.model.language import Generation
from rb.model.weights.build import build_model, text_processor
from rb.toy.commands import LLMS
from rb.toy.pretraining.data import SEED, to_pixels
from rb.toy.pretraining.score import captions_of, load_foundation
from rb.toy.world.scenes import make_cloud, make_scene, whole_captions

ROOT = Path(__file__).resolve().parents[2]
FOUNDATION = Path(rb.toy.__file__).parent / "foundation"
TRAINED = (IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION)
SIZE = 4


def make_batch(modality: str, text: TextProcessor, num_points: int) -> Batch:
    """Toy scenes or clouds with boxes that mean nothing."""
    spec = modality_spec(modality)
    scenes = [make_scene(SEED, "toy-run-test", i) for i in range(SIZE)]
    clouds = [torch.from_numpy(make_cloud(SEED, "toy-run-test", i).points[:num_points]) for i in range(SIZE)]
    captions = [whole_captions(scene, 1)[0] for scene in scenes]
    low = torch.rand(SIZE, max(spec.box_dim, 2) // 2, generator=seeding.torch_generator("toy run", modality)) * 0.5
    text_ids, text_mask = text.encode_qformer(captions)
    llm_ids, llm_mask = text.encode_llm(captions)
    return Batch(
        modality=modality,
        ids=[str(i) for i in range(SIZE)],
        inputs=to_pixels(scene.image for scene in scenes) if spec.source == "image" else torch.stack(clouds) / 2,
        boxes=torch.cat([low, low + 0.3], dim=1) if spec.regional else None,
        text_ids=text_ids,
        text_mask=text_mask,
        llm_ids=llm_ids,
        llm_mask=llm_mask,
        prompt_ids=text.encode_prompt(modality),
        object_keys=torch.arange(SIZE),
        caption_keys=torch.tensor([seeding.hash_key(caption) for caption in captions]),
        itm_uniforms=torch.full((SIZE, 2), 0.4),
        captions=captions,
        positions=list(range(SIZE)),
    )


@pytest.mark.parametrize("llm", LLMS)
def test_image_captions_are_the_base_models_before_and_after_training(llm: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    run = load_run(f"launch/runs/toy_{llm}.yaml")
    assert run.model.train_modalities == TRAINED
    model, text = build_model(run.model, seed=0).model, text_processor(run.model)
    image = make_batch(IMAGE, text, run.model.num_points)

    def captions(modality: str, batch: Batch) -> list[str]:
        how = Generation.of(text, modality, run.decode)
        return text.decode_llm(model.generate(modality, batch.inputs, batch.boxes, how))

    before = captions(IMAGE, image)
    beams = {"num_beams": run.decode.num_beams, "length_penalty": run.decode.length_penalty}
    assert before == captions_of(*load_foundation(FOUNDATION, llm), image.inputs, **beams)
    batches = [make_batch(modality, text, run.model.num_points) for modality in TRAINED]
    regions = captions(IMAGE_REGION, batches[0])
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=run.optim.lr)
    for _ in range(3):
        for batch in batches:
            optimizer.zero_grad()
            model(batch).total.backward()
            optimizer.step()
    assert captions(IMAGE, image) == before
    assert captions(IMAGE_REGION, batches[0]) != regions  # what trains does change


def test_the_run_files_differ_in_the_llm_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    opt, t5 = (to_tree(load_run(f"launch/runs/toy_{llm}.yaml")) for llm in LLMS)
    assert opt.pop("name") != t5.pop("name")
    assert opt["model"]["foundation"].pop("blip2") != t5["model"]["foundation"].pop("blip2")
    assert opt == t5
