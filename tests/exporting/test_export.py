"""Exports: loaded by plain transformers and peft in a fresh process with the same bits, nothing of another modality, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Blip2ForConditionalGeneration

from rb.checkpoints.checkpoint import copy_parameters, load_parameters
from rb.checkpoints.export_folder import ExportError, read_export
from rb.cli import main as rb
from rb.core.config import FoundationConfig, LoraConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION, modality_spec
from rb.exporting import writing
from rb.model.point_encoder import from_original
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, text_processor
from rb.sources.images import ImageTransform
from tests.support import tiny
from tests.support.captions import caption_logits
from tests.support.exported import MODALITIES, make_run

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "use_adapters.md"
BOX = [3.0, 2.0, 11.0, 9.0]


@pytest.fixture(scope="module", params=["opt", "t5"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FoundationConfig, Path, Path]:
    """(foundation, run folder, its export by ``rb export``)."""
    folder = tmp_path_factory.mktemp(request.param)
    foundation = tiny.write_foundation(folder / "foundation", llm=request.param)
    run = make_run(folder / "runs", foundation)
    assert rb(["export", str(run), "--out", str(folder / "out"), "--base", foundation.blip2]) == 0
    return foundation, run, folder / "out"


def trained(foundation: FoundationConfig, run: Path) -> RegionBLIP:
    model = build_model(tiny.model_config(foundation, train_modalities=MODALITIES), 0).model
    copy_parameters("run", model.trainable_parameters(), load_parameters(run))
    return model


@pytest.mark.slow
@torch.no_grad()
def test_the_guide_gives_our_logits_bit_for_bit(world: tuple[FoundationConfig, Path, Path], tmp_path: Path) -> None:
    """The block of the guide as it is, but for its first two assignments, in a process that never imports this project."""
    foundation, run, out = world
    block = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert block is not None
    assert "import rb" not in block[1]
    assert len(block[1].splitlines()) <= 45
    model, text = trained(foundation, run), text_processor(tiny.model_config(foundation))
    image = Image.effect_noise((23, 17), 90).convert("RGB")
    image.save(tmp_path / "photo.png")
    script, ours = [], {}
    for modality in MODALITIES:
        batch = tiny.make_batch(modality, text, range(1))
        boxes = batch.boxes
        if modality_spec(modality).source == "image":
            source, box = tmp_path / "photo.png", BOX
            boxes = torch.tensor([[BOX[0] / 23, BOX[1] / 17, BOX[2] / 23, BOX[3] / 17]])
            batch.inputs = ImageTransform(tiny.IMAGE_SIDE)(image)[None]
        else:
            source, box = tmp_path / f"{modality}.safetensors", [] if boxes is None else boxes[0].tolist()
            save_file({"tokens": model.encode(modality, batch.inputs)}, source)
        changed, count = re.subn(
            r"(?m)^base, folder = .*$", f"base, folder = {foundation.blip2!r}, {str(out / modality)!r}", block[1]
        )
        changed, also = re.subn(r"(?m)^source, box = .*$", f"source, box = {str(source)!r}, {box!r}", changed)
        assert (count, also) == (1, 1)
        script += [changed, after_the_block(modality, batch.llm_ids, tmp_path)]
        soft_prompt = model.soft_prompt(modality, batch.inputs, boxes)
        ours[modality] = caption_logits(model.blip2.language_model, soft_prompt, batch)
    file = tmp_path / "guide.py"
    file.write_text(
        "\n".join(script) + "\nimport sys\nassert not any(m == 'rb' or m.startswith('rb.') for m in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, str(file)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for modality in MODALITIES:
        theirs = load_file(tmp_path / f"logits_{modality}.safetensors")["logits"]
        torch.testing.assert_close(theirs[0], ours[modality])
    assert len(done.stdout.splitlines()) == len(MODALITIES)


def after_the_block(modality: str, caption_ids: torch.Tensor, folder: Path) -> str:
    """Plain code that goes on from the guide's ``context`` to the logits of a caption."""
    return f"""
from safetensors.torch import save_file
caption = torch.tensor({caption_ids.tolist()})
with torch.no_grad():
    if settings["llm_kind"] == "encoder_decoder":
        start = torch.full_like(caption[:, :1], blip2.config.text_config.decoder_start_token_id)
        logits = blip2.language_model(inputs_embeds=context, decoder_input_ids=torch.cat([start, caption[:, :-1]], 1)).logits
    else:
        inputs = torch.cat([context, blip2.get_input_embeddings()(caption[:, :-1])], 1)  # nothing is predicted from the last
        logits = blip2.language_model(inputs_embeds=inputs, logits_to_keep=caption.shape[1]).logits
save_file({{"logits": logits.contiguous()}}, {str(folder / f"logits_{modality}.safetensors")!r})
"""


