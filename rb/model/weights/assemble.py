"""``rb weights assemble``: ViT and Q-Former of BLIP-2 folders and any causal LM become a foundation that training can start from.

The language projection is new. It starts as N(0, s), bias 0, with s such that the soft prompt is as loud as the LLM's own words, since the
frozen LLM was trained on vectors of that size: the Q-Former's output is a layer norm's, so its expected square length is that of the norm's
weight and bias, and s = (root mean square of the word embeddings) / (root of that). PyTorch's default has no relation to the LLM; for
SmolLM2 it is 4 times as loud. All else is copied. Written to a temporary folder that is renamed once training's loader has accepted it.
"""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rb.core.config import FoundationConfig, ModelConfig
from rb.core.files import whole_folder, write_json
from rb.core.library_folders import read_tokenizer, reading
from rb.core.quiet import quiet_loading
from rb.core.seeding import torch_generator
from rb.core.text import check_llm_ids
from rb.model.adapters import llm_targets
from rb.model.weights.blip2 import check_config_ids, load_blip2
from rb.model.weights.hub_folder import HubFolder, open_folder
from rb.model.weights.ledger import Ledger, listing
from rb.model.weights.readers import CheckpointError, read_json, read_tensors

IMAGE_TOKEN = "<image>"
PREPROCESSOR = "preprocessor_config.json"
# What a config says of the file it came from, not of the model; with the first the library refuses to save it.
_NOT_OF_THE_MODEL = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "auto_map")


