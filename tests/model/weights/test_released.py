"""The released code's choices, each behind a field: that it does what it says, and that the run file has the released numbers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertForPreTraining, Blip2Config, OPTConfig

import eval.predict
from rb.core.batch import Batch
from rb.core.config import FoundationConfig, InitConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.run_file import load_run, to_tree
from rb.core.text import TextProcessor
from rb.data.index import ManifestReader
from rb.data.predictions import read_predictions
from rb.inference.load import example_transform
from rb.inference.predicting import RELEASED_DECODING
from rb.model import loss_terms
from rb.model.language import Generation
from rb.model.point_encoder import PointBertConfig
from rb.model.qformer import joint_pass, text_pass
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_meta, build_model, text_processor
from rb.model.weights.readers import CheckpointError
from tests.support import tiny
from tests.support.small_data import write_set

# -- a Q-Former of its own for points, shared heads, initialisation ---------------------------------------------------

ALL_THREE = (IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION)
RELEASED = {
    "train_modalities": ALL_THREE,
    "point_qformer": "separate",
    "shared_heads": True,
    "box3d": "metres_corners",
    "cloud_frame": "metres",
    "itm_modalities": (),
    "init": InitConfig(query_tokens="normal", language_projection="default", heads="default"),
}


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> FoundationConfig:
    return tiny.write_foundation(tmp_path_factory.mktemp("foundation"))


@pytest.fixture(scope="module")
def text(foundation: FoundationConfig) -> TextProcessor:
    return text_processor(tiny.model_config(foundation))


def batch_of(modality: str, text: TextProcessor) -> Batch:
    batch = tiny.make_batch(modality, text, range(4))
    if modality == POINT_CLOUD_REGION:
        batch.boxes = torch.rand(4, 24, generator=torch.Generator().manual_seed(0)) * 4
    return batch


def shake(parameters: Iterable[torch.nn.Parameter], seed: int = 0) -> None:
    """New numbers everywhere, LoRA's zeros included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def test_the_second_qformer_starts_as_blip2s_and_reads_points_only(
    foundation: FoundationConfig, text: TextProcessor
) -> None:
    def build(kind: str) -> RegionBLIP:
        return build_model(tiny.model_config(foundation, train_modalities=ALL_THREE, point_qformer=kind), seed=0).model

    shared, separate = build("shared"), build("separate")
    batches = [tiny.make_batch(modality, text, range(4)) for modality in ALL_THREE]
    before = [separate(batch) for batch in batches]
    for batch, terms in zip(batches, before, strict=True):
        assert terms.terms["itm"] > 0
        for name, value in shared(batch).terms.items():
            assert torch.equal(value, terms.terms[name]), (batch.modality, name)
    assert separate.point_qformer is not None
    assert separate.point_text_branch is not None
    shake([*separate.point_qformer.parameters(), *separate.point_text_branch.parameters()])
    for batch, terms in zip(batches, before, strict=True):
        for name, value in separate(batch).terms.items():
            assert torch.equal(value, terms.terms[name]) == (batch.modality == IMAGE_REGION), (batch.modality, name)


def test_the_second_qformer_trains_whole_by_points_only(foundation: FoundationConfig, text: TextProcessor) -> None:
    model = build_model(tiny.model_config(foundation, **RELEASED | {"itm_modalities": ALL_THREE}), seed=0).model
    shake(p for name, p in model.trainable_parameters().items() if "lora_" in name)
    users, points = model.parameter_modalities(), (POINT_CLOUD, POINT_CLOUD_REGION)
    second = {n for n in users if n.startswith(("point_qformer.", "point_text_branch."))}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert not any(name.startswith(("point_qformer.", "point_text_branch.")) for name in frozen)
    for modality in ALL_THREE:
        model.zero_grad()
        model(batch_of(modality, text)).total.backward()
        moved = {n for n, p in model.trainable_parameters().items() if p.grad is not None and p.grad.abs().sum() > 0}
        expected = {name for name in users if modality in users[name]}
        # Nothing else moves; and all of it does, but words and places that no text has, and biases that softmax cancels.
        assert moved <= expected
        assert {n for n in expected - moved if not n.endswith("key.bias")} == set()
    assert {users[name] for name in second if "lora_" not in name} == {points}
    assert {users[name] for name in second if "lora_" in name} == {(POINT_CLOUD,), (POINT_CLOUD_REGION,)}


