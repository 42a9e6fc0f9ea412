"""The assembled model: bit-equal to plain BLIP-2 where it must be, counted where it trains, and never waiting for the device."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

from rb.core.config import DecodeConfig, FoundationConfig, ModelConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.step_layout import StepLayout
from rb.core.text import TextProcessor
from rb.model.language import Generation
from rb.model.point_encoder import PointBertConfig
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import Built, build_meta, build_model, text_processor
from rb.model.weights.readers import CheckpointError
from tests.support import tiny


@pytest.fixture(scope="module")
def config(foundation: FoundationConfig) -> ModelConfig:
    return tiny.model_config(foundation)


@pytest.fixture(scope="module")
def built(config: ModelConfig) -> Built:
    return build_model(config, seed=0)


@pytest.fixture(scope="module")
def text(config: ModelConfig) -> TextProcessor:
    return text_processor(config)


@pytest.fixture
def model(built: Built) -> RegionBLIP:
    built.model.zero_grad()
    return built.model


# -- bit-exact BLIP-2 -------------------------------------------------------------------------------------------------


def plain_logits(blip2: Blip2ForConditionalGeneration, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """transformers' own path from pixels to logits, through its own modules."""
    image_embeds = blip2.vision_model(pixels).last_hidden_state
    query_output = blip2.qformer(
        query_embeds=blip2.query_tokens.expand(len(pixels), -1, -1), encoder_hidden_states=image_embeds
    ).last_hidden_state
    soft_prompt = blip2.language_projection(query_output)
    embeds = torch.cat([soft_prompt, blip2.get_input_embeddings()(ids)], dim=1)
    return blip2.language_model(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64)
    ).logits


@torch.no_grad()
def test_image_is_plain_blip2_bit_for_bit(model: RegionBLIP, foundation: FoundationConfig, text: TextProcessor) -> None:
    pixels = tiny.make_batch(IMAGE, text, range(3)).inputs
    ids = text.encode_prompt(IMAGE).expand(3, -1)
    plain = Blip2ForConditionalGeneration.from_pretrained(foundation.blip2, dtype=torch.float32).eval()
    expected = plain_logits(plain, pixels, ids)
    for modality in (IMAGE_REGION, POINT_CLOUD):  # adapters that do something, so that a leak would show
        for name, parameter in model.named_parameters():
            if f"lora_B.{modality}" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    soft_prompt = model.soft_prompt(IMAGE, pixels, None)
    embeds = torch.cat([soft_prompt, model.blip2.language_model.get_input_embeddings()(ids)], dim=1)
    ours = model.blip2.language_model(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64)
    ).logits
    assert torch.equal(ours, expected)
    model.adapters.activate(IMAGE_REGION)
    assert not torch.equal(plain_logits(model.blip2, pixels, ids), expected)
    model.adapters.activate(None)
    assert torch.equal(plain_logits(model.blip2, pixels, ids), expected)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.zero_()


def test_generation_equals_plain_transformers(
    model: RegionBLIP, foundation: FoundationConfig, text: TextProcessor
) -> None:
    batch = tiny.make_batch(IMAGE, text, range(3))
    decode = DecodeConfig(num_beams=3, max_new_tokens=6)
    ours = model.generate(IMAGE, batch.inputs, None, Generation.of(text, IMAGE, decode))
    plain = Blip2ForConditionalGeneration.from_pretrained(foundation.blip2, dtype=torch.float32).eval()
    with torch.no_grad():
        query_output = plain.qformer(
            query_embeds=plain.query_tokens.expand(3, -1, -1),
            encoder_hidden_states=plain.vision_model(batch.inputs).last_hidden_state,
        ).last_hidden_state
        embeds = torch.cat(
            [plain.language_projection(query_output), plain.get_input_embeddings()(batch.prompt_ids).expand(3, -1, -1)],
            dim=1,
        )
        theirs = plain.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            num_beams=3,
            max_new_tokens=6,
            min_new_tokens=1,
            eos_token_id=text.end_token_id,
            pad_token_id=text.pad_token_id,
        )
    assert torch.equal(ours, theirs)


# -- adapters and parameters ------------------------------------------------------------------------------------------


def test_adapters_start_as_nothing_and_alive(model: RegionBLIP) -> None:
    loras = {name: p for name, p in model.trainable_parameters().items() if "lora_" in name}
    assert loras
    assert all(p.any() for name, p in loras.items() if "lora_A" in name)
    assert not any(p.any() for name, p in loras.items() if "lora_B" in name)
    model.adapters.activate(POINT_CLOUD)
    assert model.adapters.active == POINT_CLOUD
    model.adapters.activate(IMAGE)
    assert model.adapters.active is None
    assert all(p.requires_grad for p in loras.values())  # the switch must not touch what trains