@dataclass(frozen=True)
class _Llm:
    """A causal LM in memory, with its tokenizer, and what was done to both for the image token."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_id: int
    image_words: str

    @property
    def words(self) -> Tensor:
        """Its word embeddings."""
        return _table(self.model).detach()


def assemble(vit: Path, qformer: Path, llm: Path, out: Path, seed: int = 0) -> list[str]:
    """Write the folder ``out``; lines that say what it holds.

    Args:
        vit: a BLIP-2 folder; its ``vision_model.`` and image settings are taken.
        qformer: a BLIP-2 folder, mostly the same; its ``qformer.`` and ``query_tokens`` are taken.
        llm: a folder of a causal LM with its tokenizer, or a .gguf file.
        seed: of the language projection's draw.

    Raises:
        CheckpointError: parts missing or of other sizes, an LLM that is not causal or cannot be read; names the folder and what to do.
        ValueError: a special token of the LLM's tokenizer without an embedding.
    """
    if out.exists():
        raise CheckpointError(f"--out {out} exists already; name a new folder")
    trees = {option: _blip2_tree(folder, option) for option, folder in (("--vit", vit), ("--qformer", qformer))}
    language = _read_llm(llm)
    settings = _settings(trees, language, qformer)
    with torch.device("meta"):
        skeleton = Blip2ForConditionalGeneration(settings)
    places = skeleton.state_dict()
    state = _part(open_folder(vit, "--vit"), places, ("vision_model.",), "--vit")
    state |= _part(open_folder(qformer, "--qformer"), places, ("qformer.", "query_tokens"), "--qformer")
    state |= _language(language, places, dict(skeleton.all_tied_weights_keys), llm)
    projection, rule = _projection(state, language.words, seed)
    state |= projection
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as temporary:
        size, shards = _write(temporary, state)
        _write_settings(temporary, settings, language, vit)
        _check(temporary, settings)
        write_json(
            temporary / "assembled.json",
            {"vit": vit.name, "qformer": qformer.name, "llm": llm.name, "projection": rule},
        )
    count = sum(parameter.numel() for parameter in language.model.parameters())
    kind = language.model.config.model_type
    return [
        f"{out}: {len(state)} weights, {size / 1e9:.2f} GB in {shards} shards",
        f"LLM: {kind}, {count / 1e6:,.0f} million parameters, {len(language.words)} token embeddings",
        f"image token: {IMAGE_TOKEN} has id {language.image_id}, {language.image_words}",
        f"language projection: {rule}",
        _lora_words(language.model),
        "text branch: that of the Q-Former's own BLIP-2; name it in model.foundation.text_branch",
    ]


def _blip2_tree(folder: Path, option: str) -> dict[str, Any]:
    open_folder(folder, option)
    tree = read_json(folder / "config.json")
    if tree.get("model_type") != "blip-2":
        raise CheckpointError(
            f"{option}: {folder}/config.json describes a {tree.get('model_type')!r} model, not 'blip-2'"
        )
    return tree


def _settings(trees: dict[str, dict[str, Any]], language: _Llm, qformer: Path) -> Blip2Config:
    text = {key: value for key, value in language.model.config.to_dict().items() if key not in _NOT_OF_THE_MODEL}
    of_vit, of_qformer = trees["--vit"], trees["--qformer"]
    own_width = dict(of_qformer.get("vision_config") or {}).get("hidden_size")
    with reading(qformer / "config.json", "download it again", CheckpointError):
        settings = Blip2Config(
            vision_config=of_vit.get("vision_config"),
            qformer_config=of_qformer.get("qformer_config"),
            text_config=text,
            num_query_tokens=of_qformer.get("num_query_tokens", 32),
            image_text_hidden_size=of_qformer.get("image_text_hidden_size", 256),
            image_token_index=language.image_id,
        )
    width = settings.vision_config.hidden_size  # type: ignore[union-attr]
    if own_width is not None and own_width != width:
        raise CheckpointError(
            f"--qformer {qformer} reads image features of width {own_width}, but --vit gives {width}; take both from one BLIP-2"
        )
    return settings


def _read_llm(path: Path) -> _Llm:
    """The LLM in memory, in the type that it is stored in, with an id for the image token."""
    folder = path
    given: dict[str, Any] = {"local_files_only": True}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CheckpointError(f"--llm {path}: no such file")
        folder, given["gguf_file"] = path.parent, path.name
    else:
        open_folder(path, "--llm")
        tree = read_json(path / "config.json")
        if tree.get("is_encoder_decoder") or tree.get("model_type") in ("t5", "mt5", "umt5"):
            raise CheckpointError(
                f"--llm {path}: an encoder-decoder; give a causal LM (FlanT5: take a blip2-flan-t5-* folder, or rb weights convert)"
            )
    # The library's warnings about missing keys are hidden: names and shapes are compared below. So is the bar that it draws for a .gguf.
    with (
        quiet_loading(),
        redirect_stderr(io.StringIO()),
        reading(path, "--llm must be a causal LM that transformers knows", CheckpointError),
    ):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype="auto", **given)
    tokenizer, rows = read_tokenizer(folder, given.get("gguf_file")), _table(model).shape[0]
    check_llm_ids(tokenizer, "decoder", rows)
    image_id, words = _image_token(model, tokenizer, rows)
    return _Llm(model.eval(), tokenizer, image_id, words)


def _table(model: PreTrainedModel) -> Tensor:
    """The word embeddings, [rows, L]."""
    return model.get_input_embeddings().get_parameter("weight")


def _image_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[int, str]:
    """The id that stands for an image in a prompt: the tokenizer's, else a new one; the tables grow by a row where they must."""
    known = IMAGE_TOKEN in tokenizer.get_vocab()
    if not known:
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    image_id: int = tokenizer.get_vocab()[IMAGE_TOKEN]
    if image_id < rows:
        return image_id, "known to the tokenizer" if known else "a row that the LLM's tables had to spare"
    old = _table(model)
    mean, tied = old.detach().float().mean(0), getattr(model.get_output_embeddings(), "weight", None) is old
    head = model.get_output_embeddings()
    head_mean = None if tied or head is None else {n: p.detach().float().mean(0) for n, p in head.named_parameters()}
    with torch.no_grad():
        model.resize_token_embeddings(image_id + 1, mean_resizing=False)
        _table(model)[rows:] = mean.to(old.dtype)
        for name, value in (head_mean or {}).items():
            parameter = model.get_output_embeddings().get_parameter(name)
            parameter[rows:] = value.to(parameter.dtype)
    return image_id, f"{image_id + 1 - rows} more rows in the LLM's tables (the mean of the others)"


def _part(folder: HubFolder, places: dict[str, Tensor], prefixes: tuple[str, ...], option: str) -> dict[str, Tensor]:
    """The weights of one part of BLIP-2, all of them and in the model's shapes."""
    wanted = {name: place.shape for name, place in places.items() if name.startswith(prefixes)}
    found: dict[str, Tensor] = {}
    for _, tensors in folder.read(read_tensors):
        found |= {name: tensor.clone() for name, tensor in tensors.items() if name in wanted}
    lost = sorted(set(wanted) - set(found))
    wrong = sorted(name for name, tensor in found.items() if tensor.shape != wanted[name])
    if lost or wrong:
        what = f"lacks {len(lost)} weights: {listing(lost)}" if lost else f"has other shapes: {listing(wrong)}"
        raise CheckpointError(f"{option}: {folder.path} {what}; take a complete BLIP-2 generation checkpoint")
    return found


