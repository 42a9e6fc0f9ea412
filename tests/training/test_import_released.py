"""Released checkpoints: a tiny random file in their layout, by LAVIS's own names, read into this model; outputs are what its tensors say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import eval.predict
from rb.checkpoints.checkpoint import load_parameters
from rb.cli import main
from rb.core.batch import Batch
from rb.core.config import FoundationConfig, InitConfig, ModelConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION, modality_spec
from rb.core.text import TextProcessor
from rb.data.predictions import read_predictions
from rb.inference.load import load_trained
from rb.model import losses
from rb.model.qformer import query_and_text_pass
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, text_processor
from rb.model.weights.readers import CheckpointError
from rb.model.weights.released import NOT_TRAINED_HERE, WAY_NOT_TAKEN, import_released, text_head
from rb.training.loop import warm_start
from tests.support import tiny
from tests.support.captions import caption_logits
from tests.support.small_data import write_set

SUFFIX = {IMAGE_REGION: "img_region", POINT_CLOUD: "pc", POINT_CLOUD_REGION: "pc_region"}
SETTINGS = {
    "train_modalities": tuple(SUFFIX),
    "point_qformer": "separate",
    "shared_heads": True,
    "box3d": "metres_corners",
    "itm_modalities": (),
    "itc_mask_duplicates": False,
    "init": InitConfig(query_tokens="normal", language_projection="default", heads="default"),
}
GOLDEN = Path(__file__).parents[1] / "golden" / "lavis_stage1.safetensors"
D, WIDE, V, L, QUERIES, ITC, RANK = 16, 24, 24, 20, 4, 8, 8  # of the tiny foundation


@pytest.fixture(scope="module", params=["opt", "t5"])
def llm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def foundation(llm: str, tmp_path_factory: pytest.TempPathFactory) -> FoundationConfig:
    return tiny.write_foundation(tmp_path_factory.mktemp(llm), llm=llm)


@pytest.fixture(scope="module")
def plain(foundation: FoundationConfig) -> RegionBLIP:
    """The foundation alone: nothing trained, no adapters."""
    return build_model(tiny.model_config(foundation, train_modalities=()), seed=0).model


@pytest.fixture(scope="module")
def text(foundation: FoundationConfig) -> TextProcessor:
    return text_processor(tiny.model_config(foundation))


def qformer_shapes(foundation: FoundationConfig) -> dict[str, tuple[int, ...]]:
    """LAVIS's names, from its own file, with the tiny sizes."""
    stage1 = load_file(Path(foundation.text_branch) / "text_branch.safetensors")
    words, positions = (
        stage1[f"Qformer.bert.embeddings.{table}_embeddings.weight"].shape[0] for table in ("word", "position")
    )
    with safe_open(GOLDEN, "pt") as file:
        names = [k.removeprefix("state_dict.Qformer.") for k in file.keys() if k.startswith("state_dict.Qformer.")]  # noqa: SIM118
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        if any(f"layer.{i}." in name for i in (2, 3)):  # the tiny one has two layers
            continue
        if name in ("cls.predictions.bias", "cls.predictions.decoder.bias"):
            shapes[name] = (words,)
        elif "_embeddings" in name or name == "cls.predictions.decoder.weight":
            shapes[name] = (positions if "position" in name else words, D)
        elif "LayerNorm" in name:
            shapes[name] = (D,)
        else:
            rows = WIDE if ".intermediate" in name else D
            columns = (
                WIDE if (".output.dense" in name and "attention" not in name) or ".output_query.dense" in name else D
            )
            columns = V if "crossattention.self.key" in name or "crossattention.self.value" in name else columns
            shapes[name] = (rows, columns) if name.endswith("weight") else (rows,)
    return shapes