def test_gradients_reach_exactly_the_users(model: RegionBLIP, text: TextProcessor) -> None:
    users = model.parameter_modalities()
    for modality in (IMAGE_REGION, POINT_CLOUD):
        model.zero_grad()
        model(tiny.make_batch(modality, text, range(4))).total.backward()
        touched = {name for name, p in model.named_parameters() if p.grad is not None}
        assert touched == {name for name, who in users.items() if modality in who}


def test_no_dropout_and_frozen_batchnorm(model: RegionBLIP, text: TextProcessor) -> None:
    model.train()
    assert not any(module.training for module in model.modules())
    batch = tiny.make_batch(POINT_CLOUD, text, range(3))
    assert torch.equal(model(batch).total, model(batch).total)


OPT_SIZES = {"2.7b": (2560, 10240), "6.7b": (4096, 16384)}
EXPECTED = {  # DESIGN table: OPT-2.7B, OPT-6.7B; each modality's own, point_projection counted with the point modalities
    IMAGE_REGION: {"2.7b": 5_585_799, "6.7b": 8_339_847},
    POINT_CLOUD: {"2.7b": 5_483_011, "6.7b": 8_237_059},
    POINT_CLOUD_REGION: {"2.7b": 5_587_593, "6.7b": 8_341_641},
}
PARTS = {
    "query_tokens": 24_576,
    "vision_proj": 196_864,
    "text_proj": 196_864,
    "itm_head": 1_538,
    "temperature": 1,
    "qformer": 473_088,
}


def paper_model(size: str) -> RegionBLIP:
    width, ffn = OPT_SIZES[size]
    opt = OPTConfig(
        hidden_size=width, word_embed_proj_dim=width, ffn_dim=ffn, num_hidden_layers=32, num_attention_heads=32
    )
    return build_meta(ModelConfig(), Blip2Config(text_config=opt.to_dict()), PointBertConfig())


@pytest.mark.parametrize("size", list(OPT_SIZES))
def test_trainable_parameters_of_the_papers_models(size: str) -> None:
    model = paper_model(size)
    users = model.parameter_modalities()
    counts: dict[str, Counter[str]] = {}
    for name, parameter in model.trainable_parameters().items():
        pieces = name.split(".")
        part = pieces[2] if pieces[0] == "parts" else pieces[1] if pieces[0] == "blip2" else pieces[0]
        for modality in users[name]:
            counts.setdefault(modality, Counter())[part] += parameter.numel()
    assert set(counts) == set(EXPECTED)
    llm_lora, projection = {"2.7b": (2_621_440, 1_968_640), "6.7b": (4_194_304, 3_149_824)}[size]
    for modality, count in counts.items():
        expected = Counter(PARTS) + Counter({"language_model": llm_lora, "language_projection": projection})
        if modality == IMAGE_REGION:
            expected += Counter({"pafe": 99_712, "box_head": 3_076})
        if modality == POINT_CLOUD_REGION:
            expected += Counter({"pafe": 99_968, "box_head": 4_614})
        shared = count.pop("point_projection", 0)
        assert shared == (0 if modality == IMAGE_REGION else 542_080)
        assert dict(count) == dict(expected)
        assert sum(count.values()) == EXPECTED[modality][size]


# -- no waiting for the device ----------------------------------------------------------------------------------------


