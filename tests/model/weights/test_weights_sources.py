"""Every source format and text-branch recipe: what is loaded computes what the original classes compute, and every number has a source."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

from rb.cli import main
from rb.core.config import FoundationConfig, ModelConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD
from rb.model.qformer import joint_pass, query_and_text_pass, query_pass, text_pass
from rb.model.weights.build import build_model, text_processor
from rb.model.weights.convert import convert
from rb.model.weights.readers import read_headers
from tests.support import tiny
from tests.support.numbers import close
from tests.support.weights_files import (
    bert_folder,
    build,
    golden,
    in_layout,
    itm_folder,
    lavis_stage2,
    lavis_vit,
    llm_folder,
    no_key_bias,
)


@pytest.fixture(scope="module", params=["opt", "t5"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FoundationConfig:
    return tiny.write_foundation(tmp_path_factory.mktemp(request.param), llm=request.param)


def llm_logits(blip2: Blip2ForConditionalGeneration) -> Tensor:
    ids = torch.arange(3, 11).reshape(2, 4)
    more = {"decoder_input_ids": ids.flip(1)} if blip2.config.text_config.is_encoder_decoder else {}
    return blip2.language_model(input_ids=ids, **more).logits


# -- Hugging Face folders ---------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "bin-sharded"])
def test_every_layout_is_plain_transformers_bit_for_bit(either: FoundationConfig, tmp_path: Path, layout: str) -> None:
    folder = in_layout(Path(either.blip2), tmp_path / "blip2", layout)
    built = build(dataclasses.replace(either, blip2=str(folder)))
    plain = Blip2ForConditionalGeneration.from_pretrained(either.blip2, dtype=torch.float32).eval()
    ours, pixels = built.model.blip2, torch.randn(2, 3, tiny.IMAGE_SIDE, tiny.IMAGE_SIDE)
    assert torch.equal(ours.vision_model(pixels).last_hidden_state, plain.vision_model(pixels).last_hidden_state)
    assert torch.equal(llm_logits(ours), llm_logits(plain))
    files = {row["origin"].split(" : ")[0] for row in built.ledger.report(built.model)["weights"].values()}
    assert sum(name.startswith("blip2/") for name in files) == {"single": 1, "bin": 1, "bin-sharded": 2}.get(
        layout, len(list(folder.glob("*.safetensors")))
    )
    if layout == "sharded":
        assert len(list(folder.glob("*.safetensors"))) > 2


@torch.no_grad()
def test_t5_head_and_embedding_stay_apart_through_load_save_and_reload(tmp_path: Path) -> None:
    foundation = tiny.write_foundation(tmp_path / "t5", llm="t5")
    plain = Blip2ForConditionalGeneration.from_pretrained(foundation.blip2, dtype=torch.float32).eval()
    first = build(foundation, train_modalities=()).model.blip2
    shutil.copytree(foundation.blip2, tmp_path / "again", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    first.config.qformer_config.use_qformer_text_input = False
    state = {
        k: v
        for k, v in first.state_dict().items()
        if not (".intermediate." in k or (".output." in k and "attention" not in k and "qformer" in k))
    }
    first.save_pretrained(tmp_path / "again", state_dict=state, max_shard_size="40KB")
    second = build(dataclasses.replace(foundation, blip2=str(tmp_path / "again")), train_modalities=()).model.blip2
    for blip2 in (first, second):
        llm, theirs = blip2.language_model, plain.language_model
        assert not torch.equal(llm.lm_head.weight, llm.shared.weight)
        assert torch.equal(llm.lm_head.weight, theirs.lm_head.weight)
        assert torch.equal(llm.shared.weight, theirs.shared.weight)
        assert torch.equal(llm.decoder.embed_tokens.weight, theirs.shared.weight)
        assert torch.equal(llm_logits(blip2), llm_logits(plain))


def test_bf16_rounds_the_encoders_the_llm_and_what_is_multiplied_in_the_frozen_qformer(
    foundation: FoundationConfig,
) -> None:
    exact, rounded = build(foundation).model, build(foundation, frozen_dtype="bfloat16").model
    for name, value in rounded.state_dict().items():
        whole = exact.state_dict()[name]
        if value.dtype == torch.bfloat16:
            of_products = name.startswith(("blip2.qformer.encoder", "text_branch.transform.dense", "text_branch.bias"))
            assert of_products or name.startswith(("blip2.vision_model", "blip2.language_model", "point_encoder"))
            assert "LayerNorm" not in name or not of_products
            assert "lora_" not in name
            assert torch.equal(value, whole.bfloat16())
        else:
            assert torch.equal(value, whole), name


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The matching and BERT folders that fit the tiny foundation, and their original classes."""
    torch.manual_seed(5)
    folder, words = tmp_path_factory.mktemp("sources"), len(tiny.WORDS) + 5
    tokenizer = Path(foundation.text_branch)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    itm = itm_folder(Path(foundation.blip2), tokenizer, folder / "itm", words + 1)
    bert = bert_folder(tokenizer, folder / "bert", sizes | {"max_position_embeddings": 32}, words)
    return {"itm": itm, "bert": bert, "folder": folder}


