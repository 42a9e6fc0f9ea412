"""Point-BERT: a point cloud [B, N, C] becomes one class token and one token per group of points [B, 1+G, D].

The network of Yu et al. 2022 (arXiv 2111.14819), written with Linear and SDPA, with the names of its public weights
mapped both ways (`from_original`, `to_original`): Point-BERT's own pre-training and fine-tuned files, ULIP, PointLLM.
Reading files is rb/model/weights' business. Shape letters: B micro-batch, N points, G groups, K points per group, D
`trans_dim`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rb.model.grouping import farthest_point_sample, knn_group
from rb.sources.groups import Grouping

MLP_RATIO = 4  # of every public Point-BERT


@dataclass(frozen=True)
class PointBertConfig:
    """Sizes of a Point-BERT; the defaults are those of RegionBLIP and of ULIP (8,192 points, xyz only)."""

    trans_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    group_size: int = 32  # K
    num_group: int = 512  # G
    encoder_dims: int = 256
    in_channels: int = 3  # 3: xyz, 6: xyz and colour
    skip_near_origin: bool = False  # see `farthest_point_sample`

    def __post_init__(self) -> None:
        for name in ("trans_dim", "depth", "num_heads", "group_size", "num_group", "encoder_dims"):
            if getattr(self, name) < 1:
                raise ValueError(f"point encoder: {name} is {getattr(self, name)}; it must be at least 1")
        if self.in_channels < 3:
            raise ValueError(f"point encoder: in_channels is {self.in_channels}; it must be at least 3 (xyz first)")
        if self.trans_dim % self.num_heads:
            raise ValueError(
                f"point encoder: trans_dim {self.trans_dim} is not a multiple of num_heads {self.num_heads}"
            )

    @property
    def grouping(self) -> Grouping:
        """How it groups points."""
        return Grouping(self.num_group, self.group_size, self.skip_near_origin)


def _linear_fp32(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """The layer in float32 whatever autocast or the weights' type say: coordinates need more than bfloat16's 8 bits."""
    with torch.autocast(inputs.device.type, enabled=False):
        return F.linear(inputs.float(), layer.weight.float(), layer.bias.float())


def group_index(xyz: Tensor, how: Grouping) -> Tensor:
    """Indices [B, G, 1 + K] (int64) of each group in clouds [B, N, 3]: the picked centre, then its nearest points. Errors as of the two steps."""
    picked = farthest_point_sample(xyz, how.num_group, how.skip_near_origin).unsqueeze(-1)  # [B, G, 1]
    centres = xyz.gather(1, picked.expand(-1, -1, 3))
    return torch.cat((picked, knn_group(xyz, centres, how.group_size)), dim=-1)


class PatchEmbed(nn.Module):
    """The mini-PointNet: groups of points [B, G, K, C] -> [B, G, encoder_dims], a maximum over a group's points."""

    def __init__(self, in_channels: int, encoder_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, 128)
        self.bn1 = nn.BatchNorm1d(128)
        self.fc2 = nn.Linear(128, 256)
        self.fc3 = nn.Linear(512, 512)
        self.bn2 = nn.BatchNorm1d(512)
        self.fc4 = nn.Linear(512, encoder_dims)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B, G, K, C] -> [B, G, encoder_dims]."""
        batch, num_group, group_size, channels = patches.shape
        groups = batch * num_group
        hidden = _linear_fp32(self.fc1, patches.reshape(-1, channels))  # [B*G*K, 128]
        hidden = F.relu(self.bn1(hidden)).to(self.fc2.weight.dtype)
        hidden = self.fc2(hidden).view(groups, group_size, 256)
        pooled = hidden.amax(dim=1, keepdim=True)  # [B*G, 1, 256]
        # The original repeats `pooled` K times and runs fc3 on [pooled, hidden]; split by columns it runs once a group.
        of_group, of_point = self.fc3.weight.split(256, dim=1)
        hidden = F.linear(pooled, of_group, self.fc3.bias) + F.linear(hidden, of_point)  # [B*G, K, 512]
        hidden = F.relu(self.bn2(hidden.view(-1, 512))).to(self.fc4.weight.dtype)
        hidden = self.fc4(hidden).view(groups, group_size, -1)
        return hidden.amax(dim=1).view(batch, num_group, -1)


class PositionEmbed(nn.Module):
    """Group centres [B, G, 3] -> [B, G, D]."""

    def __init__(self, trans_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, 128)
        self.fc2 = nn.Linear(128, trans_dim)

    def forward(self, centres: Tensor) -> Tensor:
        """Centres [B, G, 3] -> [B, G, D]."""
        hidden = F.gelu(_linear_fp32(self.fc1, centres))
        return self.fc2(hidden.to(self.fc2.weight.dtype))


class Attention(nn.Module):
    """Multi-head self-attention [B, T, D] -> [B, T, D]; query, key and value without bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, D] -> [B, T, D]."""
        batch, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, T, D / heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    """Linear - GELU - Linear with four times the width between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, D] -> [B, T, D]."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block. The original's DropPath is for training it from scratch and left out."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, D] -> [B, T, D]."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PointBert(nn.Module):
    """The encoder. Always in eval mode: its two BatchNorms keep their stored statistics whatever `train()` is called with.

    Args:
        config: sizes.
        trainable_batchnorm: True only for pre-training the encoder itself: `train()` then works as for any module, and
            the BatchNorms normalise by the batch and update their statistics.
    """

    def __init__(self, config: PointBertConfig, trainable_batchnorm: bool = False) -> None:
        super().__init__()
        self.config = config
        self.trainable_batchnorm = trainable_batchnorm
        dim = config.trans_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_pos_embed = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.cls_pos_embed, std=0.02)
        self.patch_embed = PatchEmbed(config.in_channels, config.encoder_dims)
        self.patch_proj = nn.Linear(config.encoder_dims, dim)
        self.pos_embed = PositionEmbed(dim)
        self.blocks = nn.ModuleList(Block(dim, config.num_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.train(trainable_batchnorm)  # modules are born in training mode

    def train(self, mode: bool = True) -> PointBert:
        """As usual with `trainable_batchnorm`, else the module stays in eval mode."""
        return super().train(mode and self.trainable_batchnorm)

    def cast_frozen(self, dtype: torch.dtype) -> PointBert:
        """Store the weights in `dtype` (bfloat16 on a GPU), the BatchNorms in float32: they hold sums over millions."""
        self.to(dtype)
        for norm in (self.patch_embed.bn1, self.patch_embed.bn2):
            norm.float()
        return self

    def group(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Centres [B, G, 3] and patches [B, G, K, C] of a cloud, float32; xyz relative to the centre.

        Args:
            points: [B, N, C], or grouped already [B, G, 1+K, C], the centre first.

        Raises:
            ValueError: neither of these shapes, or fewer than max(num_group, group_size) points.
        """
        config = self.config
        grouped = (config.num_group, 1 + config.group_size, config.in_channels)
        if points.shape[1:] != grouped and (points.ndim != 3 or points.shape[-1] != config.in_channels):
            raise ValueError(
                f"the point encoder needs clouds [B, N, {config.in_channels}] or groups {['B', *grouped]}, got {tuple(points.shape)}; "
                "check in_channels and whether the clouds carry colour"
            )
        points = points.float()
        if points.ndim == 3:
            index = group_index(points[..., :3], config.grouping)
            rows = index.flatten(1).unsqueeze(-1).expand(-1, -1, points.shape[-1])
            points = points.gather(1, rows).unflatten(1, index.shape[1:])
        centres, patches = points[:, :, 0, :3], points[:, :, 1:]
        relative = patches[..., :3] - centres.unsqueeze(2)
        return centres, torch.cat((relative, patches[..., 3:]), dim=-1)

    def forward(self, points: Tensor) -> Tensor:
        """Cloud [B, N, C], or its groups [B, G, 1+K, C] -> tokens [B, 1+G, D] after the final LayerNorm, class token first."""
        return self.read_groups(*self.group(points))

    def read_groups(self, centres: Tensor, patches: Tensor) -> Tensor:
        """What ``group`` gives to tokens [B, 1+G, D]."""
        tokens = self.patch_proj(self.patch_embed(patches))
        tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens), dim=1)
        position = self.pos_embed(centres)
        position = torch.cat((self.cls_pos_embed.expand(len(position), -1, -1).to(position.dtype), position), dim=1)
        for block in self.blocks:
            tokens = block(tokens + position)  # added again before every block, as in the original
        return self.norm(tokens)


# --- names of public weights ---

# (original name, our name), applied at the start of an encoder key.
_RENAMES = (
    ("encoder.first_conv.0.", "patch_embed.fc1."),
    ("encoder.first_conv.1.", "patch_embed.bn1."),
    ("encoder.first_conv.3.", "patch_embed.fc2."),
    ("encoder.second_conv.0.", "patch_embed.fc3."),
    ("encoder.second_conv.1.", "patch_embed.bn2."),
    ("encoder.second_conv.3.", "patch_embed.fc4."),
    ("reduce_dim.", "patch_proj."),
    ("pos_embed.0.", "pos_embed.fc1."),
    ("pos_embed.2.", "pos_embed.fc2."),
    ("blocks.blocks.", "blocks."),
)
_POINTWISE = re.compile(r"patch_embed\.fc\d\.weight")  # 1x1 convolutions in the original: [out, in, 1]

# Parts of public files that are not the encoder, dropped on purpose.
_DROPPED_HEADS = ("mask_token", "lm_head.", "cls_head.", "cls_head_finetune.")
_DROPPED_BESIDE = {
    "transformer_q.": ("transformer_k.", "dvae.", "queue", "queue_ptr"),
    "point_encoder.": (
        *("pc_projection", "logit_scale", "image_projection", "text_projection", "visual.", "transformer."),
        *("token_embedding.", "positional_embedding", "ln_final.", "open_clip_model."),
    ),
    "": (),
}


def _starts(name: str, parts: tuple[str, ...]) -> bool:
    return any(name.startswith(part) if part.endswith(".") else name == part for part in parts)


def original_names(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(encoder tensors by original name without prefixes, names dropped on purpose) of a public Point-BERT checkpoint.

    Accepts the file's top level (`base_model` or `state_dict` holds the tensors) or its tensors alone, with any of the
    prefixes `module.`, `base_model.`, `transformer_q.`, `point_encoder.`.
    """
    for container in ("base_model", "state_dict"):
        if isinstance(checkpoint.get(container), Mapping):
            checkpoint = checkpoint[container]
    tensors = {re.sub(r"^(module\.)?(base_model\.)?", "", name): value for name, value in checkpoint.items()}
    scope = next((s for s in ("transformer_q.", "point_encoder.") if any(n.startswith(s) for n in tensors)), "")
    encoder, dropped = {}, []
    for name, value in tensors.items():
        inside = name.startswith(scope)
        short = name.removeprefix(scope) if inside else name
        if _starts(short, _DROPPED_HEADS if inside else _DROPPED_BESIDE[scope]):
            dropped.append(name)
        else:  # what lies outside the scope and is unknown keeps its name and is reported as unexpected
            encoder[short if inside else f"[outside {scope}*] {name}"] = value
    return encoder, tuple(dropped)


def infer_config(own: Mapping[str, Tensor], groups_and_heads: tuple[int, int, int] | None = None) -> PointBertConfig:
    """Sizes from the shapes of our own state dict.

    Args:
        own: names to tensors.
        groups_and_heads: (num_group, group_size, num_heads), which leave no trace in the shapes. None: RegionBLIP's
            (512, 32, 6), for the public networks of width 384 only.

    Raises:
        ValueError: not a Point-BERT, or another width without `groups_and_heads`.
    """
    try:
        width = own["cls_token"].shape[-1]
        if groups_and_heads is None and width != PointBertConfig.trans_dim:
            raise ValueError(f"num_heads, group_size and num_group of a width of {width} are unknown; give its config")
        num_group, group_size, num_heads = groups_and_heads or (512, 32, 6)
        return PointBertConfig(
            trans_dim=width,
            depth=1 + max((int(name.split(".")[1]) for name in own if re.match(r"blocks\.\d+\.", name)), default=-1),
            num_heads=num_heads,
            group_size=group_size,
            num_group=num_group,
            encoder_dims=own["patch_embed.fc4.weight"].shape[0],
            in_channels=own["patch_embed.fc1.weight"].shape[1],
        )
    except KeyError as error:
        raise ValueError(f"not a Point-BERT: {error} is missing; its names start with {sorted(own)[:5]}") from error


def from_original(checkpoint: Mapping[str, Any], config: PointBertConfig | None = None) -> dict[str, Tensor]:
    """Our state dict, complete and checked, from a public Point-BERT, ULIP or PointLLM checkpoint.

    Args:
        checkpoint: see `original_names`.
        config: if given, the sizes must be these.

    Raises:
        ValueError: a size that differs from `config`; tensors missing, unexpected or of a wrong shape (all listed).
    """
    encoder, _ = original_names(checkpoint)
    own: dict[str, Tensor] = {}
    for name, value in encoder.items():
        name = "cls_pos_embed" if name == "cls_pos" else name
        for original, ours in _RENAMES:
            if name.startswith(original):
                name = ours + name.removeprefix(original)
                break
        own[name] = value.squeeze(-1) if _POINTWISE.fullmatch(name) and value.ndim == 3 else value
    for norm in ("bn1", "bn2"):  # a counter that older files lack and that eval mode never reads
        own.setdefault(f"patch_embed.{norm}.num_batches_tracked", torch.tensor(0))
    found = infer_config(own, groups_and_heads=(1, 1, 1))  # only what shapes show
    if config is not None:
        wrong = [
            f"{name} {getattr(found, name)} (not {getattr(config, name)})"
            for name in ("trans_dim", "depth", "encoder_dims", "in_channels")
            if getattr(found, name) != getattr(config, name)
        ]
        if wrong:
            raise ValueError(f"the Point-BERT weights have {', '.join(wrong)}; set the point encoder's config so")
    with torch.device("meta"):
        expected = PointBert(found).state_dict()
    missing = sorted(expected.keys() - own.keys())
    unexpected = sorted(own.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(own[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & own.keys())
        if own[name].shape != expected[name].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(f"not a complete Point-BERT: missing {missing}; unexpected {unexpected}; wrong shape {shapes}")
    return {name: own[name] for name in expected}


def to_original(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder under its original names and shapes: what `from_original` reads; for export to other code."""
    original: dict[str, Tensor] = {}
    for name, value in own.items():
        if _POINTWISE.fullmatch(name):
            value = value.unsqueeze(-1)
        name = "cls_pos" if name == "cls_pos_embed" else name
        for theirs, ours in _RENAMES:
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        original[name] = value
    return original