def write_bert(folder: Path, foundation: FoundationConfig) -> Path:
    """A tiny ``bert-base-uncased``: transformers' own, with the vocabulary of the foundation but [DEC]."""
    torch.manual_seed(1)
    words = load_file(Path(foundation.text_branch) / "text_branch.safetensors")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = words["Qformer.bert.embeddings.word_embeddings.weight"].shape[0] - 1
    positions = words["Qformer.bert.embeddings.position_embeddings.weight"].shape[0]
    bert = BertForPreTraining(BertConfig(vocab_size=vocabulary, max_position_embeddings=positions, **sizes))
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.normal_(std=0.3)
    bert.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_the_second_qformer_may_start_from_bert(
    foundation: FoundationConfig, text: TextProcessor, tmp_path: Path
) -> None:
    folder = write_bert(tmp_path / "bert", foundation)
    asked = RELEASED | {"init": InitConfig(query_tokens="normal", heads="default", point_qformer="bert")}
    config = tiny.model_config(dataclasses.replace(foundation, bert=str(folder)), **asked)
    built = build_model(config, seed=0)
    model, bert = built.model, BertForPreTraining.from_pretrained(folder).eval()
    # Its text alone is BERT's: every hidden state and every logit, but for the token types that a Q-Former has not.
    bert.bert.embeddings.token_type_embeddings.weight.zero_()
    ids, mask = text.encode_qformer(["a red cube", "the small blue ball"])
    qformer, branch = model.of(POINT_CLOUD).qformer, model.of(POINT_CLOUD).text_branch
    torch.testing.assert_close(
        text_pass(qformer, branch, ids, mask), bert.bert(ids, attention_mask=mask).last_hidden_state[:, 0]
    )
    hidden = torch.randn(3, 16)
    torch.testing.assert_close(branch.logits(hidden)[:, :-1], bert.cls.predictions(hidden))
    cross = model.point_qformer.encoder.layer[0].crossattention.attention.key
    assert cross.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert not cross.bias.any()
    assert (
        built.ledger.origins["point_qformer.encoder.layer.0.crossattention.attention.key.weight"] == "init : N(0, 0.02)"
    )
    assert built.ledger.origins["point_text_branch.bias"].endswith("cls.predictions.bias; row of [DEC]: zero")
    assert "point_qformer" in built.foundation
    build_model(config, seed=0, device="meta")  # headers alone do
    with pytest.raises(
        CheckpointError, match=r"model\.foundation\.bert is not set; model\.init\.point_qformer: bert needs"
    ):
        build_model(tiny.model_config(foundation, **asked), seed=0)


def test_adapters_sit_where_the_modality_is_read(foundation: FoundationConfig) -> None:
    model = build_model(tiny.model_config(foundation, **RELEASED), seed=0).model
    places = {(n.split(".lora_")[1].split(".")[1], n.split(".")[0], n.split(".")[1]) for n in lora_names(model)}
    assert places == {
        (IMAGE_REGION, "blip2", "qformer"),
        *((modality, "blip2", "language_model") for modality in ALL_THREE),
        *((modality, "point_qformer", "encoder") for modality in (POINT_CLOUD, POINT_CLOUD_REGION)),
    }
    assert model.adapters.point_peft is not None
    assert set(model.adapters.point_peft.peft_config) == {POINT_CLOUD, POINT_CLOUD_REGION}


def lora_names(model: RegionBLIP) -> list[str]:
    return [name for name in model.trainable_parameters() if ".lora_" in name]