class CountSyncs(TorchDispatchMode):
    """Counts operations that make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name().split("::")[-1].split(".")[0]
        if name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("modality", [IMAGE_REGION, POINT_CLOUD])
def test_no_host_sync_in_forward_losses_and_backward(model: RegionBLIP, text: TextProcessor, modality: str) -> None:
    batch = tiny.make_batch(modality, text, range(4))
    model(batch).total.backward()  # lazy set-up happens once
    with CountSyncs() as counter:
        terms = model(batch)
        terms.total.backward()
    assert set(terms.terms) == {"itc", "itm", "itg", "llm"} | ({"reg"} if modality == IMAGE_REGION else set())
    assert not counter.found
    halves = [tiny.make_batch(modality, text, range(start, start + 2)) for start in (0, 2)]
    with CountSyncs() as counter:  # a pool of two passes
        for half, share in model.shares(halves, StepLayout(4, 2, 4, 1)):
            model(half, share).total.backward()
    assert not counter.found
    with CountSyncs() as counter:
        terms.total.item()
    assert counter.found  # the counter can count


# -- losses as configured ---------------------------------------------------------------------------------------------


def test_weights_switch_terms_off_and_scale_the_total(foundation: FoundationConfig, text: TextProcessor) -> None:
    config = tiny.model_config(
        foundation,
        loss_weights={"itc": 0.0, "itm": 2.0, "itg": 0.0, "llm": 0.5, "reg": 0.0},
        itm_modalities=(IMAGE_REGION,),
        pafe=False,
    )
    model = build_model(config, seed=0).model
    terms = model(tiny.make_batch(IMAGE_REGION, text, range(4)))
    assert set(terms.terms) == {"itm", "llm"}
    torch.testing.assert_close(terms.total, 2.0 * terms.terms["itm"] + 0.5 * terms.terms["llm"])
    assert set(model(tiny.make_batch(POINT_CLOUD, text, range(4))).terms) == {"llm"}
    assert not any(".pafe." in name for name in model.trainable_parameters())


def test_pafe_moves_the_queries(model: RegionBLIP, text: TextProcessor) -> None:
    batch = tiny.make_batch(IMAGE_REGION, text, range(2))
    assert batch.boxes is not None
    here, there = (model.of(IMAGE_REGION).query_tokens(boxes, 2) for boxes in (batch.boxes, batch.boxes.flip(0)))
    assert not torch.equal(here, there)
    with pytest.raises(ValueError, match="image_region needs boxes"):
        model.of(IMAGE_REGION).query_tokens(None, 2)


# -- checkpoints that do not fit --------------------------------------------------------------------------------------


@pytest.fixture
def broken(foundation: FoundationConfig, tmp_path: Path) -> FoundationConfig:
    """A private copy to spoil."""
    for name in ("blip2-opt", "text_branch", "point_bert"):
        shutil.copytree(Path(foundation.blip2).parent / name, tmp_path / name)
    return FoundationConfig(str(tmp_path / "blip2-opt"), str(tmp_path / "text_branch"), str(tmp_path / "point_bert"))


def edit(path: Path, remove: str | None = None, add: str | None = None, reshape: str | None = None) -> None:
    tensors = load_file(path)
    if remove:
        del tensors[remove]
    if add:
        tensors[add] = torch.zeros(2)
    if reshape:
        tensors[reshape] = torch.zeros(3, 3)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "edits", "words"),
    [
        ("blip2-opt/model.safetensors", {"remove": "query_tokens"}, ["lacks 1", "query_tokens"]),
        ("blip2-opt/model.safetensors", {"add": "qformer.extra.weight"}, ["no place", "qformer.extra.weight"]),
        ("blip2-opt/model.safetensors", {"reshape": "language_projection.weight"}, ["language_projection.weight"]),
        ("text_branch/text_branch.safetensors", {"remove": "itm_head.bias"}, ["lacks 1", "itm_head.bias", "stage-1"]),
        ("text_branch/text_branch.safetensors", {"add": "Qformer.new"}, ["no place", "Qformer.new"]),
        ("text_branch/text_branch.safetensors", {"reshape": "vision_proj.weight"}, ["vision_proj.weight", "[3, 3]"]),
        ("point_bert/point_bert.safetensors", {"remove": "transformer_q.norm.bias"}, ["norm.bias"]),
        ("point_bert/point_bert.safetensors", {"add": "transformer_q.more"}, ["more"]),
    ],
)
def test_weights_that_lack_or_are_left_over_are_listed(
    broken: FoundationConfig, file: str, edits: dict[str, str], words: list[str]
) -> None:
    edit(Path(broken.blip2).parent / file, **edits)
    with pytest.raises(CheckpointError) as error:
        build_model(tiny.model_config(broken), seed=0)
    for word in words:
        assert word in str(error.value)


def test_missing_and_wrong_folders(foundation: FoundationConfig, broken: FoundationConfig, tmp_path: Path) -> None:
    cases = {
        "blip2 is not set": FoundationConfig("", foundation.text_branch, foundation.point_encoder),
        "no config.json": FoundationConfig(str(tmp_path / "none"), foundation.text_branch, foundation.point_encoder),
        "holds no text_branch": FoundationConfig(foundation.blip2, foundation.blip2, foundation.point_encoder),
        "point_encoder is not set": FoundationConfig(foundation.blip2, foundation.text_branch, ""),
    }
    for words, where in cases.items():
        with pytest.raises(CheckpointError, match=words):
            build_model(tiny.model_config(where), seed=0)
    path = Path(broken.blip2) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "opt"}))
    with pytest.raises(CheckpointError, match="'opt' model, not 'blip-2'"):
        build_model(tiny.model_config(broken), seed=0)


def test_every_weight_has_an_origin(built: Built) -> None:
    report = built.ledger.report(built.model)
    assert set(report["weights"]) == {name.replace(".base_layer.", ".") for name in built.model.state_dict()}
    assert all(row["origin"] for row in report["weights"].values())
    assert set(built.foundation) == {"blip2", "text_branch", "point_encoder", "recipe", "numerics", "report"}


def test_same_seed_same_start(config: ModelConfig, built: Built) -> None:
    again, other = build_model(config, seed=0).model, build_model(config, seed=1).model
    ours = built.model.trainable_parameters()
    assert all(torch.equal(p, ours[name]) for name, p in again.trainable_parameters().items())
    assert any(not torch.equal(p, ours[name]) for name, p in other.trainable_parameters().items())
