"""LLMs in OPT's place: FlanT5's encoder-decoder and a Llama. Equal to plain transformers, trained, predicted, and refused by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration, MptConfig, T5Config

from rb.core.config import DecodeConfig, FoundationConfig, LoraConfig, ModelConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION, modality_spec
from rb.data.index import ManifestReader
from rb.data.predictions import read_predictions
from rb.inference.predicting import Job, predict
from rb.model.language import Generation
from rb.model.point_encoder import PointBertConfig
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_meta, build_model, text_processor
from rb.model.weights.readers import CheckpointError
from tests.model.test_model import CountSyncs
from tests.support import tiny
from tests.support.captions import caption_logits
from tests.support.loading import as_loaded
from tests.support.small_data import write_set

MODALITIES = (IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION)


@pytest.fixture(scope="module", params=["t5", "llama"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp(request.param)
    return tiny.model_config(tiny.write_foundation(folder, llm=request.param), train_modalities=MODALITIES)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> FoundationConfig:
    return tiny.write_foundation(tmp_path_factory.mktemp("t5"), llm="t5")


def plain_blip2(foundation: FoundationConfig) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(foundation.blip2, dtype=torch.float32).eval()


def plain_context(plain: Blip2ForConditionalGeneration, pixels: Tensor, prompt_ids: Tensor) -> Tensor:
    """transformers' own path from pixels and prompt to what the LLM reads."""
    query_output = plain.qformer(
        query_embeds=plain.query_tokens.expand(len(pixels), -1, -1),
        encoder_hidden_states=plain.vision_model(pixels).last_hidden_state,
    ).last_hidden_state
    prompt = plain.get_input_embeddings()(prompt_ids).expand(len(pixels), -1, -1)
    return torch.cat([plain.language_projection(query_output), prompt], dim=1)


# -- FlanT5 -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_t5_logits_and_loss_are_plain_transformers_bit_for_bit(t5: FoundationConfig) -> None:
    config = tiny.model_config(t5)
    model, text = build_model(config, seed=0).model, text_processor(config)
    batch = tiny.make_batch(IMAGE, text, range(4))
    assert batch.llm_mask.sum(1).unique().numel() > 1  # padding is in it
    plain = plain_blip2(t5)
    context = plain_context(plain, batch.inputs, batch.prompt_ids)
    theirs = plain.language_model(
        inputs_embeds=context,
        attention_mask=torch.ones(context.shape[:2], dtype=torch.int64),
        labels=batch.llm_ids.masked_fill(batch.llm_mask == 0, -100),
    )
    ours = caption_logits(model.blip2.language_model, model.soft_prompt(IMAGE, batch.inputs, None), batch)
    counts = batch.llm_mask.bool()
    torch.testing.assert_close(ours, theirs.logits[counts])
    torch.testing.assert_close(F.cross_entropy(ours, batch.llm_ids[counts]), theirs.loss)


def test_t5_generates_as_plain_transformers(t5: FoundationConfig) -> None:
    config = tiny.model_config(t5)
    model, text = build_model(config, seed=0).model, text_processor(config)
    batch = tiny.make_batch(IMAGE, text, range(3))
    decode = DecodeConfig(num_beams=3, max_new_tokens=6)
    ours = model.generate(IMAGE, batch.inputs, None, Generation.of(text, IMAGE, decode))
    plain = plain_blip2(t5)
    with torch.no_grad():
        context = plain_context(plain, batch.inputs, batch.prompt_ids)
        mask = torch.ones(context.shape[:2], dtype=torch.int64)
        theirs = plain.language_model.generate(
            inputs_embeds=context, attention_mask=mask, num_beams=3, max_new_tokens=6, min_new_tokens=1
        )
    assert torch.equal(ours, theirs)
    assert ours.shape[1] > 2


