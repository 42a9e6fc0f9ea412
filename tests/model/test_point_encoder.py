"""Grouping and Point-BERT against the original network's outputs, and the mapping of its public weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rb.model import grouping
from rb.model.grouping import farthest_point_sample, knn_group, sampling_backends
from rb.model.point_encoder import PointBert, PointBertConfig, from_original, infer_config, original_names, to_original
from tests.support.host_waits import host_waits

GOLDEN = Path(__file__).parents[1] / "golden" / "point_bert.safetensors"
CONFIG = PointBertConfig(
    trans_dim=48, depth=3, num_heads=6, group_size=8, num_group=16, encoder_dims=32, skip_near_origin=True
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def original(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("state_dict."): v for k, v in golden.items() if k.startswith("state_dict.")}


@pytest.fixture
def encoder(original: dict[str, Tensor]) -> PointBert:
    model = PointBert(CONFIG)
    model.load_state_dict(from_original(original, CONFIG))
    return model.requires_grad_(False)


def brute_force_sampling(points: Tensor, num: int, skip: bool) -> Tensor:
    chosen = [0]
    for _ in range(num - 1):
        best, best_distance = 0, -1.0
        for i, point in enumerate(points):
            distance = min(float(((point - points[c]) ** 2).sum()) for c in chosen)
            if distance > best_distance and not (skip and float((point**2).sum()) <= 1e-3):
                best, best_distance = i, distance
        chosen.append(best)
    return torch.tensor(chosen)


@pytest.mark.parametrize("skip", [False, True])
def test_sampling_equals_brute_force(skip: bool) -> None:
    points = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    points[:, 5] = 0.01  # far from nothing, but near the origin
    chosen = farthest_point_sample(points, 40 if not skip else 39, skip)
    for row in range(2):
        assert torch.equal(chosen[row], brute_force_sampling(points[row], chosen.shape[1], skip))
    assert (5 in chosen[0]) is not skip


def test_sampling_repeats_the_start_when_positions_run_out() -> None:
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]])
    assert farthest_point_sample(points, 4).tolist() == [[0, 1, 0, 0]]


def test_quickfps_gives_the_same_indices() -> None:
    if "torch_quickfps" not in sampling_backends("cpu"):
        pytest.skip("torch-quickfps is not installed")
    points = torch.randn(3, 1500, 3, generator=torch.Generator().manual_seed(1))
    plain = farthest_point_sample(points, 200)
    assert torch.equal(plain, farthest_point_sample(points, 200, backend="torch_quickfps"))
    with pytest.raises(ValueError, match="torch_quickfps"):
        farthest_point_sample(points, 200, skip_near_origin=True, backend="torch_quickfps")


def test_neighbours_in_blocks_and_far_from_the_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(2, 300, 3, generator=torch.Generator().manual_seed(2)) + 50.0
    centres = points[:, :21]
    exact = torch.cdist(centres.double(), points.double()).topk(8, largest=False).indices.sort().values
    assert torch.equal(knn_group(points, centres, 8).sort().values, exact)
    monkeypatch.setattr(grouping, "MAX_DISTANCES", 2 * 300 * 4)  # blocks of four centres
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(knn_group(points, centres, 8).sort().values, exact)


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="at least 9 points"):
        farthest_point_sample(torch.zeros(1, 8, 3), 9)
    with pytest.raises(ValueError, match="at least 9 points"):
        knn_group(torch.zeros(1, 8, 3), torch.zeros(1, 2, 3), 9)
    with pytest.raises(ValueError, match="colour"):
        PointBert(CONFIG)(torch.zeros(1, 300, 6))
    with pytest.raises(ValueError, match="num_heads"):
        PointBertConfig(trans_dim=48, num_heads=5)


def test_golden_grouping_and_tokens(encoder: PointBert, golden: dict[str, Tensor]) -> None:
    encoder.train()  # must not wake the BatchNorms
    centres, patches = encoder.group(golden["points"])
    assert torch.equal(centres, golden["group_centers"])
    ours = patches.flatten(2).sort().values  # the order inside a group is free
    torch.testing.assert_close(ours, golden["group_patches"].flatten(2).sort().values, rtol=0, atol=1e-6)
    embedding = encoder.patch_embed(patches)
    torch.testing.assert_close(embedding, golden["group_embedding"], rtol=0, atol=1e-5)
    assert host_waits(lambda: encoder(golden["points"])) == []
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.testing.assert_close(encoder(golden["points"]), golden["tokens"], rtol=0, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_batchnorm_switch(original: dict[str, Tensor], golden: dict[str, Tensor]) -> None:
    assert not PointBert(CONFIG).training
    model = PointBert(CONFIG, trainable_batchnorm=True)
    model.load_state_dict(from_original(original))
    assert model.training
    assert model.patch_embed.bn1.training
    before = model.patch_embed.bn1.running_mean.clone()
    model(golden["points"]).sum().backward()
    assert not torch.equal(model.patch_embed.bn1.running_mean, before)
    assert all(p.grad is not None for p in model.parameters())
    assert not model.eval().patch_embed.bn1.training


def test_lower_precision_keeps_the_groups(encoder: PointBert, golden: dict[str, Tensor]) -> None:
    encoder.cast_frozen(torch.bfloat16)
    assert encoder.patch_embed.bn1.running_var.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        centres, _ = encoder.group(golden["points"])
        tokens = encoder(golden["points"])
    assert torch.equal(centres, golden["group_centers"])
    assert encoder(golden["points"]).dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(tokens.float(), golden["tokens"], dim=-1).min() > 0.99


def test_colour_is_not_centred() -> None:
    model = PointBert(dataclasses.replace(CONFIG, in_channels=6))
    cloud = torch.rand(1, 50, 6, generator=torch.Generator().manual_seed(3))
    cloud[..., 3:] = 0.4
    _, patches = model.group(cloud)
    assert torch.equal(patches[..., 3:], torch.full_like(patches[..., 3:], 0.4))
    assert model(cloud).shape == (1, 17, 48)


def test_full_size_is_the_public_network() -> None:
    with torch.device("meta"):
        model = PointBert(PointBertConfig())
    assert sum(p.numel() for p in model.parameters()) == 21_858_816
    assert len(model.state_dict()) == 160
    assert infer_config(model.state_dict()) == PointBertConfig()
    names = to_original(model.state_dict())
    assert names["encoder.first_conv.0.weight"].shape == (128, 3, 1)
    assert names["blocks.blocks.11.attn.qkv.weight"].shape == (1152, 384)


def encoder_only(original: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in original.items() if not name.startswith("cls_head_finetune")}


def test_every_container_gives_the_same_weights(original: dict[str, Tensor]) -> None:
    own = from_original(original)
    tensors, extra = encoder_only(original), torch.zeros(1)
    containers = {
        "pre-training": {
            "base_model": {
                **{f"module.transformer_q.{k}": v for k, v in {**tensors, "lm_head.bias": extra}.items()},
                **{f"module.transformer_k.{k}": v + 1 for k, v in tensors.items() if v.is_floating_point()},
                "module.dvae.encoder.first_conv.0.weight": extra,
                "module.queue": extra,
                "module.queue_ptr": extra,
            },
            "optimizer": {},
            "epoch": 3,
        },
        "fine-tuned": {"base_model": {f"module.{k}": v for k, v in original.items()}, "epoch": 1},
        "ULIP": {
            "state_dict": {
                **{f"module.point_encoder.{k}": v for k, v in tensors.items()},
                "module.pc_projection": extra,
                "module.logit_scale": extra,
                "module.visual.cls_token": extra,
            }
        },
        "without counters": {k: v for k, v in tensors.items() if "num_batches" not in k},
    }
    for name, checkpoint in containers.items():
        got = from_original(checkpoint, CONFIG)
        assert list(got) == list(own), name
        assert all(torch.equal(got[k], own[k]) for k in own if "num_batches" not in k), name
    assert "pc_projection" in original_names(containers["ULIP"])[1]
    assert infer_config(own, (16, 8, 6)) == dataclasses.replace(CONFIG, skip_near_origin=False)
    with pytest.raises(ValueError, match="num_heads, group_size and num_group of a width of 48"):
        infer_config(own)
    back = to_original(own)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)


def test_nothing_is_lost_silently(original: dict[str, Tensor]) -> None:
    broken = {**original, "surprise": torch.zeros(1), "norm.weight": torch.zeros(47)}
    del broken["reduce_dim.bias"]
    with pytest.raises(ValueError) as error:
        from_original(broken)
    message = str(error.value)
    for part in ("patch_proj.bias", "surprise", "norm.weight (47,)"):
        assert part in message
    with pytest.raises(ValueError, match=r"depth 3 \(not 12\)"):
        from_original(original, dataclasses.replace(CONFIG, depth=12))
    with pytest.raises(ValueError, match="not a Point-BERT"):
        from_original({"state_dict": {"visual.weight": torch.zeros(1)}})
    beside = {f"point_encoder.{k}": v for k, v in encoder_only(original).items()} | {"stranger": torch.zeros(1)}
    with pytest.raises(ValueError, match="stranger"):
        from_original(beside)
