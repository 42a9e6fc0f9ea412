"""Config to model: reads the foundation, wires ``RegionBLIP``, starts the new parts, and accounts for every weight.

Used by training, prediction and the parameter counts (``build_meta``: sizes without a single number).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig
from transformers.utils import logging as transformers_logging

from rb.core.config import ModelConfig
from rb.core.modality import modality_spec
from rb.core.seeding import torch_generator
from rb.core.text import TextProcessor
from rb.model.parts import INITIAL_TEMPERATURE
from rb.model.point_encoder import PointBert, PointBertConfig, from_original, infer_config
from rb.model.qformer import TextBranch
from rb.model.region_blip import RegionBLIP
from rb.model.weights.ledger import Ledger, listing, plain_name
from rb.model.weights.point_qformer import point_qformer_start
from rb.model.weights.readers import CheckpointError, fingerprint, read_json, read_tensors, weights_file
from rb.model.weights.text_branch import HEADS, check_stage1, stage1_names

PUBLIC_ITC_WIDTH = 256
PUBLIC_QFORMER_VOCABULARY = 30523  # bert-base-uncased and [DEC]


@dataclass
class Built:
    """A model, its book, and the foundation's identity (``{part: fingerprint}``)."""

    model: RegionBLIP
    ledger: Ledger
    foundation: dict[str, str]


def text_processor(config: ModelConfig) -> TextProcessor:
    """The tokenizers of a foundation."""
    folder = _blip2_folder(config)
    kind = _llm_kind(_blip2_config(folder, config.llm))
    qformer = Path(config.foundation.text_branch)
    return TextProcessor.from_folders(
        qformer if qformer.is_dir() else qformer.parent, folder, kind, config.max_text_tokens, config.prompt
    )


def image_settings(config: ModelConfig) -> dict[str, Any]:
    """Side, mean and standard deviation of images, from the foundation's ``preprocessor_config.json``."""
    tree = read_json(_blip2_folder(config) / "preprocessor_config.json")
    try:
        size = tree["size"]
        side = size["height"] if isinstance(size, dict) else int(size)
        return {
            "size": int(side),
            "mean": tuple(map(float, tree["image_mean"])),
            "std": tuple(map(float, tree["image_std"])),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"preprocessor_config.json of {config.foundation.blip2} lacks size, image_mean or image_std"
        ) from error