def _language(language: _Llm, places: dict[str, Tensor], tied: dict[str, str], path: Path) -> dict[str, Tensor]:
    """The LLM's weights under BLIP-2's names; what the model ties is written once."""
    prefix = "language_model."
    state = {f"{prefix}{name}": tensor.detach() for name, tensor in language.model.state_dict().items()}
    expected = {name for name in places if name.startswith(prefix)}
    differ = sorted(set(state) ^ expected)
    if differ:
        raise CheckpointError(
            f"--llm {path}: BLIP-2 builds another model of its config, which differs in {listing(differ)}"
        )
    return {
        name: tensor.contiguous()
        for name, tensor in state.items()
        if name not in tied or not tensor.equal(state[tied[name]])
    }


def _projection(state: dict[str, Tensor], words: Tensor, seed: int) -> tuple[dict[str, Tensor], str]:
    """The new language projection, [L, D] and [L], and its rule in words."""
    last = max(
        (name for name in state if name.startswith("qformer.") and name.endswith("output_query.LayerNorm.weight")),
        key=lambda name: int(name.split(".layer.")[1].split(".")[0]),
    )
    norm = (
        state[last].float().square().sum() + state[last.removesuffix("weight") + "bias"].float().square().sum()
    ).sqrt()
    loudness = words.float().square().mean().sqrt()
    deviation = float(loudness / norm)
    draw = torch.randn(
        words.shape[1], state[last].shape[0], generator=torch_generator(seed, "assemble", "language_projection")
    )
    weights = {
        "language_projection.weight": draw * deviation,
        "language_projection.bias": torch.zeros(words.shape[1]),
    }
    return (
        weights,
        f"N(0, {deviation:.3g}), bias 0, so that the soft prompt is as loud as words are ({float(loudness):.3g}); seed {seed}",
    )


def _write(folder: Path, state: dict[str, Tensor]) -> tuple[int, int]:
    """Shards of at most 5 GB, with an index if there are several: (bytes, shards)."""
    plan = split_torch_state_dict_into_shards(state, filename_pattern="model{suffix}.safetensors")
    for name, keys in plan.filename_to_tensors.items():
        save_file({key: state[key].contiguous() for key in keys}, folder / name, metadata={"format": "pt"})
    if plan.is_sharded:
        write_json(
            folder / "model.safetensors.index.json", {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        )
    return int(plan.metadata["total_size"]), len(plan.filename_to_tensors)


def _write_settings(folder: Path, settings: Blip2Config, language: _Llm, vit: Path) -> None:
    """Config, image settings, tokenizer and processor, as transformers reads them."""
    settings.architectures = ["Blip2ForConditionalGeneration"]
    settings.save_pretrained(folder)
    if not (vit / PREPROCESSOR).is_file():
        raise CheckpointError(f"--vit {vit} has no {PREPROCESSOR}, which says how images are scaled; download it")
    with reading(vit / PREPROCESSOR, "download it again", CheckpointError):
        images = BlipImageProcessorPil.from_pretrained(vit, local_files_only=True, trust_remote_code=False)
    Blip2Processor(images, language.tokenizer, settings.num_query_tokens).save_pretrained(folder)
    shutil.copyfile(vit / PREPROCESSOR, folder / PREPROCESSOR)


def _check(folder: Path, settings: Blip2Config) -> None:
    """What was written is what training reads: names and shapes by its loader, ids by its checks."""
    tokenizer = read_tokenizer(folder)
    written = Blip2Config.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config = ModelConfig(foundation=FoundationConfig(blip2=str(folder)))
    model = load_blip2(open_folder(folder, "--out"), written, config, torch.float32, Ledger(), meta=True)
    rows = _table(model.language_model).shape[0]
    check_llm_ids(tokenizer, "decoder", rows)
    check_config_ids(written, rows, folder)
    assert tokenizer.get_vocab()[IMAGE_TOKEN] == settings.image_token_index


def _lora_words(model: nn.Module) -> str:
    try:
        pattern = llm_targets(model)  # type: ignore[arg-type]
    except ValueError as error:
        return f"LoRA: {error}"
    return f"LoRA: in the layers {pattern.rsplit('(?:', 1)[1].rstrip(')').replace('|', ', ')}"