def released(foundation: FoundationConfig, plain: RegionBLIP, llm: str) -> dict[str, Tensor]:
    """A file as the released code saves it: all that trains there, buffers and tied copies; random numbers."""
    generator, out = torch.Generator().manual_seed(5), {}

    def add(name: str, *shape: int) -> None:
        out[name] = torch.randn(shape, generator=generator) * 0.3

    def linear(name: str, rows: int, columns: int) -> None:
        add(f"{name}.weight", rows, columns)
        add(f"{name}.bias", rows)

    def lora(layer: str, rows: int, columns: int, suffixes: tuple[str, ...]) -> None:
        for suffix in suffixes:
            add(f"{layer}.lora_A_{suffix}", RANK, columns)
            add(f"{layer}.lora_B_{suffix}", rows, RANK)

    trained = tuple(SUFFIX.values())
    shapes = qformer_shapes(foundation)
    for name, shape in shapes.items():
        add(f"Qformer_pc.{name}", *shape)
    for kind, source in (("weight", "bert.embeddings.word_embeddings.weight"), ("bias", "cls.predictions.bias")):
        out[f"Qformer_pc.cls.predictions.decoder.{kind}"] = out[f"Qformer_pc.{source}"].clone()
    for name, shape in shapes.items():
        if name.endswith(("self.query.weight", "self.value.weight")):
            lora(f"Qformer.{name.removesuffix('.weight')}", *shape, trained)  # type: ignore[arg-type]
            lora(f"Qformer_pc.{name.removesuffix('.weight')}", *shape, ("img", *trained))  # type: ignore[arg-type]
    language = plain.blip2.language_model
    for name, module in language.named_modules():
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in ("q_proj", "v_proj", "q", "v"):
            lora(f"{llm}_model.{name}", module.out_features, module.in_features, trained)
    for suffix in trained:
        add(f"query_tokens_{suffix}", 1, QUERIES, D)
        linear(f"{llm}_proj_{suffix}", L, D)
    for suffix in ("img", "text", *trained):
        linear(f"stage1_proj_{suffix}", ITC, D)
    linear("img_itm_head", 2, D)
    out["temp"] = torch.tensor(0.05)
    for kind, numbers in (("img", 4), ("pc", 24)):
        linear(f"{kind}_region_posembed.0", 128, numbers)
        linear(f"{kind}_region_posembed.2", D, 128)
        linear(f"reg_{kind}_region", numbers, D)
    linear("pc_adapter", V, tiny.POINT_CONFIG.trans_dim)
    # Buffers and tied copies of frozen weights.
    for qformer in ("Qformer", "Qformer_pc"):
        out[f"{qformer}.bert.embeddings.position_ids"] = torch.arange(32)[None]
    table = plain.text_branch.embeddings.word_embeddings.weight.detach().clone()
    table[-1] = torch.randn(D, generator=generator)  # [DEC]
    out["Qformer.cls.predictions.decoder.weight"] = table
    out["Qformer.cls.predictions.decoder.bias"] = torch.randn(len(table), generator=generator)
    if llm == "opt":
        out["opt_model.lm_head.weight"] = language.get_output_embeddings().weight.detach().half()
    else:
        for stack in ("encoder", "decoder"):
            out[f"t5_model.{stack}.embed_tokens.weight"] = language.get_input_embeddings().weight.detach().bfloat16()
    return out


def set_norms(model: RegionBLIP, tensors: dict[str, Tensor]) -> None:
    """The BatchNorm buffers of the foundation's Point-BERT, under their original names."""
    assert model.point_encoder is not None
    for conv, norm in (("first_conv", "bn1"), ("second_conv", "bn2")):
        for what in ("running_mean", "running_var", "num_batches_tracked"):
            buffer = model.point_encoder.get_buffer(f"patch_embed.{norm}.{what}")
            tensors[f"point_encoder.encoder.{conv}.1.{what}"] = buffer.clone()


@pytest.fixture(scope="module")
def config(foundation: FoundationConfig) -> ModelConfig:
    return tiny.model_config(foundation, **SETTINGS)


