"""Config to model: reads the foundation, wires ``RegionBLIP``, starts the new parts, and accounts for every weight.

Used by training, prediction and the parameter counts (``build_meta``: sizes without a single number).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig

from rb.core.config import ModelConfig
from rb.core.fingerprints import fingerprint
from rb.core.seeding import torch_generator
from rb.core.text import TextProcessor
from rb.model.blip2_config import qformer_config_of
from rb.model.parts import INITIAL_TEMPERATURE
from rb.model.point_encoder import PointBert, PointBertConfig
from rb.model.qformer import TextBranch
from rb.model.region_blip import RegionBLIP
from rb.model.weights.blip2 import blip2_config, check_config_ids, folder_of, llm_kind, load_blip2
from rb.model.weights.ledger import Ledger, plain_name
from rb.model.weights.point_qformer import bert_folder, point_qformer_start
from rb.model.weights.points import load_points
from rb.model.weights.readers import CheckpointError, read_headers, read_json, read_tensors
from rb.model.weights.recipes import HEAD_ROLE, TextBranchWeights, Weights, read_text_branch, tokenizer_folder
from rb.sources.images import Normalisation

PUBLIC_ITC_WIDTH = 256
MAX_SIDE = 4096  # pixels of an image as the ViT sees it
PUBLIC_QFORMER_VOCABULARY = 30523  # bert-base-uncased and [DEC]


@dataclass
class Built:
    """A model and what else was read of its foundation, so that nothing is read twice.

    Attributes:
        ledger: where every weight came from.
        text: the tokenizers.
        report: digest of the ledger.
        files: of each part of the foundation.
        image_side: pixels of a side, as the foundation's image processor has it.
    """

    config: ModelConfig
    model: RegionBLIP
    ledger: Ledger
    text: TextProcessor
    report: str
    files: dict[str, list[Path]]
    image_side: int

    @cached_property
    def foundation(self) -> dict[str, str]:
        """The foundation's identity: fingerprints of its parts, recipe, numerics, digest of the ledger. Reads every byte of the files."""
        fingerprints = {part: fingerprint(paths) for part, paths in self.files.items()}
        return fingerprints | {
            "recipe": self.config.text_branch,
            "numerics": self.config.numerics,
            "report": self.report,
        }


def text_processor(config: ModelConfig) -> TextProcessor:
    """The tokenizers of a foundation."""
    folder = folder_of(config).path
    return _text_processor(config, folder, blip2_config(folder, config.llm))


def _text_processor(config: ModelConfig, folder: Path, settings: Blip2Config) -> TextProcessor:
    kind = llm_kind(settings)
    return TextProcessor.from_folders(tokenizer_folder(config), folder, kind, config.max_text_tokens, config.prompt)


def _image_settings(config: ModelConfig) -> tuple[int, Normalisation]:
    """Side and normalisation of images, from the foundation's ``preprocessor_config.json``."""
    tree = read_json(Path(config.foundation.blip2) / "preprocessor_config.json")
    try:
        size = tree["size"]
        side = size["height"] if isinstance(size, dict) else int(size)
        if not 0 < int(side) <= MAX_SIDE:
            raise ValueError(f"size {side}")
        mean, std = (tuple(map(float, tree[name])) for name in ("image_mean", "image_std"))
        return int(side), Normalisation(mean, std)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"preprocessor_config.json of {config.foundation.blip2} lacks size (1 to {MAX_SIDE}), image_mean or image_std"
        ) from error