@torch.no_grad()
def test_hub_itm_is_the_matching_model_with_berts_head(
    foundation: FoundationConfig, sources: dict, tmp_path: Path
) -> None:
    itm, bert, folder = sources["itm"], sources["bert"], sources["folder"]
    # The query path is the generation checkpoint's: give it the matching model's, to compare whole passes.
    blip2 = Blip2ForConditionalGeneration.from_pretrained(foundation.blip2, dtype=torch.float32)
    state = blip2.state_dict()
    state |= {k: v for k, v in itm.state_dict().items() if k in state}
    shutil.copytree(foundation.blip2, tmp_path / "blip2")
    blip2.save_pretrained(tmp_path / "blip2", state_dict=state)
    where = FoundationConfig(
        str(tmp_path / "blip2"), str(folder / "itm"), foundation.point_encoder, str(folder / "bert")
    )
    built = build(where, text_branch="hub-itm")
    model, text = built.model, text_processor(tiny.model_config(where, text_branch="hub-itm"))
    pixels = torch.randn(3, 3, tiny.IMAGE_SIDE, tiny.IMAGE_SIDE)
    ids, mask = text.encode_qformer(["red cube", "a small blue ball", "the cone"])
    matched = itm(pixels, ids, attention_mask=mask, use_image_text_matching_head=True)
    contrasted = itm(pixels, ids, attention_mask=mask)
    parts, qformer, branch = model.parts[IMAGE_REGION], model.blip2.qformer, model.text_branch
    embeds = model.blip2.vision_model(pixels).last_hidden_state
    queries = model.blip2.query_tokens.expand(3, -1, -1)
    close(
        parts.itm_head(joint_pass(qformer, branch, queries, embeds, ids, mask)).mean(1), matched.logits_per_image, 2e-6
    )
    images = F.normalize(parts.vision_proj(query_pass(qformer, queries, embeds)), dim=-1)
    captions = F.normalize(parts.text_proj(text_pass(qformer, branch, ids, mask)), dim=-1)
    close(torch.einsum("iqe,te->itq", images, captions).amax(-1), contrasted.logits_per_image, 2e-6, scale=1.0)
    hidden = torch.randn(2, 16)
    expected = F.linear(
        bert.cls.predictions.transform(hidden), branch.embeddings.word_embeddings.weight[:-1], bert.cls.predictions.bias
    )
    close(branch.logits(hidden)[:, :-1], expected, 2e-6)
    origins = built.ledger.origins
    assert origins["text_branch.bias"].startswith("bert/model.safetensors : cls.predictions.bias; row of [DEC]")
    assert origins[f"parts.{IMAGE_REGION}.temperature"] == "init : 0.07"
    assert origins[f"parts.{POINT_CLOUD}.itm_head.weight"] == "text_branch/model.safetensors : itm_head.weight"