def test_t5_head_and_embedding_stay_apart(t5: FoundationConfig, tmp_path: Path) -> None:
    tree = json.loads((Path(t5.blip2) / "config.json").read_text())["text_config"]
    assert (tree["tie_word_embeddings"], tree["dense_act_fn"], tree["is_gated_act"]) == (False, "gelu", True)
    first = plain_blip2(t5).language_model
    built = build_model(tiny.model_config(t5, train_modalities=()), seed=0).model.blip2
    built.save_pretrained(tmp_path)
    for again in (built.language_model, Blip2ForConditionalGeneration.from_pretrained(tmp_path).language_model):
        assert torch.equal(again.lm_head.weight, first.lm_head.weight)
        assert torch.equal(again.shared.weight, first.shared.weight)
        assert torch.equal(again.encoder.embed_tokens.weight, first.shared.weight)
        assert not torch.equal(again.lm_head.weight, again.shared.weight)
        assert again.config.scale_decoder_outputs is False


def test_t5_reads_the_papers_prefix_in_its_encoder(t5: FoundationConfig) -> None:
    text = text_processor(tiny.model_config(t5))
    for modality in (IMAGE, *MODALITIES):
        ids = text.encode_prompt(modality)[0].tolist()
        assert ids == text.llm_tokenizer(modality_spec(modality).t5_prefix)["input_ids"]  # the end token once, last
    ids, mask = text.encode_llm(["red cube", "a small blue ball"])
    assert ids[:, 0].tolist() == text.llm_tokenizer.convert_tokens_to_ids(["red", "a"])  # no start token is supervised
    assert [ids[i, int(mask[i].sum()) - 1] for i in range(2)] == [text.llm_tokenizer.eos_token_id] * 2


@pytest.mark.parametrize(("attention", "said"), [("eager", True), ("sdpa", False)])
def test_attention_that_t5_does_not_take_is_said(
    t5: FoundationConfig, attention: str, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(tiny.model_config(t5, train_modalities=(IMAGE_REGION,), attention=attention), seed=0).model
    assert model.blip2.vision_model.config._attn_implementation == attention
    assert model.blip2.language_model.config._attn_implementation != "eager"
    assert ("covers the ViT only" in caplog.text) is said


def test_t5_lora_sits_in_all_three_attentions(t5: FoundationConfig) -> None:
    model = build_model(tiny.model_config(t5), seed=0).model
    layers = {n.split(".lora_A")[0] for n in model.trainable_parameters() if "language_model" in n and ".lora_A." in n}
    kinds = Counter(
        ".".join(p for p in n.split(".") if p in ("encoder", "decoder", "q", "v") or "Att" in p) for n in layers
    )
    where = ("encoder.SelfAttention", "decoder.SelfAttention", "decoder.EncDecAttention")
    assert kinds == {f"{attention}.{part}": 2 for attention in where for part in "qv"}


T5_SIZES = {"xl": (2048, 32, 5120), "xxl": (4096, 64, 10240)}
EXPECTED = {  # DESIGN's table
    "xl": {IMAGE_REGION: 7_289_223, POINT_CLOUD: 7_186_435, POINT_CLOUD_REGION: 7_291_017},
    "xxl": {IMAGE_REGION: 13_582_727, POINT_CLOUD: 13_479_939, POINT_CLOUD_REGION: 13_584_521},
}


@pytest.mark.parametrize("size", list(T5_SIZES))
def test_trainable_parameters_of_the_papers_t5_models(size: str) -> None:
    width, heads, ffn = T5_SIZES[size]
    llm = T5Config(d_model=width, d_kv=64, d_ff=ffn, num_layers=24, num_heads=heads, feed_forward_proj="gated-gelu")
    model = build_meta(ModelConfig(), Blip2Config(text_config=llm.to_dict()), PointBertConfig())
    users, counts = model.parameter_modalities(), Counter[str]()
    for name, parameter in model.trainable_parameters().items():
        if name.startswith("point_projection"):
            continue
        for modality in users[name]:
            counts[modality] += parameter.numel()
    assert counts == EXPECTED[size]


# -- both -------------------------------------------------------------------------------------------------------------


def test_no_host_sync_in_forward_losses_and_backward(config: ModelConfig) -> None:
    model, text = build_model(config, seed=0).model, text_processor(config)
    batch = tiny.make_batch(IMAGE_REGION, text, range(4))
    model(batch).total.backward()  # lazy set-up happens once
    with CountSyncs() as counter:
        terms = model(batch)
        terms.total.backward()
    assert set(terms.terms) == {"itc", "itm", "itg", "llm", "reg"}
    assert counter.found == Counter()


def test_all_losses_train_and_the_result_predicts(config: ModelConfig, tmp_path: Path) -> None:
    """A few plain torch steps over every modality; the image stays BLIP-2; captions by the way of rb predict."""
    built = build_model(config, seed=0)
    model, text = built.model, built.text
    decode = DecodeConfig(num_beams=2, max_new_tokens=5)
    image = tiny.make_batch(IMAGE, text, range(3))
    before = model.generate(IMAGE, image.inputs, None, Generation.of(text, IMAGE, decode))
    batches = [tiny.make_batch(modality, text, range(4)) for modality in MODALITIES]
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    parameters = model.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters.values(), lr=5e-3)
    losses: dict[str, list[dict[str, float]]] = {modality: [] for modality in MODALITIES}
    for _ in range(8):
        for batch in batches:
            optimizer.zero_grad()
            found = model(batch)
            assert set(found.terms) == {"itc", "itm", "itg", "llm"} | ({"reg"} if batch.boxes is not None else set())
            found.total.backward()
            optimizer.step()
            losses[batch.modality].append({name: float(value.detach()) for name, value in found.terms.items()})
    for modality, rows in losses.items():
        assert sum(rows[-1].values()) < 0.95 * sum(rows[0].values()), modality
        assert rows[-1]["llm"] < rows[0]["llm"], modality
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_parameters() if name in frozen)
    assert any(p.any() for name, p in parameters.items() if "language_model" in name and "lora_B" in name)
    after = model.generate(IMAGE, image.inputs, None, Generation.of(text, IMAGE, decode))
    assert torch.equal(before, after)

    loaded = as_loaded(built, decode, trained=True)
    for modality in MODALITIES:
        manifest = write_set(tmp_path / modality, modality, 3, "test")
        count = predict(Job(ManifestReader(tmp_path / modality), modality), loaded, tmp_path / f"{modality}.jsonl")
        rows, _ = read_predictions(tmp_path / f"{modality}.jsonl")
        assert count == len(rows) == manifest.counts["objects" if modality_spec(modality).regional else "records"]
        assert any(row.prediction for row in rows)


