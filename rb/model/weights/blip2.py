"""BLIP-2 from a Hugging Face folder, read shard by shard and strictly: every weight of the model from one named file.

The library makes the module (``from_pretrained``, the only way that keeps FlanT5's head apart from its embedding); names and shapes are
compared here first, by headers alone. Holds ``model.numerics`` too: where LAVIS and transformers differ. Used by ``build.py``.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, GenerationConfig

from rb.core.config import ModelConfig
from rb.core.library_folders import reading
from rb.core.quiet import quiet_loading
from rb.model.blip2_config import llm_config_of, qformer_config_of
from rb.model.weights.hub_folder import HubFolder, open_folder
from rb.model.weights.ledger import FROM, Ledger, listing
from rb.model.weights.readers import CheckpointError, read_json, read_tensors
from rb.model.weights.text_branch import stage1_names

log = logging.getLogger(__name__)

OPTION = "model.foundation.blip2"
ROLE = "blip2"
LN_VISION_EPS = 1e-5  # LAVIS blip2.py:81; transformers has 1e-6
# The hub's BLIP-2 OPT tables are padded to a multiple of 64; OPT's own has this many rows, so LAVIS's softmax has.
OPT_VOCABULARY = {50304: 50272}
_OPT_TABLES = ("language_model.model.decoder.embed_tokens.weight", "language_model.lm_head.weight")
_BUFFERS = re.compile(
    r"(^|\.)position_ids$|rotary_emb\.inv_freq$"
)  # of older library versions: computed, not stored, today
_FP32 = ("qformer.", "query_tokens", "language_projection.")  # never rounded to bf16 on the way


def folder_of(config: ModelConfig) -> HubFolder:
    """The BLIP-2 folder of a configuration; ``CheckpointError`` if there is none."""
    if not config.foundation.blip2:
        raise CheckpointError(f"{OPTION} is not set; name a Hugging Face BLIP-2 folder in the run file")
    return open_folder(Path(config.foundation.blip2), OPTION)


def llm_kind(config: Blip2Config) -> str:
    """``encoder_decoder`` or ``decoder``."""
    return "encoder_decoder" if llm_config_of(config).is_encoder_decoder else "decoder"


def blip2_config(folder: Path, llm: str) -> Blip2Config:
    """The folder's config; an error if it is not a BLIP-2, or its LLM not of the kind that ``model.llm`` asks for."""
    tree = read_json(folder / "config.json")
    if tree.get("model_type") != "blip-2":
        raise CheckpointError(f"{folder}/config.json describes a {tree.get('model_type')!r} model, not 'blip-2'")
    with reading(folder / "config.json", "download it again", CheckpointError):
        found = Blip2Config.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if llm not in ("auto", llm_kind(found)):
        raise CheckpointError(
            f"{OPTION}: {folder} holds a {llm_config_of(found).model_type} LLM, which is of kind {llm_kind(found)!r}, "
            f"but model.llm is {llm!r}; name a folder of that kind, or change model.llm"
        )
    return found


def check_config_ids(config: Blip2Config, llm_rows: int, folder: Path) -> None:
    """``CheckpointError`` where the config names a token that the LLM's table of ``llm_rows`` embeddings does not have."""
    text = llm_config_of(config)
    named = {"image_token_index": config.image_token_index}
    if text.is_encoder_decoder:
        start = getattr(text, "decoder_start_token_id", None)
        if start is None:
            raise CheckpointError(
                f"{folder}/config.json: text_config has no decoder_start_token_id, with which T5 begins (0)"
            )
        named["text_config.decoder_start_token_id"] = start
    for name, token in named.items():
        if token is not None and not 0 <= token < llm_rows:
            raise CheckpointError(
                f"{folder}/config.json: {name} is {token}, but the LLM has {llm_rows} token embeddings; take the config.json that belongs "
                "to these weights"
            )