def test_heads_and_temperature_are_shared_where_asked(foundation: FoundationConfig, text: TextProcessor) -> None:
    for source, temperature in (("default", 0.07), ("source", None)):
        config = tiny.model_config(foundation, **RELEASED | {"init": InitConfig(heads=source)})
        built = build_model(config, seed=0)
        shared = {name for name in built.model.trainable_parameters() if "shared_heads." in name}
        assert shared == {
            *(f"shared_heads.{head}.{kind}" for head in ("text_proj", "itm_head") for kind in ("weight", "bias")),
            "shared_heads.temperature",
        }
        assert not any(name.startswith("parts.") and "text_proj" in name for name in built.ledger.origins)
        assert {built.model.parameter_modalities()[name] for name in shared} == {ALL_THREE}
        assert temperature is None or built.model.shared_heads.temperature.item() == pytest.approx(temperature)
        origin = built.ledger.origins["shared_heads.text_proj.weight"]
        assert origin.startswith("init : ") == (source == "default")
    assert set(built.model(batch_of(POINT_CLOUD, text)).terms) == {"itc", "itg", "llm"}


def test_released_initialisation(foundation: FoundationConfig) -> None:
    built = build_model(tiny.model_config(foundation, **RELEASED), seed=0)
    model, origins = built.model, built.ledger.origins
    drawn = torch.cat([model.parts[m].query_tokens.detach().flatten() for m in ALL_THREE])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.15)
    assert abs(drawn.mean().item()) < 0.005
    for modality in ALL_THREE:
        assert origins[f"parts.{modality}.query_tokens"] == "init : N(0, 0.02)"
        for part in ("language_projection", "vision_proj"):
            layer = getattr(model.parts[modality], part)
            assert origins[f"parts.{modality}.{part}.weight"] == "init : PyTorch's default for Linear"
            weight = layer.weight.detach()
            assert weight.abs().max() <= layer.in_features**-0.5
            assert weight.std().item() == pytest.approx(layer.in_features**-0.5 / 3**0.5, rel=0.1)
    assert not torch.equal(model.parts[POINT_CLOUD].query_tokens, model.parts[POINT_CLOUD_REGION].query_tokens)


def test_regions_read_and_predict_24_numbers(foundation: FoundationConfig, text: TextProcessor) -> None:
    model = build_model(tiny.model_config(foundation, **RELEASED), seed=0).model
    parts = model.parts[POINT_CLOUD_REGION]
    assert (parts.pafe.fc1.in_features, parts.box_head.fc.out_features) == (24, 24)
    batch = batch_of(POINT_CLOUD_REGION, text)
    assert model(batch).terms["reg"] > 0
    with pytest.raises(ValueError, match=r"point_cloud_region needs boxes of shape \(4, 24\), got \(4, 6\)"):
        model(tiny.make_batch(POINT_CLOUD_REGION, text, range(4)))