def test_no_folder_holds_weights_of_another_modality(world: tuple[FoundationConfig, Path, Path]) -> None:
    foundation, run, out = world
    model = trained(foundation, run)
    users, parameters = model.parameter_modalities(), model.trainable_parameters()
    by_bytes = {value.detach().numpy().tobytes(): name for name, value in parameters.items() if value.numel() > 4}
    seen: set[str] = set()
    for modality in MODALITIES:
        held = load_file(out / modality / "adapter_model.safetensors") | load_file(out / modality / "parts.safetensors")
        names = {by_bytes[value.numpy().tobytes()] for value in held.values() if value.numel() > 4}
        assert all(modality in users[name] for name in names), modality
        assert len(held) == sum(modality in who for who in users.values())
        assert ("point_projection.weight" in held) == (modality_spec(modality).source == "points")
        assert not any(other in key for key in held for other in MODALITIES)
        seen |= names
    assert seen == set(by_bytes.values())


def test_reading_it_back_gives_the_run(world: tuple[FoundationConfig, Path, Path]) -> None:
    _, run, out = world
    values = load_parameters(run)
    export = read_export(out)
    assert export.modalities == MODALITIES
    assert values.keys() == export.tensors.keys()
    assert all(torch.equal(values[name], export.tensors[name]) for name in values)
    alone = read_export(out / POINT_CLOUD)
    assert alone.modalities == (POINT_CLOUD,)
    assert alone.point_encoder == out / "point_bert"


def test_a_shared_adapter_is_in_every_modalitys_folder(foundation: FoundationConfig, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "runs", foundation, lora=LoraConfig(r=2, shared=True)), tmp_path / "out"
    assert rb(["export", str(run), "--out", str(out), "--base", foundation.blip2]) == 0
    values, export = load_parameters(run), read_export(out)
    assert values.keys() == export.tensors.keys()
    assert all(torch.equal(values[name], export.tensors[name]) for name in values)
    loras = {name: value for name, value in values.items() if "lora_" in name}
    for modality in MODALITIES:
        plain = Blip2ForConditionalGeneration.from_pretrained(foundation.blip2, dtype=torch.float32)
        loaded = dict(PeftModel.from_pretrained(plain, out / modality).named_parameters())
        for name, value in loras.items():
            theirs = "base_model.model." + name.removeprefix("blip2.").replace(".shared.", ".default.")
            assert torch.equal(loaded[theirs], value), (modality, name)