@torch.no_grad()
def test_bert_is_bert(foundation: FoundationConfig, sources: dict) -> None:
    bert, folder = sources["bert"], sources["folder"]
    where = dataclasses.replace(foundation, text_branch=str(folder / "bert"))
    built = build(where, text_branch="bert")
    model, branch = built.model, built.model.text_branch
    text = text_processor(tiny.model_config(where, text_branch="bert"))
    assert text.dec_token_id == len(tiny.WORDS) + 5 == branch.dec_token_id
    ids, _ = text.encode_qformer(["red cube", "a ball"])
    table = bert.bert.embeddings
    close(branch(ids), table.word_embeddings(ids) + table.position_embeddings(torch.arange(ids.shape[1])), 2e-6)
    hidden = torch.randn(2, 5, 16)
    close(branch.logits(hidden)[..., :-1], bert.cls.predictions(hidden), 2e-6)
    for ours, theirs in zip(model.blip2.qformer.encoder.layer, bert.bert.encoder.layer, strict=True):
        close(ours.output(ours.intermediate(hidden), hidden), theirs.output(theirs.intermediate(hidden), hidden), 2e-6)
    heads = [
        built.ledger.origins[f"parts.{IMAGE_REGION}.{n}"]
        for n in ("vision_proj.weight", "itm_head.bias", "temperature")
    ]
    assert heads == ["init : PyTorch's default for Linear"] * 2 + ["init : 0.07"]
    again = build_model(tiny.model_config(where, text_branch="bert"), seed=9).model.text_branch
    assert torch.equal(
        again.embeddings.word_embeddings.weight, branch.embeddings.word_embeddings.weight
    )  # not the run's seed


# -- LAVIS ------------------------------------------------------------------------------------------------------------