def test_itm_of_a_modality_that_is_not_listed_never_runs(
    foundation: FoundationConfig, text: TextProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(tiny.model_config(foundation, itm_modalities=(IMAGE_REGION,)), seed=0).model
    calls: list[int] = []

    def counted(*args: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return joint_pass(*args, **named)

    monkeypatch.setattr(loss_terms, "joint_pass", counted)
    assert "itm" in model(tiny.make_batch(IMAGE_REGION, text, range(4))).terms
    assert len(calls) == 1
    terms = model(tiny.make_batch(POINT_CLOUD, text, range(4)))
    assert set(terms.terms) == {"itc", "itg", "llm"}
    assert len(calls) == 1
    terms.total.backward()
    assert all(p.grad is None for p in model.parts[POINT_CLOUD].itm_head.parameters())


def test_released_decoding_preset(foundation: FoundationConfig, text: TextProcessor, tmp_path: Path) -> None:
    decode = RELEASED_DECODING["decoder"]
    assert dataclasses.replace(decode, max_new_tokens=30) == RELEASED_DECODING["encoder_decoder"]
    assert (decode.num_beams, decode.min_new_tokens, decode.max_new_tokens, decode.image_size) == (5, 7, 29, 364)
    assert decode.length_penalty == 1.0
    config = tiny.model_config(foundation)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": to_tree(config)}))
    write_set(tmp_path / "regions", IMAGE_REGION, 1)
    said = tmp_path / "said.jsonl"
    asked = ["--run", str(tmp_path / "run.yaml"), "--data", str(tmp_path / "regions"), "--modality", IMAGE_REGION]
    assert eval.predict.main([*asked, "--out", str(said), "--decode", "released"]) == 0
    told = dataclasses.asdict(decode) | {"prompt": ""}
    del told["class_templates"]  # of classes, not of captions
    assert read_predictions(said)[1]["decoding"] == told
    # 364 pixels are read as such, and no caption ends before its 7th token.
    built = build_model(config, seed=0)
    model, decoder = built.model, example_transform(built, 0, decode.image_size)
    loaded = ManifestReader(tmp_path / "regions" / "manifest.json").example(0)
    sample = decoder.prediction_sample(loaded, IMAGE_REGION)
    assert sample.inputs.shape == (3, 364, 364)
    inputs, boxes = sample.inputs[None], sample.box[None]
    assert model.encode(IMAGE_REGION, inputs).shape[1] == 1 + (364 // 8) ** 2
    ids = model.generate(IMAGE_REGION, inputs, boxes, Generation.of(text, IMAGE_REGION, decode))
    assert 7 <= ids.shape[1] <= 29
    assert text.end_token_id not in ids[0, :7]


# -- the run file -----------------------------------------------------------------------------------------------------

LLM_LORA, QFORMER_LORA, STAGE1_PROJ = 2_621_440, 473_088, 196_864
# What the released OPT-2.7B model trains, part by part, and those of its parts that no gradient ever reaches: this model has no such parts.
TRAINED = {
    "Qformer_pc": 186_282_811,
    "Qformer_pc LoRA": 2 * QFORMER_LORA,
    "Qformer LoRA": QFORMER_LORA,
    "LLM LoRA": 3 * LLM_LORA,
    "opt_proj": 3 * 1_968_640,
    "query_tokens": 3 * 24_576,
    "stage1_proj": 3 * STAGE1_PROJ,
    "stage1_proj_text": STAGE1_PROJ,
    "img_itm_head": 1_538,
    "temp": 1,
    "posembed": 99_712 + 102_272,
    "reg": 3_076 + 18_456,
    "pc_adapter": 542_080,
}
NEVER_MOVED = (
    STAGE1_PROJ + 4 * QFORMER_LORA
)  # stage1_proj_img; LoRA of pc modalities in Qformer, of img ones in Qformer_pc
RELEASED_PART = {
    "query_tokens": "query_tokens",
    "language_projection": "opt_proj",
    "vision_proj": "stage1_proj",
    "text_proj": "stage1_proj_text",
    "itm_head": "img_itm_head",
    "temperature": "temp",
    "pafe": "posembed",
    "box_head": "reg",
    "point_projection": "pc_adapter",
    "point_text_branch": "Qformer_pc",
}


def released_part(name: str) -> str:
    pieces = name.split(".")
    if "lora_" in name:
        return {"point_qformer": "Qformer_pc LoRA"}.get(
            pieces[0], {"qformer": "Qformer LoRA"}.get(pieces[1], "LLM LoRA")
        )
    if pieces[0] == "point_qformer":
        return "Qformer_pc"
    return RELEASED_PART[pieces[{"parts": 2, "shared_heads": 1}.get(pieces[0], 0)]]


def test_the_run_file_trains_what_the_released_code_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RB_WEIGHTS", "weights")
    monkeypatch.setenv("RB_DATA", "data")
    run = load_run("launch/runs/released_opt_2.7b.yaml")
    opt = OPTConfig(
        hidden_size=2560, word_embed_proj_dim=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32
    )
    model = build_meta(run.model, Blip2Config(text_config=opt.to_dict()), PointBertConfig())
    counts = Counter[str]()
    for name, parameter in model.trainable_parameters().items():
        counts[released_part(name)] += parameter.numel()
    assert dict(counts) == TRAINED
    total = counts.total() + NEVER_MOVED
    assert total == 205_189_850
    assert round(total / 1e6, 1) == 205.2
    assert round((total - TRAINED["Qformer_pc"] - 4 * QFORMER_LORA) / 1e6, 1) == 17.0
    assert run.train.layout(32).grad_accum_steps == 1
    assert run.decode == RELEASED_DECODING["decoder"]
    released_init = dataclasses.replace(RELEASED["init"], point_qformer="bert")
    assert {name: getattr(run.model, name) for name in RELEASED} == RELEASED | {"init": released_init}