# -- refused ----------------------------------------------------------------------------------------------------------


def test_an_unknown_family_is_refused_with_a_remedy_that_works() -> None:
    mpt = MptConfig(d_model=32, n_heads=2, n_layers=1, vocab_size=40).to_dict()

    def build(**lora: tuple[str, ...]) -> RegionBLIP:
        return build_meta(ModelConfig(lora=LoraConfig(**lora)), Blip2Config(text_config=mpt), PointBertConfig())

    with pytest.raises(ValueError, match=r"MptForCausalLM; .*Wqkv.*; .*model\.lora\.targets=\["):
        build()
    with pytest.raises(ValueError, match=r"model\.lora\.targets: MptForCausalLM has no linear layer 'q_proj'.*Wqkv"):
        build(targets=("q_proj",))
    assert any("Wqkv.lora_A." in name for name in build(targets=("Wqkv",)).trainable_parameters())


def test_another_kind_of_llm_than_the_run_says(t5: FoundationConfig, foundation: FoundationConfig) -> None:
    for given, kind, holds in ((t5, "decoder", "t5"), (foundation, "encoder_decoder", "opt")):
        config = tiny.model_config(given, llm=kind)
        for read in (text_processor, lambda c: build_model(c, seed=0)):
            with pytest.raises(CheckpointError, match=rf"blip2-{holds} holds a {holds} LLM.*model\.llm is '{kind}'"):
                read(config)
    assert text_processor(tiny.model_config(t5, llm="encoder_decoder")).llm_kind == "encoder_decoder"
    with pytest.raises(ValueError, match=r"model\.llm: 'opt' is not one of auto, decoder, encoder_decoder"):
        tiny.model_config(t5, llm="opt")
