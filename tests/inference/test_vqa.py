"""``rb predict --task vqa``: answers are those of plain transformers, token by token; an image is read once for all its questions."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Blip2ForConditionalGeneration

from rb.core.config import FoundationConfig
from rb.core.install import PACKAGE
from rb.core.modality import IMAGE
from rb.core.tasks import TASKS, VQA
from rb.core.text import clean_question
from rb.data.formats import Question, Record
from rb.data.index import ManifestReader
from rb.data.predictions import read_predictions
from rb.data.shard_writer import ShardWriter
from rb.model.region_blip import RegionBLIP
from rb.toy.world.scenes import make_scene
from tests.support.raw_data import cli_run

SCENES = 25  # with 12 questions each
TOY = PACKAGE / "toy" / "foundation"


def questions(number: int) -> list[Question]:
    """Of different lengths, from the scene's truth."""
    scene = make_scene(0, "vqa", number)
    made: list[tuple[str, str]] = []
    for shape in ("cube", "ball", "cone"):
        here = [item for item in scene.objects if item.shape == shape]
        made += [
            (f"How many {shape}s?", str(len(here))),
            (f"Is there a {shape} in the image?", "yes" if here else "no"),
        ]
        made += [(f"What color is the {shape} near the left wall of the photo?", str(here[0].colour) if here else "no")]
        made += [(f"what is the {shape}", "small")]
    return [Question(100 * number + i, text, [answer] * 10, None, "other") for i, (text, answer) in enumerate(made)]


def picture(number: int) -> bytes:
    """A scene as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(make_scene(0, "vqa", number).image).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    with ShardWriter(folder, "toy", IMAGE, "val") as writer:
        for i in range(SCENES):
            record = Record(f"toy/{i}", "toy", "val", 64, 64, [], questions=questions(i))
            writer.write(record, picture(i), "jpg")
    return folder


@torch.no_grad()
def plain_answers(blip2: Path, asked: Path, inputs: dict[str, torch.Tensor], penalty: float) -> dict[str, str]:
    """By transformers' own model, questions of one length together: nothing is padded."""
    model: Any = Blip2ForConditionalGeneration.from_pretrained(blip2).float()
    tokenizer = AutoTokenizer.from_pretrained(blip2)
    decoder = not model.config.text_config.is_encoder_decoder
    embed = model.language_model.get_input_embeddings()
    end = tokenizer("\n", add_special_tokens=False)["input_ids"][0] if decoder else tokenizer.eos_token_id
    prompts: dict[int, list[tuple[str, torch.Tensor]]] = defaultdict(list)  # length -> (example, prompt [1, Q + T, L])
    for record, _ in ManifestReader(asked).records():
        states = model.vision_model(inputs[record.source_id][None]).last_hidden_state
        output = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=states).last_hidden_state
        soft = model.language_projection(output)
        for one in record.questions:
            text = f"Question: {clean_question(one.question)} Short answer:"
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = [tokenizer.bos_token_id, *ids] if decoder else [*ids, tokenizer.eos_token_id]
            prompt = torch.cat([soft, embed(torch.tensor([ids]))], dim=1)
            prompts[len(ids)].append((f"{record.source_id}#{one.question_id}", prompt))
    found: dict[str, str] = {}
    for rows in prompts.values():
        names, alike = zip(*rows, strict=True)
        made = model.language_model.generate(
            inputs_embeds=torch.cat(alike),
            num_beams=5,
            max_new_tokens=10,
            min_new_tokens=1,
            length_penalty=penalty,
            do_sample=False,
            eos_token_id=end,
        )
        texts = tokenizer.batch_decode(made, skip_special_tokens=True)
        found |= {name: text.strip() for name, text in zip(names, texts, strict=True)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("llm", "penalty"), [("opt", 0.0), ("t5", -1.0)])
def test_answers_of_plain_transformers_and_one_pass_of_an_image(
    llm: str, penalty: float, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = tmp_path / "run.yaml", tmp_path / "answers.jsonl"
    parts = FoundationConfig(str(TOY / f"blip2-{llm}"), str(TOY / "text_branch"), str(TOY / "point_bert"))
    run.write_text(json.dumps({"model": {"foundation": vars(parts), "train_modalities": ["image_region"]}}))
    read: list[int] = []
    kept: dict[str, torch.Tensor] = {}
    encode = RegionBLIP.encode

    def counted(self: RegionBLIP, modality: str, inputs: torch.Tensor) -> torch.Tensor:
        from rb.sources.images import normalised

        for pixels in normalised(inputs, self.pixel_table):  # type: ignore[arg-type]
            kept[f"toy/{len(kept)}"] = pixels
        read.append(len(inputs))
        return encode(self, modality, inputs)

    monkeypatch.setattr(RegionBLIP, "encode", counted)
    words = ["--run", run, "--data", asked, "--modality", IMAGE, "--task", VQA, "--out", out, "--batch-size", "8"]
    assert cli_run("predict", *map(str, words)) == 0
    rows, meta = read_predictions(out)
    assert sum(read) == SCENES
    assert len(rows) == len({row.id for row in rows}) == 12 * SCENES == 300
    assert meta["decoding"]["prompt"] == TASKS[VQA].prompt
    assert meta["decoding"]["length_penalty"] == penalty
    assert {row.id: row.prediction for row in rows} == plain_answers(Path(parts.blip2), asked, kept, penalty)
    annotations = tmp_path / "annotations.json"
    listed: list[dict[str, Any]] = [
        {"question_id": q.question_id, "answer_type": "other", "answers": [{"answer": a} for a in q.answers]}
        for i in range(SCENES)
        for q in questions(i)
    ]
    annotations.write_text(json.dumps({"annotations": listed}))
    assert cli_run("score", "--task", "vqa", "--results", str(out), "--annotations", str(annotations)) == 0
    assert (
        cli_run("predict", *map(str, words[:4]), "--modality", IMAGE, "--out", str(out)) == 2
    )  # captions of questions