def build_model(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> Built:
    """The model with every weight in place, frozen parts in their type, on ``device``.

    On the meta device the same is done with names, shapes and types alone: the files' headers are read, no tensor is.

    Raises:
        CheckpointError: a folder, file or weight of the foundation is missing, left over or of another shape; lists them.
        ValueError: a tokenizer gives ids for which the model has no embedding.
    """
    device = torch.device(device)
    meta = device.type == "meta"
    dtype, ledger = frozen_dtype(config, device), Ledger()
    folder = folder_of(config)
    settings = blip2_config(folder.path, config.llm)
    image_side, normalisation = _image_settings(config)
    blip2 = load_blip2(folder, settings, config, dtype, ledger, meta)
    qformer_config = qformer_config_of(blip2.config)
    branch = read_text_branch(config, qformer_config.num_hidden_layers, ledger, meta)
    text = _text_processor(config, folder.path, settings)
    llm_rows = blip2.language_model.get_input_embeddings().weight.shape[0]
    text.check_fits(branch.vocabulary, branch.positions, llm_rows)
    check_config_ids(blip2.config, llm_rows, folder.path)
    with torch.device("meta" if meta else "cpu"):
        text_branch = TextBranch(_text_config(qformer_config, branch), text.dec_token_id)
    point_encoder, point_files = load_points(
        config, ledger, read_headers if meta else read_tensors, "meta" if meta else "cpu"
    )
    itc_width = branch.itc_width or blip2.config.image_text_hidden_size
    with torch.device("meta" if meta else "cpu"):
        model = RegionBLIP(blip2, text_branch, point_encoder, config, itc_width, seed, normalisation)
    _fill(model, branch.weights, ledger)
    _start_parts(model, config, seed, branch, ledger)
    settle_dtypes(model, dtype)
    ledger.check(model)
    files = {"blip2": folder.files, "text_branch": branch.files}
    if branch.head:
        files[HEAD_ROLE] = branch.head
    if point_files:
        files["point_encoder"] = point_files
    if model.point_qformer is not None and config.init.point_qformer == "bert":
        files["point_qformer"] = bert_folder(config).files
    return Built(config, model.to(device), ledger, text, ledger.digest(model), files, image_side)


def build_meta(
    config: ModelConfig,
    hub_config: Blip2Config,
    point_config: PointBertConfig | None,
    itc_width: int = PUBLIC_ITC_WIDTH,
    qformer_vocabulary: int = PUBLIC_QFORMER_VOCABULARY,
) -> RegionBLIP:
    """The model of given configs on the meta device: names and shapes only, for counts and checks."""
    qformer_config_of(hub_config).use_qformer_text_input = True
    with torch.device("meta"):
        blip2 = Blip2ForConditionalGeneration(hub_config)
        qformer = Blip2QFormerConfig(**{**qformer_config_of(hub_config).to_dict(), "vocab_size": qformer_vocabulary})
        text_branch = TextBranch(qformer, qformer_vocabulary - 1)
        point_encoder = PointBert(point_config) if point_config is not None else None
        return RegionBLIP(blip2, text_branch, point_encoder, config, itc_width)


def frozen_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Type of the frozen encoders and the LLM: bf16 on a GPU, fp32 on a CPU (bf16 is 40 times slower there)."""
    if config.frozen_dtype == "auto":
        on_gpu = (
            torch.cuda.is_available() if device.type == "meta" else device.type == "cuda"
        )  # meta: as a run here would
        return torch.bfloat16 if on_gpu else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.frozen_dtype]


def _text_config(qformer_config: Blip2QFormerConfig, text: TextBranchWeights) -> Blip2QFormerConfig:
    """The Q-Former's config with the sizes of the text branch: generation checkpoints state BERT's, without [DEC]."""
    sizes = {"vocab_size": text.vocabulary, "max_position_embeddings": text.positions}
    return Blip2QFormerConfig(**{**qformer_config.to_dict(), **sizes})


def _fill(model: nn.Module, weights: Weights, ledger: Ledger) -> None:
    """Copy tensors into named weights of the model; shapes must be equal."""
    targets = {plain_name(name): tensor for name, tensor in model.state_dict().items()}
    for target, (tensor, origin) in weights.items():
        place = targets[target]
        if place.shape != tensor.shape:
            raise CheckpointError(
                f"{origin}, the weight for {target}, has shape {list(tensor.shape)}, the model needs {list(place.shape)}; "
                "files of different models may be mixed in model.foundation"
            )
        place.copy_(tensor)
        ledger.assign(target, origin)


def _start_parts(model: RegionBLIP, config: ModelConfig, seed: int, text: TextBranchWeights, ledger: Ledger) -> None:
    """New parts: copies of BLIP-2's and of the text branch's heads where the config says so, keyed draws elsewhere."""
    copies: Weights = {}
    meta = model.device.type == "meta"
    for modality in model.parts:
        prefix = f"parts.{modality}"
        if config.init.query_tokens == "blip2":
            copies[f"{prefix}.query_tokens"] = (model.blip2.query_tokens.data, "blip2 copy : query_tokens")
        if config.init.language_projection == "blip2":
            for kind in ("weight", "bias"):
                source = getattr(model.blip2.language_projection, kind).data
                copies[f"{prefix}.language_projection.{kind}"] = (source, f"blip2 copy : language_projection.{kind}")
        if config.init.heads == "source":
            for name, head in text.heads.items():
                shared = model.shared_heads is not None and not name.startswith("vision_proj")
                copies[f"shared_heads.{name}" if shared else f"{prefix}.{name}"] = head
    copies |= point_qformer_start(model, config, seed, ledger, read_headers if meta else read_tensors)
    _fill(model, copies, ledger)
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


def settle_dtypes(model: RegionBLIP, dtype: torch.dtype) -> None:
    """Encoders and LLM in ``dtype``; all that trains in fp32, and so the Q-Former and its text branch (fp16 Q-Formers overflow).

    Where ``dtype`` is bf16, autocast runs the products of the Q-Former in bf16. Of weights that are frozen it would make a copy at each use;
    they are rounded here instead, once, to the same numbers. Embeddings and LayerNorms stay in fp32.
    """
    if model.point_encoder is not None:
        model.point_encoder.cast_frozen(dtype)
    separate = [m for m in (model.point_qformer, model.point_text_branch) if m is not None]
    for module in (model.blip2.qformer, model.text_branch, model.parts, model.blip2.language_projection, *separate):
        module.float()
    model.blip2.query_tokens.data = model.blip2.query_tokens.data.float()
    for parameter in model.trainable_parameters().values():
        parameter.data = parameter.data.float()
    if dtype == torch.float32:
        return
    for module in (*model.blip2.qformer.modules(), *model.text_branch.modules()):
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.to(dtype)
    model.text_branch.round_head(dtype)