def lavis_vit_forward(weights: dict[str, Tensor], pixels: Tensor, depth: int, heads: int) -> Tensor:
    """LAVIS's EVA ViT (eva_vit.py: pre-norm blocks, query and value bias, no final norm), written out."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    proj = weights["patch_embed.proj.weight"]
    x = F.conv2d(pixels, proj, weights["patch_embed.proj.bias"], stride=proj.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], 1) + weights["pos_embed"]
    for i in range(depth):
        block = f"blocks.{i}"
        q_bias, v_bias = weights[f"{block}.attn.q_bias"], weights[f"{block}.attn.v_bias"]
        bias = torch.cat([q_bias, torch.zeros_like(v_bias), v_bias])
        qkv = F.linear(norm(x, f"{block}.norm1"), weights[f"{block}.attn.qkv.weight"], bias)
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + F.linear(
            mixed.transpose(1, 2).flatten(2), weights[f"{block}.attn.proj.weight"], weights[f"{block}.attn.proj.bias"]
        )
        hidden = F.gelu(
            F.linear(norm(x, f"{block}.norm2"), weights[f"{block}.mlp.fc1.weight"], weights[f"{block}.mlp.fc1.bias"])
        )
        x = x + F.linear(hidden, weights[f"{block}.mlp.fc2.weight"], weights[f"{block}.mlp.fc2.bias"])
    return x


@torch.no_grad()
def test_a_lavis_set_converts_and_computes_what_lavis_computes(
    either: FoundationConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(either.blip2, tmp_path / "blip2")
    no_key_bias(tmp_path / "blip2")
    original = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "blip2", dtype=torch.float32).eval()
    kind, state = original.config.text_config.model_type, original.state_dict()
    vit = lavis_vit(state)
    torch.save(vit, tmp_path / "eva_vit_g.pth")
    torch.save({"model": lavis_stage2(state, f"{kind}_proj"), "epoch": 3}, tmp_path / "stage2.pth")
    llm = llm_folder(tmp_path / "blip2", tmp_path / "llm")
    argv = [
        "--stage2",
        "stage2.pth",
        "--vit",
        "eva_vit_g.pth",
        "--llm",
        "llm",
        "--config",
        "blip2/config.json",
        "--out",
        "new",
    ]
    code = main(["weights", "convert", *(a if a.startswith("--") else str(tmp_path / a) for a in argv)])
    assert code == 0
    said = capsys.readouterr().out
    assert "EVA-CLIP's end" in said
    again = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "new", dtype=torch.float32).eval()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    shutil.copyfile(tmp_path / "blip2/preprocessor_config.json", tmp_path / "new/preprocessor_config.json")
    where = dataclasses.replace(either, blip2=str(tmp_path / "new"))
    ours = build(where, numerics="lavis").model.blip2
    pixels = torch.randn(2, 3, tiny.IMAGE_SIDE, tiny.IMAGE_SIDE, generator=torch.Generator().manual_seed(0))
    expected = lavis_vit_forward(vit, pixels, depth=2, heads=2)
    norm = original.vision_model.post_layernorm
    expected = F.layer_norm(expected, expected.shape[-1:], norm.weight, norm.bias, 1e-5)
    close(ours.vision_model(pixels).last_hidden_state, expected, 2e-6)
    assert torch.equal(llm_logits(ours), llm_logits(original))
    with pytest.raises(ValueError, match="exists already"):
        convert(tmp_path / "stage2.pth", tmp_path / "eva_vit_g.pth", llm, tmp_path / "new")


@torch.no_grad()
def test_lavis_numerics_and_stage1_file_reproduce_the_golden(tmp_path: Path) -> None:
    """A whole LAVIS set with the golden's Q-Former: converted, built with ``lavis``, every pass equal to LAVIS's."""
    data, weights, sizes = golden("lavis_stage1")
    foundation = tiny.write_foundation(tmp_path / "tiny")
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "encoder_hidden_size",
        "cross_attention_frequency",
    )
    tree = json.loads((Path(foundation.blip2) / "config.json").read_text())
    tree["qformer_config"] |= {name: sizes[name] for name in names} | {"max_position_embeddings": 20}
    tree["vision_config"] |= {"hidden_size": sizes["encoder_hidden_size"]}
    tree |= {"num_query_tokens": sizes["num_query_tokens"], "image_text_hidden_size": sizes["embed_dim"]}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    blip2 = Blip2ForConditionalGeneration(Blip2Config.from_dict(tree))
    bridge = {
        k: v
        for k, v in weights.items()
        if (k.startswith("Qformer.bert.") and "_query" in k) or "attention" in k or "embeddings.LayerNorm" in k
    }
    bridge |= {f"ln_vision.{k}": v.clone() for k, v in blip2.vision_model.post_layernorm.state_dict().items()}
    bridge |= {f"opt_proj.{k}": v.clone() for k, v in blip2.language_projection.state_dict().items()}
    torch.save({"model": bridge | {"query_tokens": weights["query_tokens"]}}, tmp_path / "stage2.pth")
    torch.save(lavis_vit(blip2.state_dict()), tmp_path / "eva_vit_g.pth")
    llm = llm_folder(Path(foundation.blip2), tmp_path / "llm")
    convert(tmp_path / "stage2.pth", tmp_path / "eva_vit_g.pth", llm, tmp_path / "blip2", tmp_path / "config.json")
    stage1 = tmp_path / "stage1"
    shutil.copytree(foundation.text_branch, stage1, ignore=shutil.ignore_patterns("*.safetensors"))
    (stage1 / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(125))]) + "\n"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (stage1 / name).unlink(missing_ok=True)
    (stage1 / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    torch.save({"model": weights, "config": {"run": {}}, "epoch": 9}, stage1 / "blip2_pretrained.pth")
    where = FoundationConfig(str(tmp_path / "blip2"), str(stage1), foundation.point_encoder)
    built = build(where, numerics="lavis")
    model, ids, mask, embeds = built.model, data["input_ids"], data["attention_mask"], data["image_embeds"]
    assert (model.text_branch.dec_token_id, built.foundation["numerics"]) == (sizes["dec_token_id"], "lavis")
    parts, qformer, branch = model.parts[IMAGE_REGION], model.blip2.qformer, model.text_branch
    queries = model.blip2.query_tokens.expand(len(ids), -1, -1)
    passed = query_and_text_pass(qformer, branch, queries, embeds, ids, mask)
    close(passed.query_output, data["query_output"], 2e-6)
    close(text_pass(qformer, branch, ids, mask), data["text_output"][:, 0], 2e-6)
    kept = mask[:, :-1].bool() & mask[:, 1:].bool()
    close(branch.logits(passed.itg_hidden)[:, :-1][kept], data["itg_logits"][:, :-1][kept], 2e-6)
    positive = parts.itm_head(joint_pass(qformer, branch, queries, embeds, ids, mask)).mean(1)
    close(positive, data["itm_logits"][: len(ids)], 2e-6)
    images = F.normalize(parts.vision_proj(passed.query_output), dim=-1)
    captions = F.normalize(parts.text_proj(passed.text_cls), dim=-1)
    similarity = torch.einsum("iqe,te->itq", images, captions).amax(-1)
    close(similarity, data["sim_i2t"] * parts.temperature, 2e-6, scale=1.0)  # LAVIS divides by the temperature


def test_lavis_numerics_are_the_known_differences(tmp_path: Path) -> None:
    foundation = tiny.write_foundation(tmp_path / "opt")
    tree = json.loads((Path(foundation.blip2) / "config.json").read_text())
    tree["text_config"] |= OPTConfig(
        **{**tree["text_config"], "vocab_size": 50304, "hidden_size": 4, "word_embed_proj_dim": 4}
    ).to_dict()
    blip2 = Blip2ForConditionalGeneration(Blip2Config.from_dict(tree))
    blip2.save_pretrained(foundation.blip2)
    no_key_bias(Path(foundation.blip2))
    hf, lavis = build(foundation, numerics="hf"), build(foundation, numerics="lavis")
    assert hf.foundation["report"] != lavis.foundation["report"]
    assert (hf.foundation["numerics"], lavis.foundation["numerics"]) == ("hf", "lavis")
    rows = [b.model.blip2.get_input_embeddings().weight for b in (hf, lavis)]
    assert [len(r) for r in rows] == [50304, 50272]
    assert torch.equal(rows[0][:50272], rows[1])
    logits = [llm_logits(b.model.blip2) for b in (hf, lavis)]
    assert [x.shape[-1] for x in logits] == [50304, 50272]
    close(logits[0][..., :50272], logits[1], 2e-6)
    assert [b.model.blip2.vision_model.post_layernorm.eps for b in (hf, lavis)] == [1e-6, 1e-5]
    t5 = tiny.write_foundation(tmp_path / "t5", llm="t5")
    tree = json.loads((Path(t5.blip2) / "config.json").read_text())
    tree["text_config"]["dense_act_fn"] = "gelu_new"
    (Path(t5.blip2) / "config.json").write_text(json.dumps(tree))
    no_key_bias(Path(t5.blip2))
    kinds = [build(t5, numerics=n).model.blip2.config.text_config.dense_act_fn for n in ("hf", "lavis")]
    assert kinds == ["gelu_new", "gelu"]
    with pytest.raises(ValueError, match=r"model\.numerics: 'both' is not one of hf, lavis"):
        ModelConfig(numerics="both")


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_report_accounts_for_every_number_and_is_the_identity(foundation: FoundationConfig, tmp_path: Path) -> None:
    built = build(foundation)
    report = built.ledger.report(built.model)
    assert sum(n for part in report["parts"].values() for n in part.values()) == sum(
        t.numel() for t in built.model.state_dict().values()
    )
    assert report["missing"] == []
    assert sum(report["tensors"].values()) == len(report["weights"]) == len(built.model.state_dict())
    lines = built.ledger.lines(built.model)
    assert any(line.startswith("blip2.vision_model: ") and "blip2/model.safetensors: " in line for line in lines)
    assert lines[-1] == "missing: none"
    moved = tmp_path / "elsewhere"
    shutil.copytree(Path(foundation.blip2).parent, moved)
    names = (Path(p).name for p in (foundation.blip2, foundation.text_branch, foundation.point_encoder))
    assert build(FoundationConfig(*(str(moved / name) for name in names))).foundation == built.foundation
    assert (
        build(foundation, init=dataclasses.replace(tiny.model_config(foundation).init, heads="default")).foundation[
            "report"
        ]
        != built.foundation["report"]
    )


def test_headers_read_no_tensor(foundation: FoundationConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("rb.model.weights.readers.read_tensor_file", refuse)
    monkeypatch.setattr("rb.model.weights.blip2.read_tensors", refuse)
    model = build_model(tiny.model_config(foundation), seed=0, device="meta").model
    assert all(t.is_meta for t in model.state_dict().values())
    found = read_headers(Path(foundation.blip2) / "model.safetensors")
    assert found["query_tokens"].shape == (1, 4, 16)