def load_blip2(
    folder: HubFolder, settings: Blip2Config, config: ModelConfig, dtype: torch.dtype, ledger: Ledger, meta: bool
) -> Blip2ForConditionalGeneration:
    """BLIP-2 with the text feed-forward layers still to be filled, its Q-Former and projection in fp32, the rest in ``dtype``.

    One shard is in memory beside the model at any time. On the meta device (``meta``) no tensor is read.

    Raises:
        CheckpointError: weights missing, left over, of another shape, or twins that differ; names file and keys.
    """
    qformer_config_of(settings).use_qformer_text_input = True
    if config.numerics == "lavis":
        _lavis_config(settings)
    with torch.device("meta"):
        skeleton = Blip2ForConditionalGeneration(settings)
    places = skeleton.state_dict()
    text_names = {
        name.removeprefix("blip2.") for name in stage1_names(qformer_config_of(settings).num_hidden_layers).values()
    }
    tied = dict(skeleton.all_tied_weights_keys)
    if getattr(settings.text_config, "scale_decoder_outputs", None) is False:
        # FlanT5: its head is not its embedding, though the library would quietly put that in the head's place.
        tied.pop("language_model.lm_head.weight", None)
    shards = _compare(folder, settings, {n: t for n, t in places.items() if n not in text_names}, tied, ledger)
    blip2 = nn.Module.to(skeleton, dtype) if meta else _read(folder, config, settings, places, tied, dtype)
    if config.numerics == "lavis":
        blip2.vision_model.post_layernorm.eps = LN_VISION_EPS
    for name in blip2.state_dict():
        if name not in text_names:
            key = name if name in shards else _twin(name, tied, shards)
            assert key is not None, name  # else it was listed as missing
            ledger.assign(f"blip2.{name}", f"{ROLE}/{shards[key].name}{FROM}{key}")
    return blip2


def _lavis_config(settings: Blip2Config) -> None:
    """Differences that must be settled before the module is made."""
    text = llm_config_of(settings)
    if text.model_type == "t5":
        text.dense_act_fn = "gelu"  # LAVIS blip2_t5.py:83
    elif text.model_type == "opt":
        text.vocab_size = OPT_VOCABULARY.get(text.vocab_size, text.vocab_size)


def _compare(
    folder: HubFolder, settings: Blip2Config, expected: dict[str, Tensor], tied: dict[str, str], ledger: Ledger
) -> dict[str, Path]:
    """Weight -> its shard, after every name and shape was compared with the model's, from headers alone."""
    headers = folder.headers()
    buffers = [name for name in headers if name not in expected and _BUFFERS.search(name)]
    for name in buffers:
        ledger.leave_out(f"{ROLE}/{headers.pop(name)[0].name}", [name], "a buffer that the model computes")
    shards = {name: shard for name, (shard, _) in headers.items()}
    missing = [name for name in expected if name not in shards and not _twin(name, tied, shards)]
    unexpected = [name for name in shards if name not in expected]
    shapes = [
        f"{name} {list(headers[name][1].shape)} instead of {list(place.shape)}"
        for name, place in expected.items()
        if name in headers and not _fits(name, headers[name][1], place, settings)
    ]
    problems = {"lacks": missing, "has no place for": unexpected, "has in another shape": shapes}
    found = [f"{what} {len(keys)} weights: {listing(sorted(keys))}" for what, keys in problems.items() if keys]
    if found:
        where = {shards[name].name for name in unexpected}
        hint = _hint(missing, unexpected)
        files = f" (files {', '.join(sorted(where))})" if where else ""
        raise CheckpointError(f"{folder.path} {'; it '.join(found)}{files}; {hint}")
    return shards


def _hint(missing: list[str], unexpected: list[str]) -> str:
    llm = [name for name in (*missing, *unexpected) if name.startswith("language_model.")]
    if any(name.startswith(("vision_projection", "text_projection", "itm_head", "embeddings.")) for name in unexpected):
        return "this is a matching checkpoint (blip2-itm-*): name a generation checkpoint here, this one as text_branch"
    if missing and unexpected and len(llm) == len(missing) + len(unexpected):
        return "config.json and weights describe different LLMs: download both from one repository"
    return "is it a complete BLIP-2 generation checkpoint with its own config.json? download it again"


def _fits(name: str, found: Tensor, place: Tensor, settings: Blip2Config) -> bool:
    if found.shape == place.shape:
        return True
    rows = llm_config_of(settings).vocab_size  # only a table that LAVIS has without its padding may be longer
    return (
        name in _OPT_TABLES
        and OPT_VOCABULARY.get(found.shape[0]) == rows == place.shape[0]
        and found.shape[1:] == place.shape[1:]
    )


def _twin(name: str, tied: dict[str, str], present: dict[str, Path]) -> str | None:
    """The stored weight that the model ties ``name`` to, if any."""
    source = tied.get(name, name)
    group = [source, *(target for target, origin in tied.items() if origin == source)]
    return next((member for member in group if member != name and member in present), None)