@pytest.fixture(scope="module")
def with_head(config: ModelConfig, tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """The same with the row of [DEC] and the bias of the file."""
    path = tmp_path_factory.mktemp("head") / "text_head.safetensors"
    save_file(text_head(tensors), path)
    return replace(config, foundation=replace(config.foundation, text_head=str(path)))


@pytest.fixture(scope="module")
def tensors(foundation: FoundationConfig, plain: RegionBLIP, llm: str, config: ModelConfig) -> dict[str, Tensor]:
    made = released(foundation, plain, llm)
    set_norms(build_model(config, seed=0).model, made)
    return made


# -- what the tensors say, without any adapter ------------------------------------------------------------------------


def merge(module: nn.Module, tensors: dict[str, Tensor], prefix: str, suffix: str, here: Callable[[str], str]) -> None:
    """W + alpha / r * B A, alpha 1, into plain layers."""
    found = 0
    for key, a in tensors.items():
        if key.startswith(prefix) and key.endswith(f".lora_A_{suffix}"):
            layer = key.removesuffix(f".lora_A_{suffix}")
            weight = module.get_submodule(here(layer.removeprefix(prefix))).weight
            weight.data += tensors[f"{layer}.lora_B_{suffix}"] @ a / RANK
            found += 1
    assert found >= 4


def in_qformer(name: str) -> str:
    return name.replace("attention.self.", "attention.attention.")


@torch.no_grad()
def said(
    tensors: dict[str, Tensor], plain: RegionBLIP, model: RegionBLIP, batch: Batch, llm: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Soft prompt and losses of a batch from the file's tensors, plain layers and the frozen encoders."""
    m, spec = SUFFIX[batch.modality], modality_spec(batch.modality)
    linear = lambda name, x: F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])  # noqa: E731
    qformer, branch = copy.deepcopy(plain.blip2.qformer), copy.deepcopy(plain.text_branch)
    embeds = model.encode(batch.modality, batch.inputs)
    if spec.source == "points":
        embeds = linear("pc_adapter", embeds)
        own = {
            k.removeprefix("Qformer_pc."): v
            for k, v in tensors.items()
            if k.startswith("Qformer_pc.") and "lora_" not in k
        }
        body = {in_qformer(k.removeprefix("bert.")): v for k, v in own.items() if k.startswith("bert.encoder.")}
        body |= {f"layernorm.{kind}": own[f"bert.embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
        qformer.load_state_dict(body)
        head = {
            k.removeprefix("cls.predictions."): v
            for k, v in own.items()
            if ".transform." in k or k == "cls.predictions.bias"
        }
        tables = {
            f"embeddings.{t}_embeddings.weight": own[f"bert.embeddings.{t}_embeddings.weight"]
            for t in ("word", "position")
        }
        branch.load_state_dict(head | tables)
    else:
        branch.embeddings.word_embeddings.weight.data = tensors["Qformer.cls.predictions.decoder.weight"]
        branch.bias.data = tensors["Qformer.cls.predictions.decoder.bias"]
    merge(qformer, tensors, "Qformer_pc.bert." if spec.source == "points" else "Qformer.bert.", m, in_qformer)
    queries = tensors[f"query_tokens_{m}"].expand(len(batch), -1, -1)
    if spec.regional:
        place = m.replace("_region", "_region_posembed")
        queries = queries + linear(f"{place}.2", F.gelu(linear(f"{place}.0", batch.boxes)))[:, None]
    passed = query_and_text_pass(qformer, branch, queries, embeds, batch.text_ids, batch.text_mask)
    soft_prompt = linear(f"{llm}_proj_{m}", passed.query_output)
    language = copy.deepcopy(plain.blip2.language_model)
    merge(language, tensors, f"{llm}_model.", m, lambda name: name)
    seen = F.normalize(linear(f"stage1_proj_{m}", passed.query_output), dim=-1)
    read = F.normalize(linear("stage1_proj_text", passed.text_cls), dim=-1)
    counts = batch.llm_mask.bool()
    itg = batch.text_mask[:, 1:].bool()
    terms = {
        "itc": losses.itc_loss(*losses.similarities(seen, read, seen, read, tensors["temp"]), 0, None),
        "itg": F.cross_entropy(
            branch.logits(passed.itg_hidden[:, :-1])[itg], batch.text_ids[:, 1:][itg], label_smoothing=0.1
        ),
        "llm": F.cross_entropy(caption_logits(language, soft_prompt, batch), batch.llm_ids[counts]),
    }
    if spec.regional:
        terms["reg"] = (linear(f"reg_{m}", passed.query_output.mean(1)) - batch.boxes).abs().mean()
    return soft_prompt, terms


def batch_of(modality: str, text: TextProcessor) -> Batch:
    batch = tiny.make_batch(modality, text, range(4))
    if modality == POINT_CLOUD_REGION:
        batch.boxes = torch.rand(4, 24, generator=torch.Generator().manual_seed(0)) * 3
    return batch


@pytest.mark.parametrize("modality", list(SUFFIX))
def test_outputs_are_what_the_tensors_say(
    tensors: dict[str, Tensor], with_head: ModelConfig, plain: RegionBLIP, text: TextProcessor, llm: str, modality: str
) -> None:
    model, batch = build_model(with_head, seed=0).model, batch_of(modality, text)
    before = model.soft_prompt(modality, batch.inputs, batch.boxes)
    import_released(model, tensors, "x.pth")
    soft_prompt, terms = said(tensors, plain, model, batch, llm)
    ours = model.soft_prompt(modality, batch.inputs, batch.boxes)
    torch.testing.assert_close(ours, soft_prompt, rtol=1e-4, atol=1e-5)
    assert (before - ours).abs().max() > 0.1
    found = model(batch).terms
    assert set(found) == set(terms)
    for name, value in terms.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=1e-5)


def test_every_key_is_accounted_for(
    tensors: dict[str, Tensor], config: ModelConfig, with_head: ModelConfig, llm: str
) -> None:
    without = import_released(build_model(config, seed=0).model, tensors, "x.pth").left_out
    built = build_model(with_head, seed=0)
    model = built.model
    assert "row of [DEC]: text_head/text_head.safetensors : dec_row" in str(built.ledger.origins)
    account = import_released(model, tensors, "x.pth")
    assert {*account.origins.values(), *account.left_out} == set(tensors)
    assert len(account.origins) == len(model.trainable_parameters())
    reasons = account.left_out
    assert {k for k, r in reasons.items() if r == NOT_TRAINED_HERE} == {
        f"stage1_proj_img.{k}" for k in ("weight", "bias")
    }
    idle = {k for k, r in reasons.items() if r == WAY_NOT_TAKEN}
    assert idle == {k for k in tensors if "lora_" in k and k.startswith("Qformer.") and "_pc" in k} | {
        k for k in tensors if "lora_" in k and k.startswith("Qformer_pc.") and "_img" in k
    }
    for kind in ("weight", "bias"):
        assert "captions do not read it" in without[f"Qformer.cls.predictions.decoder.{kind}"]
        assert reasons.pop(f"Qformer.cls.predictions.decoder.{kind}").startswith("copy of a frozen weight, equal")
    assert sum(r.startswith("copy of a frozen weight, equal") for r in reasons.values()) == 4 + (
        1 if llm == "opt" else 2
    )


# -- files that do not fit --------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named(tensors: dict[str, Tensor], config: ModelConfig, llm: str) -> None:
    model = build_model(config, seed=0).model
    before = {name: p.detach().clone() for name, p in model.trainable_parameters().items()}
    frozen = "opt_model.lm_head.weight" if llm == "opt" else "t5_model.encoder.embed_tokens.weight"
    norm = "point_encoder.encoder.first_conv.1.running_var"
    cases = [
        (
            {"visual_encoder.blocks.0.norm1.weight": torch.ones(3)},
            "no place here: visual_encoder.blocks.0.norm1.weight",
        ),
        (
            {"pc_adapter.bias": None},
            r"nothing for 1 trained parameters: point_projection.bias; .*released_opt_2.7b.yaml",
        ),
        ({"pc_region_posembed.0.weight": torch.ones(128, 6)}, r"posembed.0.weight \[128, 6\], here \[128, 24\]"),
        ({"Qformer_pc.cls.predictions.decoder.bias": torch.ones(29)}, "differs from Qformer_pc.cls.predictions.bias"),
        ({frozen: tensors[frozen] + 1}, f"{frozen} differs from the one in model.foundation.blip2"),
        ({frozen: tensors[frozen][:, :4]}, f"{frozen} differs from the one in model.foundation.blip2"),
        ({norm: tensors[norm] + 1}, "differs from the one in model.foundation.point_encoder"),
    ]
    for change, message in cases:
        made = {k: v for k, v in (tensors | change).items() if v is not None}
        with pytest.raises(CheckpointError, match=message):
            import_released(model, made, "x.pth")
    for name, parameter in model.trainable_parameters().items():
        assert torch.equal(parameter, before[name]), f"{name} changed by a file that was refused"


def test_a_model_without_the_released_variants_is_refused(tensors: dict[str, Tensor], config: ModelConfig) -> None:
    model = build_model(tiny.model_config(config.foundation, **SETTINGS | {"point_qformer": "shared"}), seed=0).model
    with pytest.raises(CheckpointError, match=r"no place here: Qformer_pc.*needs model.point_qformer: separate"):
        import_released(model, tensors, "x.pth")


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_makes_a_run_that_captions(
    tensors: dict[str, Tensor],
    with_head: ModelConfig,
    foundation: FoundationConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, run_file, out = tmp_path / "regionblip.pth", tmp_path / "run.yaml", tmp_path / "released"
    torch.save({"model": tensors, "optimizer": {"state": {}}, "config": {"run": {"lr": 1e-4}}, "epoch": 29}, file)
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in SETTINGS.items() if k != "init"}
    fields["init"] = {"query_tokens": "normal", "language_projection": "default", "heads": "default"}
    sizes = {"max_text_tokens": 12, "num_points": 24}
    run_file.write_text(yaml.safe_dump({"model": {"foundation": vars(foundation)} | fields | sizes}))
    asked = ["import-released", str(file), "--run", str(run_file), "--out", str(out)]
    assert main(asked) == 0
    assert f"{len(tensors)} keys" in capsys.readouterr().out
    model = build_model(with_head, seed=0).model
    import_released(model, tensors, "x.pth")
    stored = load_parameters(out)
    assert {name: p.shape for name, p in model.trainable_parameters().items()} == {
        n: v.shape for n, v in stored.items()
    }
    assert all(torch.equal(p, stored[name]) for name, p in model.trainable_parameters().items())
    assert "x.pth" not in (out / "weights.json").read_text()
    assert "regionblip.pth : pc_adapter.weight" in (out / "weights.json").read_text()
    # Twice is refused; a scene is captioned with its corners in metres.
    assert main(asked) == 2
    assert "holds a run already" in capsys.readouterr().err
    write_set(tmp_path / "scenes", POINT_CLOUD_REGION, 2, split="test")
    said_file = tmp_path / "said.jsonl"
    wanted = ["--modality", POINT_CLOUD_REGION, "--data", str(tmp_path / "scenes"), "--out", str(said_file)]
    short = ["decode.max_new_tokens=4", "decode.num_beams=2"]
    assert eval.predict.main(["--checkpoint", str(out), *wanted, *short]) == 0
    rows, meta = read_predictions(said_file)
    assert len(rows) == 3
    assert meta["checkpoint"]["step"] == 0
    # The run keeps the head that it was trained beside, wherever it is moved; a run that starts from it must name it.
    moved, bias = out.rename(tmp_path / "moved"), tensors["Qformer.cls.predictions.decoder.bias"]
    pairs = zip(load_trained(moved).model.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match=rf"set model.foundation.text_head={moved}/text_head.safetensors"):
        warm_start(build_model(replace(with_head, foundation=foundation), seed=1), str(moved), [])
    named = replace(foundation, text_head=str(moved / "text_head.safetensors"))
    assert warm_start(started := build_model(replace(with_head, foundation=named), seed=1), str(moved), []) == {}
    assert torch.equal(started.model.text_branch.bias, bias)
    save_file({"bias": bias}, moved / "text_head.safetensors")
    with pytest.raises(CheckpointError, match="needs dec_row of shape"):
        load_trained(moved)
