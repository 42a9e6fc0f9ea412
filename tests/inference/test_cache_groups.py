"""`rb cache-groups`: stored groups are used where they are those that the encoder would find, else it finds its own; damaged ones are named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rb.model.point_encoder as point_encoder
from rb.cli import main
from rb.core.config import DataSource, FoundationConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.run_file import to_tree
from rb.core.run_paths import open_foundation, open_run
from rb.core.strict_json import FormatError
from rb.data.formats import parse_manifest, read_manifest
from rb.data.index import ManifestReader, ShardCorruptionError
from rb.data.pipeline import InputView, PredictDataset, open_training_data
from rb.data.shards import adopt
from rb.inference.cache_features import Caching, cache_features
from rb.inference.cache_groups import cache_groups, use_of_groups
from rb.inference.load import example_transform
from rb.model.weights.build import build_model
from rb.sources.groups import Grouping, GroupSet, StoredGroups, encode_groups
from rb.training.batches import training_transform
from rb.training.dry_run import describe, plan_run
from tests.support import tiny
from tests.support.cached_sets import MODALITIES, World, batches
from tests.support.remedies import remedy
from tests.support.small_data import NUM_POINTS, write_set

CLOUDS = (POINT_CLOUD, POINT_CLOUD_REGION)
SIZES = tiny.POINT_CONFIG.grouping
AUGMENTED = {"data": {"augment": True}}


@pytest.fixture(scope="module")
def world(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("grouped"), foundation)
    for modality in MODALITIES:
        write_set(made.folder / modality, modality, 7)
    made.run_file("plain")
    for modality in CLOUDS:
        assert made.cache(modality, made.folder / "grouped" / modality, command="cache-groups") == 0
    shutil.copytree(made.folder / IMAGE_REGION, made.folder / "grouped" / IMAGE_REGION)
    return made


class Operations(TorchDispatchMode):
    """How many operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_training_from_stored_groups_equals_training_without(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = batches(world, "")
    _, stored = batches(world, "grouped")
    assert {batch.modality for batch in plain} == set(MODALITIES)
    searched = []
    with Operations() as computed:
        expected = [model(batch).total for batch in plain]
    sample = point_encoder.farthest_point_sample
    monkeypatch.setattr(point_encoder, "farthest_point_sample", lambda *a: searched.append(a) or sample(*a))
    with Operations() as fewer:
        found = [model(batch).total for batch in stored]
    assert searched == []
    num_clouds = sum(batch.modality in CLOUDS for batch in plain)
    assert fewer.count <= computed.count - num_clouds * 5 * (SIZES.num_group - 1)
    for one, other, a, b in zip(plain, stored, expected, found, strict=True):
        assert (one.ids, one.captions, one.positions) == (other.ids, other.captions, other.positions)
        assert one.boxes is None or torch.equal(one.boxes, other.boxes)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        if one.modality in CLOUDS:
            assert other.inputs.shape[1:] == (SIZES.num_group, 1 + SIZES.group_size, 3)
            index = point_encoder.group_index(one.inputs, SIZES)
            assert torch.equal(other.inputs, torch.stack([c[i] for c, i in zip(one.inputs, index, strict=True)]))


def test_dropped_points_are_searched_anew_and_turned_scenes_are_not(world: World) -> None:
    """A turn or mirror keeps which points are near: the stored groups are those of the turned cloud, up to ties."""
    mirrored = {"data": {"augment": True, "mirror": {POINT_CLOUD_REGION: "always"}}}
    for more in (AUGMENTED, mirrored):
        _, plain = batches(world, "", more)
        _, stored = batches(world, "grouped", more)
        for one, other in zip(plain, stored, strict=True):
            if one.modality == POINT_CLOUD_REGION:
                index = point_encoder.group_index(one.inputs, SIZES)
                own = torch.stack([cloud[i] for cloud, i in zip(one.inputs, index, strict=True)])
                assert torch.equal(other.inputs[:, :, 0], own[:, :, 0])
                assert torch.equal(other.inputs.sort(dim=2).values, own.sort(dim=2).values)
            else:
                assert torch.equal(other.inputs, one.inputs)


@pytest.mark.parametrize("change", [{"num_points": 24}, {"cloud_frame": "metres"}])
def test_other_settings_of_a_run_search_anew(world: World, change: dict[str, Any]) -> None:
    model = tiny.model_config(world.foundation, train_modalities=MODALITIES, **{"num_points": NUM_POINTS, **change})
    more = {"model": to_tree(model)}
    _, plain = batches(world, "", more)
    _, stored = batches(world, "grouped", more)
    for one, other in zip(plain, stored, strict=True):
        fits = one.modality == POINT_CLOUD and "cloud_frame" in change  # whole clouds have one frame
        assert fits or torch.equal(other.inputs, one.inputs)


def test_it_is_said_whether_they_are_used(world: World, tmp_path: Path) -> None:
    def said(more: dict[str, Any] | None = None) -> list[str]:
        config = open_run(world.run_file("said", "grouped", more))
        plan = plan_run(config, 1)
        assert set(plan["groups"]) <= set(describe(plan, config).splitlines())
        return [line.split(": its stored groups of points ")[1] for line in plan["groups"]]

    assert said() == ["are used"] * 2
    assert said(AUGMENTED) == ["are not used: data.augment: true drops points", "are used"]
    fewer = to_tree(tiny.model_config(world.foundation, train_modalities=MODALITIES, num_points=24))
    assert said({"model": fewer}) == ["are not used: they were made with num_points 40, this model has 24"] * 2
    for name in ("num_group", "group_size"):
        encoder = world.folder / "other" / name
        shutil.copytree(world.foundation.point_encoder, encoder)
        sizes = json.loads((encoder / "config.json").read_text())
        (encoder / "config.json").write_text(json.dumps(sizes | {name: 3}))
        other = replace(world.foundation, point_encoder=str(encoder))
        model = to_tree(tiny.model_config(other, train_modalities=MODALITIES, num_points=NUM_POINTS))
        expected = f"are not used: they were made with {name} {sizes[name]}, this model has 3"
        assert said({"model": model}) == [expected] * 2


def test_sets_of_one_modality_with_and_without(world: World) -> None:
    listed = [DataSource(str(world.folder / part / POINT_CLOUD)) for part in ("", "grouped")]
    (opened,) = open_training_data({POINT_CLOUD: listed}, 0).values()
    config = open_run(world.folder / "plain.yaml")
    transform = training_transform(config, build_model(config.model, config.seed, "meta"))
    samples = [
        transform.training_sample(reader.sample(place.sample), POINT_CLOUD, position)
        for position in range(len(opened.stream))
        for reader, place in [opened.place(position)]
    ]
    assert torch.stack([sample.inputs for sample in samples]).shape[1:] == (NUM_POINTS, 3)
    lines = [use_of_groups(reader, POINT_CLOUD, transform) for reader in opened.readers]
    assert lines[0] is None
    assert lines[1].endswith("are not used: not all sets of point_cloud store the same")


def test_prediction_and_features_use_them(world: World, tmp_path: Path) -> None:
    config = open_run(world.folder / "plain.yaml")
    built = build_model(config.model, config.seed)
    transform = example_transform(built, config.seed)
    made = {}
    for part in ("", "grouped"):
        reader = ManifestReader(world.folder / part / POINT_CLOUD_REGION)
        batch = PredictDataset(reader, POINT_CLOUD_REGION, transform, batch_size=100)[0]
        blind = PredictDataset(reader, POINT_CLOUD_REGION, transform, batch_size=100, view=InputView(blind=True))[0]
        encoded = [built.model.encode(POINT_CLOUD_REGION, inputs) for inputs in (batch.inputs, blind.inputs)]
        out = tmp_path / (part or "plain")
        cache_features(Caching(reader, "float32"), config, built, out)
        made[part] = batch.inputs.ndim, encoded, [ManifestReader(out).record(i).media for i in range(7)]
    assert (made[""][0], made["grouped"][0]) == (3, 4)
    for one, other in zip(made[""][1], made["grouped"][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert made[""][2] == made["grouped"][2]


def test_the_rest_of_the_set_is_as_it_was(world: World, tmp_path: Path) -> None:
    folder, before = world.folder / "grouped" / POINT_CLOUD, ManifestReader(world.folder / POINT_CLOUD)
    after = ManifestReader(folder)
    for number in range(7):
        one, other = before.record(number), after.record(number)
        assert (one.record, one.media) == (other.record, other.media)
    assert after.manifest.groups == GroupSet.of(SIZES, NUM_POINTS, "unit")
    assert (after.manifest.rejected, after.manifest.counts) == (before.manifest.rejected, before.manifest.counts)
    assert main(["data", "verify", str(folder), "--decode"]) == 0
    content = (folder / "manifest.json").read_bytes()
    assert parse_manifest(content, "here").to_json() == content
    copied = shutil.copytree(folder, tmp_path / "copied")
    assert adopt(copied, POINT_CLOUD, overwrite=True).to_json() == content
    write_set(tmp_path / "some", POINT_CLOUD, 2)
    assert (
        main(["data", "exclude", str(folder), "--against", str(tmp_path / "some"), "--out", str(tmp_path / "x")]) == 0
    )
    assert ManifestReader(tmp_path / "x").record(0).groups == after.record(2).groups
    assert world.cache(POINT_CLOUD, tmp_path / "again", command="cache-groups") == 0
    assert read_manifest(tmp_path / "again").groups == after.manifest.groups


def test_after_a_kill_it_goes_on_and_writes_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = open_foundation(world.folder / "plain.yaml")
    built = build_model(config.model, config.seed, "meta")
    sample, calls = point_encoder.farthest_point_sample, [0]

    def dies(*args: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return sample(*args)

    def job() -> Caching:
        return Caching(ManifestReader(world.folder / POINT_CLOUD), batch_size=1, max_shard_bytes=1)

    monkeypatch.setattr(point_encoder, "farthest_point_sample", dies)
    with pytest.raises(KeyboardInterrupt):
        cache_groups(job(), config, built, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()
    calls[0] = 10
    cache_groups(job(), config, built, tmp_path / "out", "cpu")
    assert calls[0] == 10 + 7 - 3, "three shards were finished"
    cache_groups(job(), config, built, tmp_path / "whole", "cpu")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.*")} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").glob("*.*")
    }


ABOUT = GroupSet.of(Grouping(2, 3), 9, "unit")
GOOD = np.array([[0, 0, 1, 2], [8, 8, 7, 6]], np.uint16)


@pytest.mark.parametrize(
    ("index", "num_points", "says"),
    [
        (GOOD[:1], 9, r"holds groups \[1, 4\] of uint16, its manifest says \[2, 4\] of uint16"),
        (GOOD.astype(np.int32), 9, r"holds groups \[2, 4\] of int32"),
        (GOOD.T, 9, r"holds groups \[4, 2\]"),
        (GOOD + np.uint16(1), 9, "its groups name point 9, but its cloud has points 0 to 8"),
        (GOOD, 8, "its cloud has 8 points, but the groups of its set are of 9"),
    ],
)
def test_damaged_groups_are_named(index: np.ndarray, num_points: int, says: str) -> None:
    data = encode_groups(np.zeros(ABOUT.shape), ABOUT)
    if index.shape != (2, 4) or index.dtype != np.uint16:
        header = f"{{'descr': '{index.dtype.str}', 'fortran_order': False, 'shape': {index.shape}, }}".ljust(117) + "\n"
        data = data[:8] + len(header).to_bytes(2, "little") + header.encode() + np.ascontiguousarray(index).tobytes()
    else:
        data = encode_groups(index, ABOUT)
    with pytest.raises(FormatError, match=f"here: {says}.*; write the set again with `rb cache-groups`"):
        StoredGroups(data, ABOUT).decode(num_points, "here")


def test_sound_groups_are_read_and_cut_ones_are_not() -> None:
    data = encode_groups(GOOD, ABOUT)
    assert np.array_equal(StoredGroups(data, ABOUT).decode(9, "here"), GOOD)
    for cut in range(len(data)):
        with pytest.raises(FormatError, match="here: its groups cannot be read"):
            StoredGroups(data[:cut], ABOUT).decode(9, "here")
    large = GroupSet.of(Grouping(2, 3), 70_000, "unit")
    assert StoredGroups(encode_groups(GOOD.astype(np.int64) + 69_000, large), large).decode(70_000, "x").max() == 69_008


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_group": 41}, "num_group 41 and group_size 4 must be 1 to num_points, 40"),
        ({"group_size": 0}, "num_group 6 and group_size 0 must be 1 to num_points"),
        ({"num_points": 10**6, "num_group": 10**6, "group_size": 10**6}, "a record has at most"),
        ({"skip_near_origin": 1}, "skip_near_origin must be true or false"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_a_manifest_that_lies_about_its_groups(world: World, change: dict[str, Any], says: str) -> None:
    tree = json.loads((world.folder / "grouped" / POINT_CLOUD / "manifest.json").read_text())
    tree["groups"] |= change
    with pytest.raises(FormatError, match=says):
        parse_manifest(json.dumps(tree).encode(), "here")


def told(world: World, folder: Path, **change: int) -> Path:
    """A copy of the grouped clouds whose manifest says other groups."""
    copied = shutil.copytree(world.folder / "grouped" / POINT_CLOUD, folder)
    tree = json.loads((copied / "manifest.json").read_text())
    tree["groups"] |= change
    (copied / "manifest.json").write_text(json.dumps(tree))
    return copied


def test_an_altered_member_stops_the_job(world: World, tmp_path: Path) -> None:
    copied = told(world, tmp_path / "copied")
    reader = ManifestReader(copied)
    groups = reader.record(0).groups
    assert groups is not None
    shard = copied / reader.manifest.shards[0].file
    data = shard.read_bytes()
    place = data.index(groups.data) + len(groups.data) - 1
    shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(ShardCorruptionError, match="its bytes were altered"):
        ManifestReader(copied).record(0)


@remedy(
    "write the set again with `rb cache-groups`",
    also=(
        "holds groups {} of {}, its manifest says {} of {}; {}",
        "its groups cannot be read: {}; {}",
        "its groups name point {}, but its cloud has points 0 to {}; {}",
        "its cloud has {} points, but the groups of its set are of {}; {}",
        "has no member {}, but its manifest says groups; {}",
    ),
)
def test_groups_that_do_not_fit_their_manifest(world: World, tmp_path: Path):
    folder = [told(world, tmp_path / "told", num_group=5)]

    def follow(said: Any) -> None:
        assert said.commands == ["rb cache-groups"]
        folder[0] = tmp_path / "again"
        assert world.cache(POINT_CLOUD, folder[0], command="cache-groups") == 0

    def read() -> None:
        reader = ManifestReader(folder[0])
        loaded = reader.record(0)
        assert loaded.groups is not None
        loaded.groups.decode(NUM_POINTS, loaded.where)

    return read, follow


@remedy("whose points the model of this run does not group; give a set of clouds, and a run file whose")
def test_groups_of_images(world: World, tmp_path: Path):
    modality = [IMAGE_REGION]
    call = lambda: world.cache(modality[0], tmp_path / "out", command="cache-groups")  # noqa: E731
    return call, lambda _: modality.append(modality.pop() and POINT_CLOUD)