def _read(
    folder: HubFolder,
    config: ModelConfig,
    settings: Blip2Config,
    places: dict[str, Tensor],
    tied: dict[str, str],
    dtype: torch.dtype,
) -> Blip2ForConditionalGeneration:
    """The module with its numbers: each shard is read, cast and let go."""
    state: dict[str, Tensor] = {}
    for shard, tensors in folder.read(read_tensors):
        for name in list(tensors):
            tensor = tensors.pop(name)
            if name not in places:
                continue  # a buffer, noted above
            tensor = tensor[: places[name].shape[0]] if tensor.ndim else tensor
            if config.numerics == "lavis" and name.endswith("self_attn.qkv.bias"):
                _check_key_bias(shard, name, tensor)
            # A copy in any case: a mapped file must not change or vanish under the model.
            kept = torch.float32 if name.startswith(_FP32) or not tensor.is_floating_point() else dtype
            state[name] = tensor.to(kept, copy=True) if tensor.is_floating_point() else tensor.clone()
    if llm_config_of(settings).model_type == "t5":
        _merge_twins(folder, state, tied)
    exact = {name: tensor for name, tensor in state.items() if name.startswith(_FP32)}
    blip2 = _module(folder, config, settings, state, dtype)
    blip2.qformer.float()  # its text feed-forward layers too, before they are filled
    for name, parameter in blip2.named_parameters():
        if name in exact:
            parameter.data = exact[name]
    return blip2


def _check_key_bias(shard: Path, name: str, bias: Tensor) -> None:
    if bias.chunk(3)[1].any():
        raise CheckpointError(
            f"{shard}: the key part of {name} is not zero, and LAVIS's ViT has none; use model.numerics: hf"
        )


def _merge_twins(folder: HubFolder, state: dict[str, Tensor], tied: dict[str, str]) -> None:
    """Drop stored copies of T5's shared embedding (``.bin`` files have three); its own head stays."""
    for name, source in tied.items():
        if name.endswith("embed_tokens.weight") and name in state and source in state:
            if not state[name].equal(state[source]):
                raise CheckpointError(f"{folder.path}: {name} differs from {source}, but the model ties them")
            del state[name]


def _module(
    folder: HubFolder, config: ModelConfig, settings: Blip2Config, state: dict[str, Tensor], dtype: torch.dtype
) -> Blip2ForConditionalGeneration:
    llm_attention = config.attention if llm_kind(settings) == "decoder" else "sdpa"
    if llm_attention != config.attention:
        llm = llm_config_of(settings).model_type
        log.warning(
            "model.attention: %r covers the ViT only; the %s LLM of %s uses sdpa", config.attention, llm, folder.path
        )
    attention = {"": "sdpa", "vision_config": config.attention, "qformer_config": "sdpa", "text_config": llm_attention}
    with quiet_loading():  # it announces missing keys as a table; ours is the stricter report
        try:
            # With output_loading_info it returns two things, which its declared type does not say.
            loaded: Any = Blip2ForConditionalGeneration.from_pretrained(
                None,
                config=settings,
                state_dict=state,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                trust_remote_code=False,
            )
            blip2: Blip2ForConditionalGeneration = loaded[0]
            info: dict[str, Any] = loaded[1]
            if (folder.path / "generation_config.json").is_file():
                # Not by from_pretrained, which would keep trust_remote_code as a setting.
                blip2.generation_config = GenerationConfig.from_dict(read_json(folder.path / "generation_config.json"))
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            if "scaled_dot_product_attention" in str(error) and llm_attention != "eager":
                llm = llm_config_of(settings).model_type
                raise CheckpointError(
                    f"model.attention: {config.attention!r} is not available for the {llm} LLM of {folder.path}; set model.attention=eager"
                ) from error
            raise CheckpointError(f"transformers cannot load {folder.path}: {error}") from error
    blip2.config._name_or_path = str(folder.path)  # noqa: SLF001 (as from_pretrained(folder) leaves it)
    text_missing = {n for n in info["missing_keys"] if ".intermediate.dense." in n or ".output." in n}
    surprises = (set(info["missing_keys"]) - text_missing) | info["unexpected_keys"] | info["mismatched_keys"]
    assert not surprises, surprises  # names and shapes were compared before
    return blip2