def test_point_encoder_beside_it_is_the_foundations(world: tuple[FoundationConfig, Path, Path]) -> None:
    foundation, _, out = world
    theirs = from_original(load_file(Path(foundation.point_encoder) / "point_bert.safetensors"))
    ours = from_original(load_file(out / "point_bert" / "point_bert.safetensors"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_card_says_data_scores_and_the_papers_numbers(world: tuple[FoundationConfig, Path, Path]) -> None:
    foundation, _, out = world
    card = (out / IMAGE_REGION / "README.md").read_text()
    for words in (
        "refcoco_train | 2 | `d1ce5`",
        "refcoco_google | test | 9 | CIDEr | 56.8 | all sentences",
        "ROUGE-L | 43.2",
        "num_beams 2",
        "63.5",
        "step 7",
    ):
        assert words in card, words
    assert "11.1" not in card  # the score of another checkpoint
    assert "/somewhere/private" not in card
    assert "Not scored" in (out / POINT_CLOUD / "README.md").read_text()
    settings = json.loads((out / IMAGE_REGION / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == foundation.blip2
    assert (settings["r"], settings["inference_mode"]) == (8, True)
    assert "foundation" not in json.loads((out / IMAGE_REGION / "modality.json").read_text())["model"]
    assert writing.base_id(FoundationConfig("/weights/blip2-flan-t5-xl")) == "Salesforce/blip2-flan-t5-xl"


@torch.no_grad()
def test_merged_folder_is_a_plain_blip2(world: tuple[FoundationConfig, Path, Path], tmp_path: Path) -> None:
    foundation, run, _ = world
    assert rb(["export", str(run), "--out", str(tmp_path / "out"), "--base", foundation.blip2, "--merge"]) == 0
    plain = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out" / IMAGE_REGION / "merged").eval()
    model, text = trained(foundation, run), text_processor(tiny.model_config(foundation))
    batch = tiny.make_batch(IMAGE_REGION, text, range(2))
    ours = caption_logits(model.blip2.language_model, model.soft_prompt(IMAGE_REGION, batch.inputs, batch.boxes), batch)
    assert batch.boxes is not None
    queries = plain.query_tokens + model.parts[IMAGE_REGION].pafe(batch.boxes)
    output = plain.qformer(
        query_embeds=queries, encoder_hidden_states=plain.vision_model(batch.inputs).last_hidden_state
    )
    theirs = caption_logits(plain.language_model, plain.language_projection(output.last_hidden_state), batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "out" / IMAGE_REGION / "merged" / "tokenizer.json").is_file()


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    world: tuple[FoundationConfig, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, run, out = world
    assert rb(["export", str(run), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(writing, "_write_point_encoder", fails)
    assert rb(["export", str(run), "--out", str(tmp_path / "new")]) == 2
    assert list(tmp_path.iterdir()) == []
    assert rb(["export", str(tmp_path / "none"), "--out", str(tmp_path / "new")]) == 2
    assert "no such run folder" in capsys.readouterr().err


def test_damaged_and_foreign_exports(world: tuple[FoundationConfig, Path, Path], tmp_path: Path) -> None:
    _, _, out = world
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / IMAGE_REGION / "parts.safetensors").write_bytes(b"short")
    with pytest.raises(ExportError, match="image_region: its weights cannot be read"):
        read_export(copy)
    shutil.rmtree(copy / POINT_CLOUD_REGION)
    with pytest.raises(ExportError, match=r"point_cloud_region/modality\.json: missing"):
        read_export(copy)
    with pytest.raises(ExportError, match="no export"):
        read_export(tmp_path)


def test_push_dry_run(
    world: tuple[FoundationConfig, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, out = world
    assert rb(["push", str(out), "--repo", "me/adapters", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "image_region/adapter_model.safetensors" in said
    assert "nothing was sent" in said
    assert f"in {sum(p.is_file() for p in out.rglob('*'))} files to me/adapters" in said
    assert rb(["push", str(out), "--repo", "me/adapters", "--dry-run", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["repo"], answer["commit"]) == ("me/adapters", None)
    assert {row["name"]: row["bytes"] for row in answer["files"]} == {
        path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()
    }
    assert answer["bytes"] == sum(row["bytes"] for row in answer["files"])
    assert rb(["push", str(tmp_path), "--repo", "me/adapters", "--dry-run"]) == 2
    assert "no export" in capsys.readouterr().err