def build_model(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> Built:
    """The model with every weight in place, frozen parts in their type, on ``device``.

    Raises:
        CheckpointError: a folder, file or weight of the foundation is missing, left over or of another shape; lists them.
    """
    device = torch.device(device)
    dtype = frozen_dtype(config, device)
    ledger = Ledger()
    folder = _blip2_folder(config)
    blip2 = _load_blip2(folder, config, dtype, ledger)
    stage1_path = weights_file(config.foundation.text_branch, "model.foundation.text_branch", "text_branch")
    stage1 = read_tensors(stage1_path)
    qformer_config = blip2.config.qformer_config
    names = stage1_names(qformer_config.num_hidden_layers)
    left_out = check_stage1(stage1, names, stage1_path)
    ledger.leave_out(str(stage1_path), left_out, "the generation checkpoint's own version is used, or tied")
    text_branch = TextBranch(_text_config(qformer_config, stage1), text_processor(config).dec_token_id)
    point_encoder, point_files = _load_points(config, ledger)
    itc_width = stage1["vision_proj.weight"].shape[0]
    model = RegionBLIP(blip2, text_branch, point_encoder, config, itc_width, seed)
    _fill(
        model,
        {target: (stage1[key], f"{stage1_path.name} : {key}") for key, target in names.items()},
        ledger,
        stage1_path,
    )
    _start_parts(model, config, seed, stage1, stage1_path, ledger)
    _settle_dtypes(model, dtype)
    ledger.check(model)
    foundation = {
        "blip2": fingerprint([folder / "config.json", *_weight_files(folder)]),
        "text_branch": fingerprint([stage1_path]),
    }
    if point_files:
        foundation["point_encoder"] = fingerprint(point_files)
    return Built(model.to(device), ledger, foundation)


def build_meta(
    config: ModelConfig,
    blip2_config: Blip2Config,
    point_config: PointBertConfig | None,
    itc_width: int = PUBLIC_ITC_WIDTH,
    qformer_vocabulary: int = PUBLIC_QFORMER_VOCABULARY,
) -> RegionBLIP:
    """The model of given configs on the meta device: names and shapes only, for counts and checks."""
    _enable_text_input(blip2_config)
    with torch.device("meta"):
        blip2 = Blip2ForConditionalGeneration(blip2_config)
        qformer = Blip2QFormerConfig(**{**blip2_config.qformer_config.to_dict(), "vocab_size": qformer_vocabulary})
        text_branch = TextBranch(qformer, qformer_vocabulary - 1)
        point_encoder = PointBert(point_config) if point_config is not None else None
        return RegionBLIP(blip2, text_branch, point_encoder, config, itc_width)


def frozen_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Type of the frozen encoders and the LLM: bf16 on a GPU, fp32 on a CPU (bf16 is 40 times slower there)."""
    if config.frozen_dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.frozen_dtype]


def _blip2_folder(config: ModelConfig) -> Path:
    if not config.foundation.blip2:
        raise CheckpointError("model.foundation.blip2 is not set; name a Hugging Face BLIP-2 folder in the run file")
    folder = Path(config.foundation.blip2)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"model.foundation.blip2: {folder} is no Hugging Face model folder (it holds no config.json)"
        )
    return folder


def _llm_kind(config: Blip2Config) -> str:
    return "encoder_decoder" if config.text_config.is_encoder_decoder else "decoder"


def _blip2_config(folder: Path, llm: str) -> Blip2Config:
    """The folder's config; an error where its LLM is not of the kind that ``model.llm`` asks for."""
    tree = read_json(folder / "config.json")
    if tree.get("model_type") != "blip-2":
        raise CheckpointError(f"{folder}/config.json describes a {tree.get('model_type')!r} model, not 'blip-2'")
    found = Blip2Config.from_pretrained(folder, local_files_only=True)
    if llm not in ("auto", _llm_kind(found)):
        raise CheckpointError(
            f"model.foundation.blip2: {folder} holds a {found.text_config.model_type} LLM, which is of kind {_llm_kind(found)!r}, "
            f"but model.llm is {llm!r}; name a folder of that kind, or change model.llm"
        )
    return found


def _enable_text_input(config: Blip2Config) -> None:
    config.qformer_config.use_qformer_text_input = True


def _weight_files(folder: Path) -> list[Path]:
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not files:
        raise CheckpointError(f"{folder} holds no *.safetensors or pytorch_model*.bin")
    return files


def _load_blip2(folder: Path, config: ModelConfig, dtype: torch.dtype, ledger: Ledger) -> Blip2ForConditionalGeneration:
    """BLIP-2 by transformers, with its loading report held against what a generation checkpoint must have."""
    blip2_config = _blip2_config(folder, config.llm)
    _weight_files(folder)
    _enable_text_input(blip2_config)
    llm_attention = config.attention if not blip2_config.text_config.is_encoder_decoder else "sdpa"
    attention = {"": "sdpa", "vision_config": config.attention, "qformer_config": "sdpa", "text_config": llm_attention}
    verbosity = transformers_logging.get_verbosity()
    # It announces missing keys as a table and shows a bar; ours is the stricter report.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        blip2, info = Blip2ForConditionalGeneration.from_pretrained(
            folder,
            config=blip2_config,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are an error just below, by name
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"transformers cannot load {folder}: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
    text_names = {
        t.removeprefix("blip2.") for t in stage1_names(blip2_config.qformer_config.num_hidden_layers).values()
    }
    missing = sorted(set(info["missing_keys"]) - text_names)
    problems = {
        "lacks": missing,
        "has no place for": sorted(info["unexpected_keys"]),
        "has in another shape": sorted(str(row[0]) for row in info["mismatched_keys"]),
    }
    for what, keys in problems.items():
        if keys:
            raise CheckpointError(
                f"{folder} {what} {len(keys)} weights: {listing(keys)}; is it a complete BLIP-2 checkpoint?"
            )
    for name in blip2.state_dict():
        if name not in text_names:
            ledger.assign(f"blip2.{name}", f"{folder.name} : {name}")
    return blip2


def _text_config(qformer_config: Blip2QFormerConfig, stage1: dict[str, Tensor]) -> Blip2QFormerConfig:
    """The Q-Former's config with the sizes of the stage-1 embeddings: generation checkpoints state BERT's, without [DEC]."""
    words = stage1["Qformer.bert.embeddings.word_embeddings.weight"].shape[0]
    positions = stage1["Qformer.bert.embeddings.position_embeddings.weight"].shape[0]
    return Blip2QFormerConfig(**{**qformer_config.to_dict(), "vocab_size": words, "max_position_embeddings": positions})


def _load_points(config: ModelConfig, ledger: Ledger) -> tuple[PointBert | None, list[Path]]:
    if not any(modality_spec(name).source == "points" for name in config.train_modalities):
        return None, []
    path = weights_file(config.foundation.point_encoder, "model.foundation.point_encoder", "point_bert")
    config_path = path.with_name(
        "config.json"
    )  # the original files carry none: then the public sizes and the shapes decide
    try:
        given = PointBertConfig(**read_json(config_path)) if config_path.is_file() else None
        own = from_original(read_tensors(path), given)
    except TypeError as error:
        raise CheckpointError(f"{config_path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    encoder = PointBert(given or infer_config(own))
    encoder.load_state_dict(own)
    for name in encoder.state_dict():
        ledger.assign(f"point_encoder.{name}", f"{path.name} : as {name}")
    return encoder, [path, *([config_path] if given else [])]


def _fill(model: nn.Module, weights: dict[str, tuple[Tensor, str]], ledger: Ledger, path: Path) -> None:
    """Copy tensors into named weights of the model; shapes must be equal."""
    targets = {plain_name(name): tensor for name, tensor in model.state_dict().items()}
    for target, (tensor, origin) in weights.items():
        place = targets[target]
        if place.shape != tensor.shape:
            raise CheckpointError(
                f"{path}: weight for {target} has shape {list(tensor.shape)}, the model needs {list(place.shape)}"
            )
        place.copy_(tensor)
        ledger.assign(target, origin)


def _start_parts(
    model: RegionBLIP, config: ModelConfig, seed: int, stage1: dict[str, Tensor], stage1_path: Path, ledger: Ledger
) -> None:
    """New parts: copies of BLIP-2's and of the text branch's heads where the config says so, keyed draws elsewhere."""
    copies: dict[str, tuple[Tensor, str]] = {}
    for modality in model.parts:
        prefix = f"parts.{modality}"
        if config.init.query_tokens == "blip2":
            copies[f"{prefix}.query_tokens"] = (model.blip2.query_tokens.data, "blip2 copy : query_tokens")
        if config.init.language_projection == "blip2":
            for kind in ("weight", "bias"):
                source = getattr(model.blip2.language_projection, kind).data
                copies[f"{prefix}.language_projection.{kind}"] = (source, f"blip2 copy : language_projection.{kind}")
        if config.init.heads == "source":
            for key, name in HEADS.items():
                shared = model.shared_heads is not None and not name.startswith("vision_proj")
                copies[f"shared_heads.{name}" if shared else f"{prefix}.{name}"] = (
                    stage1[key].reshape(-1) if key == "temp" else stage1[key],
                    f"{stage1_path.name} : {key}",
                )
    copies |= point_qformer_start(model)
    _fill(model, copies, ledger, stage1_path)
    for name, parameter in model.trainable_parameters().items():
        if plain_name(name) not in ledger.origins:  # a layer with LoRA trains too, where the whole Q-Former does
            ledger.assign(name, _start(model, name, parameter, config, seed))


def _start(model: nn.Module, name: str, parameter: Tensor, config: ModelConfig, seed: int) -> str:
    """Start one new weight by rule and name the rule."""
    if "lora_" in name:
        return "init : LoRA, A uniform, B zero"
    if config.init.pafe == "zero" and ".pafe.fc2." in name:
        return "init : zero"
    with torch.no_grad():
        if name.endswith(".temperature"):
            parameter.fill_(INITIAL_TEMPERATURE)
            return f"init : {INITIAL_TEMPERATURE}"
        if name.endswith(".query_tokens"):
            parameter.copy_(torch.randn(parameter.shape, generator=torch_generator(seed, name)) * 0.02)
            return "init : N(0, 0.02)"
        parameter.copy_(_default_draw(model, name, parameter, seed))
    return "init : PyTorch's default for Linear"


def _default_draw(model: nn.Module, name: str, parameter: Tensor, seed: int) -> Tensor:
    """PyTorch's default for a Linear, U(-1, 1) / sqrt(fan in) for weight and bias, keyed by name, so no other draw shifts it."""
    module = model.get_submodule(name.rpartition(".")[0])
    assert isinstance(module, nn.Linear), f"{name} has no named start"
    bound = module.in_features**-0.5
    return (torch.rand(parameter.shape, generator=torch_generator(seed, name)) * 2 - 1) * bound


def _settle_dtypes(model: RegionBLIP, dtype: torch.dtype) -> None:
    """Encoders and LLM in ``dtype``; the Q-Former, the text branch and all that trains in fp32 (fp16 Q-Formers overflow)."""
    if model.point_encoder is not None:
        model.point_encoder.cast_frozen(dtype)
    for module in (
        model.blip2.qformer,
        model.text_branch,
        model.parts,
        model.blip2.language_projection,
        *(m for m in (model.point_qformer, model.point_text_branch) if m is not None),
    ):
        module.float()
    model.blip2.query_tokens.data = model.blip2.query_tokens.data.float()
    for parameter in model.trainable_parameters().values():
        parameter.data = parameter.data.float()
