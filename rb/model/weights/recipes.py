"""The three ways to a Q-Former text branch (``model.text_branch``): ``stage1``, ``hub-itm``, ``bert``. One function each, one table.

No public generation checkpoint has it; only LAVIS's stage-1 file has all of it. ``hub-itm`` takes embeddings, feed-forward layers and
heads from ``blip2-itm-vit-g`` and the LM head from BERT; ``bert`` takes all from BERT, as the released code does. Used by ``build.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from rb.core.config import ModelConfig
from rb.core.seeding import torch_generator
from rb.model.weights.hub_folder import HubFolder, open_folder
from rb.model.weights.ledger import FROM, Ledger, listing
from rb.model.weights.readers import CheckpointError, Reader, read_headers, read_tensors, weights_file
from rb.model.weights.text_branch import HEADS, check_stage1, stage1_names

OPTION = "model.foundation.text_branch"
BERT_OPTION = "model.foundation.bert"
ROLE, HEAD_ROLE = "text_branch", "text_head"
WORD_TABLE = "text_branch.embeddings.word_embeddings.weight"
DEC_ROW, LM_BIAS = "dec_row", "bias"  # of foundation.text_head: [D], [vocabulary]
STAGE1_NAMES = ("text_branch", "blip2_pretrained")
DEC_STD = 0.02  # of the row that [DEC] gets in BERT's table (BERT's own initializer_range)
_LEFT_TO_BLIP2 = "the generation checkpoint's own version is used, or tied"
_ITM_HEADS = {
    "vision_projection.weight": "vision_proj.weight",
    "vision_projection.bias": "vision_proj.bias",
    "text_projection.weight": "text_proj.weight",
    "text_projection.bias": "text_proj.bias",
    "itm_head.weight": "itm_head.weight",
    "itm_head.bias": "itm_head.bias",
}
_ITM_OTHER = re.compile(
    r"vision_model\.|query_tokens$|qformer\.layernorm\.|embeddings\.position_ids$|qformer\.embeddings\.position_ids$"
    r"|qformer\.encoder\.layer\.\d+\.(attention|crossattention|intermediate_query|output_query)\."
)
_BERT_OTHER = re.compile(
    r"embeddings\.|pooler\.|cls\.seq_relationship\.|encoder\.layer\.|cls\.predictions\.decoder\."  # where they are not asked for
)
Weights = dict[str, tuple[Tensor, str]]


@dataclass
class TextBranchWeights:
    """What a recipe found.

    Attributes:
        weights: target in the model -> (tensor, origin): all of the frozen text branch.
        heads: name inside a modality's parts (``vision_proj.weight``, ``temperature``, ...) -> the same; what is absent starts by rule.
        files: everything that its identity depends on.
        head: the file of ``foundation.text_head``, if one is given.
    """

    weights: Weights
    heads: Weights
    files: list[Path] = field(default_factory=list)
    head: list[Path] = field(default_factory=list)

    @property
    def vocabulary(self) -> int:
        """Rows of the word table, [DEC] included."""
        return int(self.weights[WORD_TABLE][0].shape[0])

    @property
    def positions(self) -> int:
        """Rows of the position table."""
        return int(self.weights["text_branch.embeddings.position_embeddings.weight"][0].shape[0])

    @property
    def itc_width(self) -> int | None:
        """Width of the ITC space, where the source has its projections."""
        head = self.heads.get("vision_proj.weight")
        return None if head is None else int(head[0].shape[0])


def read_text_branch(config: ModelConfig, num_layers: int, ledger: Ledger, meta: bool) -> TextBranchWeights:
    """Weights by the recipe of ``config.text_branch`` for a Q-Former of ``num_layers`` layers; headers only on the meta device.

    Raises:
        CheckpointError: files or weights missing or left over; names file, keys and what to do.
    """
    reader = read_headers if meta else read_tensors
    found = RECIPES[config.text_branch](config, num_layers, ledger, reader)
    return _with_text_head(found, config.foundation.text_head, reader) if config.foundation.text_head else found


def _with_text_head(branch: TextBranchWeights, path: str, reader: Reader) -> TextBranchWeights:
    """The row of [DEC] and the LM head's bias of ``foundation.text_head`` over the recipe's own."""
    file = Path(path)
    tensors = reader(file)
    table, origin = branch.weights[WORD_TABLE]
    for key, shape in ((DEC_ROW, table.shape[1:]), (LM_BIAS, branch.weights[f"text_branch.{LM_BIAS}"][0].shape)):
        if key not in tensors or tensors[key].shape != shape:
            raise CheckpointError(
                f"{file}: needs {key} of shape {list(shape)} for this text branch; model.foundation.text_head is a file that "
                "rb import-released wrote for the same foundation"
            )
    if not table.is_meta:  # [DEC] is the last word: it was added to BERT's
        table = torch.cat([table[:-1], tensors[DEC_ROW][None].to(table)])
    source = f"{HEAD_ROLE}/{file.name}"
    weights = branch.weights | {
        WORD_TABLE: (table, f"{origin}; row of [DEC]: {source}{FROM}{DEC_ROW}"),
        f"text_branch.{LM_BIAS}": (tensors[LM_BIAS], f"{source}{FROM}{LM_BIAS}"),
    }
    return replace(branch, weights=weights, head=[file])


def tokenizer_folder(config: ModelConfig) -> Path:
    """Where the Q-Former's tokenizer is: beside the text branch, else in the BERT folder."""
    path = Path(config.foundation.text_branch)
    path = path if path.is_dir() else path.parent
    has_one = any((path / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    return path if has_one or not config.foundation.bert else Path(config.foundation.bert)


def _stage1(config: ModelConfig, num_layers: int, ledger: Ledger, reader: Reader) -> TextBranchWeights:
    path = weights_file(config.foundation.text_branch, OPTION, *STAGE1_NAMES)
    tensors, names, source = reader(path), stage1_names(num_layers), f"{ROLE}/{path.name}"
    ledger.leave_out(source, check_stage1(tensors, names, path), _LEFT_TO_BLIP2)
    weights = {target: (tensors[key], f"{source}{FROM}{key}") for key, target in names.items()}
    heads = {
        name: (tensors[key].reshape(-1) if key == "temp" else tensors[key], f"{source}{FROM}{key}")
        for key, name in HEADS.items()
    }
    return TextBranchWeights(weights, heads, [path])


def _hub_itm(config: ModelConfig, num_layers: int, ledger: Ledger, reader: Reader) -> TextBranchWeights:
    if not config.foundation.text_branch:
        raise CheckpointError(f"{OPTION} is not set; model.text_branch: hub-itm needs a blip2-itm-vit-g folder there")
    folder = open_folder(Path(config.foundation.text_branch), OPTION)
    names = {
        key.removeprefix("Qformer.bert.").replace("encoder.", "qformer.encoder.", 1): target
        for key, target in stage1_names(num_layers).items()
        if key.startswith("Qformer.bert.")
    }
    heads = {key: f"heads.{name}" for key, name in _ITM_HEADS.items()}
    found = _take(folder, names | heads, _ITM_OTHER, ROLE, ledger, reader, "a blip2-itm-* checkpoint")
    if not config.foundation.bert:
        raise CheckpointError(
            f"{BERT_OPTION} is not set; the matching checkpoint has no LM head, which model.text_branch: hub-itm takes "
            "from a bert-base-uncased folder"
        )
    rows = found[WORD_TABLE][0].shape[0]
    lm_head, bert = _bert_weights(Path(config.foundation.bert), BERT_OPTION, None, ledger, reader)
    lm_head = _with_dec(lm_head, rows, bert.path)
    weights = {name: weight for name, weight in found.items() if not name.startswith("heads.")}
    return TextBranchWeights(
        weights | lm_head,
        {name.removeprefix("heads."): weight for name, weight in found.items() if name.startswith("heads.")},
        [*folder.files, *bert.files],
    )


def _bert(config: ModelConfig, num_layers: int, ledger: Ledger, reader: Reader) -> TextBranchWeights:
    folder = config.foundation.text_branch or config.foundation.bert
    if not folder:
        raise CheckpointError(f"{OPTION} is not set; model.text_branch: bert needs a bert-base-uncased folder there")
    weights, bert = _bert_weights(Path(folder), OPTION, num_layers, ledger, reader)
    rows = weights[WORD_TABLE][0].shape[0] + 1
    return TextBranchWeights(_with_dec(weights, rows, bert.path), {}, bert.files)


RECIPES: dict[str, Callable[[ModelConfig, int, Ledger, Reader], TextBranchWeights]] = {
    "stage1": _stage1,
    "hub-itm": _hub_itm,
    "bert": _bert,
}


def _bert_weights(
    path: Path, option: str, num_layers: int | None, ledger: Ledger, reader: Reader
) -> tuple[Weights, HubFolder]:
    """BERT's LM head under this model's names; with ``num_layers`` its embeddings and the feed-forward parts of its layers too."""
    folder = open_folder(path, option)
    names = {
        key.removeprefix("Qformer.").removeprefix("bert."): target
        for key, target in stage1_names(num_layers or 0).items()
        if num_layers is not None or key.startswith("Qformer.cls.")
    }
    return _take(folder, names, _BERT_OTHER, "bert", ledger, reader, "a bert-base-uncased with its LM head"), folder


def _take(
    folder: HubFolder,
    names: Mapping[str, str],
    other: re.Pattern[str],
    role: str,
    ledger: Ledger,
    reader: Reader,
    what: str,
) -> Weights:
    """The named weights of a folder; all others must match ``other``, or be layers that are not asked for."""
    found: Weights = {}
    unknown = []
    for shard, tensors in folder.read(reader):
        source = f"{role}/{shard.name}"
        left = []
        for key, tensor in tensors.items():
            plain = key.removeprefix("bert.") if role == "bert" else key
            plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            if plain in names:
                found[names[plain]] = (tensor, f"{source}{FROM}{key}")
            elif other.match(plain):
                left.append(key)
            else:
                unknown.append(key)
        ledger.leave_out(source, left, _LEFT_TO_BLIP2 if role == ROLE else "no part of the text branch, or tied")
    missing = sorted(set(names.values()) - set(found))
    if missing or unknown:
        keys = {target: key for key, target in names.items()}
        lacks = f" lacks {len(missing)} weights: {listing(keys[m] for m in missing)};" if missing else ""
        extra = f" has {len(unknown)} weights that this model has no place for: {listing(unknown)};" if unknown else ""
        raise CheckpointError(
            f"{folder.path}{lacks}{extra} it must be {what}: name such a folder, or choose another model.text_branch"
        )
    return found


def _with_dec(weights: Weights, rows: int, path: Path) -> Weights:
    """Word table and output bias with [DEC]'s row behind BERT's own: N(0, 0.02) drawn by a fixed key, and 0."""
    out = dict(weights)
    for name, rule in (
        (WORD_TABLE, "N(0, 0.02)"),
        ("text_branch.bias", "zero"),
    ):
        if name not in out:
            continue
        tensor, origin = out[name]
        if tensor.shape[0] != rows - 1:
            raise CheckpointError(
                f"{path}: {origin} has {tensor.shape[0]} rows, but the text branch has {rows} with [DEC]; "
                "both must come from the same vocabulary"
            )
        row = torch.zeros(1, *tensor.shape[1:])
        if rule != "zero":
            row = torch.randn(row.shape, generator=torch_generator("text_branch", "[DEC]")) * DEC_STD
        out[name] = (torch.cat([tensor, row.to(tensor)]), f"{origin}; row of [DEC]: {rule}")
    return out
