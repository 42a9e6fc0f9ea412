"""`rb cache-features`: training from stored features equals training from the sources; what could not be equal is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rb.inference.cache_features as caching
from rb.cli import main
from rb.core.config import DataConfig, DataSource, FoundationConfig
from rb.core.files import CannotWriteError
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.run_file import to_tree
from rb.core.run_paths import open_run
from rb.core.strict_json import FormatError
from rb.core.tensor_files import tensor_bytes
from rb.data.formats import parse_manifest, read_manifest
from rb.data.index import ManifestReader
from rb.data.pipeline import open_training_data
from rb.model.encoded import ModalityModel
from rb.model.weights.build import build_model
from rb.sources.features import FeatureReader, FeatureSet, decode_features
from rb.sources.source import Draws, EncoderSettings, Stored
from rb.sources.table import source_of
from rb.tracking import metric_points
from rb.training.validate import open_validation_data
from tests.support import tiny
from tests.support.cached_sets import MODALITIES, STEPS, World, batches
from tests.support.processes import finish, start_ranks
from tests.support.remedies import remedy
from tests.support.small_data import NUM_POINTS, write_set


@pytest.fixture(scope="module")
def world(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("cached"), foundation)
    for modality in MODALITIES:
        write_set(made.folder / modality, modality, 7)
    config = open_run(made.run_file("plain"))
    built = build_model(config.model, config.seed)
    for modality in MODALITIES:
        for part, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
            job = caching.Caching(ManifestReader(made.folder / modality), dtype, batch_size=2, workers=2)
            caching.cache_features(job, config, built, made.folder / part / modality)
    return made


def losses(world: World, name: str, sets: str) -> dict[str, list[float]]:
    """Every loss of every step of a training by its real entry."""
    finish(*start_ranks(1, "rb.train", "--run", world.run_file(name, sets)))
    points = metric_points(world.folder / "runs" / name / "journal.jsonl")
    return {key: [point.value for point in found] for key, found in points.items() if "/loss_" in key}


@pytest.mark.dist
def test_training_from_features_equals_training_from_the_sources(world: World) -> None:
    plain = losses(world, "sources", "")
    cached = losses(world, "features", "fp32")
    assert plain.keys() == cached.keys()
    assert len(plain) == 6 + 5 + 6
    for name, values in plain.items():
        assert cached[name] == pytest.approx(values, rel=1e-6, abs=1e-6), name
    assert min(len(values) for values in plain.values()) >= STEPS // 4


def test_the_samples_are_the_same_and_no_encoder_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = batches(world, "")
    expected = [model(batch).total for batch in plain]
    _, exact = batches(world, "fp32")
    _, rounded = batches(world, "bf16")
    monkeypatch.setattr(ModalityModel, "encode", lambda *_: pytest.fail("the encoder ran"))
    assert {batch.modality for batch in plain} == set(MODALITIES)
    for batch, cached, coarse, total in zip(plain, exact, rounded, expected, strict=True):
        assert cached.are_features
        assert (cached.ids, cached.captions, cached.positions) == (batch.ids, batch.captions, batch.positions)
        assert (batch.boxes is None) == (cached.boxes is None)
        assert batch.boxes is None or torch.equal(batch.boxes, cached.boxes)
        assert torch.equal(cached.rows(slice(1, 2)).inputs, cached.inputs[1:2])
        torch.testing.assert_close(model(cached).total, total, rtol=1e-6, atol=1e-6)
        assert coarse.inputs.dtype == torch.bfloat16
        assert model(coarse).total.item() == pytest.approx(total.item(), rel=1e-2)


def test_a_set_says_what_it_was_made_of_and_each_source_is_encoded_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode, seen = ModalityModel.encode, []

    def counted(self: ModalityModel, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        return encode(self, inputs)

    monkeypatch.setattr(ModalityModel, "encode", counted)
    assert world.cache(POINT_CLOUD, tmp_path / "out") == 0
    assert "7 sources of 0 kB (bfloat16, 7 x 12), at most" in capsys.readouterr().err
    assert seen == [1, 2, 2, 2, 1], "the first one alone: it says how large the set will be"
    made, source = read_manifest(tmp_path / "out"), ManifestReader(world.folder / POINT_CLOUD)
    assert made.counts == source.manifest.counts
    assert made.features is not None
    assert made.features.made_from == source.digest
    assert made.features.settings["num_points"] == NUM_POINTS
    assert made.features.settings["encoder"].startswith("sha256:")
    assert main(["data", "verify", str(tmp_path / "out"), "--decode"]) == 0
    assert main(["data", "stats", str(tmp_path / "out")]) == 0
    again = parse_manifest((tmp_path / "out/manifest.json").read_bytes(), "here").to_json()
    assert again == (tmp_path / "out/manifest.json").read_bytes()


def test_boxes_equal_those_of_the_cloud_in_every_form(world: World) -> None:
    clouds, cached = (ManifestReader(world.folder / part / POINT_CLOUD_REGION) for part in ("", "fp32"))
    source, about = source_of(POINT_CLOUD_REGION), cached.manifest.features
    assert about is not None
    for frame in ("unit", "metres"):
        for box3d in ("min_max", "metres_corners"):
            model = tiny.model_config(world.foundation, num_points=NUM_POINTS, cloud_frame=frame, box3d=box3d)
            transform = source.transform(model, EncoderSettings(16))
            for number in range(len(clouds)):
                one, other = clouds.sample(number), cached.sample(number)
                boxes = [item.box for item in one.record.objects]
                expected = source.read(transform, one.stored, boxes, Draws(("x",)))[1]
                found = FeatureReader(source, about).read(transform, other.stored, boxes, Draws(("x",)))[1]
                assert len(found) == len(boxes) > 0
                assert all(map(torch.equal, expected, found)), (frame, box3d)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_after_a_kill_it_goes_on_and_writes_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    config = open_run(world.folder / "plain.yaml")
    built = build_model(config.model, config.seed)
    encode, calls = ModalityModel.encode, [0]

    def dies(self: ModalityModel, inputs: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return encode(self, inputs)

    def job() -> caching.Caching:
        return caching.Caching(ManifestReader(world.folder / IMAGE_REGION), dtype, 1, max_shard_bytes=1)

    monkeypatch.setattr(ModalityModel, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        caching.cache_features(job(), config, built, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    calls[0] = 10
    caching.cache_features(job(), config, built, tmp_path / "out")
    assert calls[0] == 10 + 1 + 7 - 2, "two shards were finished, the third record's was not"
    caching.cache_features(job(), config, built, tmp_path / "whole")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.*")} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").glob("*.*")
    }


def test_no_room_is_said_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rb.core.files._free", lambda _: 20_000)
    config = open_run(world.folder / "plain.yaml")
    job = caching.Caching(ManifestReader(world.folder / IMAGE_REGION))
    with pytest.raises(CannotWriteError, match="needed"):
        caching.cache_features(job, config, build_model(config.model, 0), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def checked(world: World, sets: str, more: dict[str, Any], foundation: FoundationConfig | None = None) -> None:
    run = World(world.folder, foundation or world.foundation).run_file("other", sets, more)
    config = open_run(run)
    caching.check_features(build_model(config.model, 0), config, open_training_data(config.data.train, 0))


def test_other_foundations_and_settings_are_named(world: World, tmp_path: Path) -> None:
    checked(world, "fp32", {})
    other = tiny.write_foundation(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError,
        match=r"image_region/manifest.json: its features were made with encoder sha256:\w+..., this model has",
    ):
        checked(world, "fp32", {}, other)
    only = {"train": {POINT_CLOUD: [{"manifest": str(world.folder / "fp32" / POINT_CLOUD)}]}, "augment": False}
    model = to_tree(tiny.model_config(world.foundation, train_modalities=(POINT_CLOUD,), num_points=24))
    with pytest.raises(ValueError, match="made with num_points 40, this model has 24; make them again"):
        checked(world, "fp32", {"model": model, "data": only})
    processor = Path(other.blip2) / "preprocessor_config.json"
    for change, says in (
        ({"image_mean": [0.5] * 3}, "image_mean .*, this model has"),
        ({"size": 8}, "image_size 16, this model has 8"),
    ):
        shutil.copyfile(Path(world.foundation.blip2) / "model.safetensors", Path(other.blip2) / "model.safetensors")
        before = processor.read_text()
        processor.write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(ValueError, match=says):
            checked(
                world,
                "fp32",
                {},
                FoundationConfig(other.blip2, world.foundation.text_branch, world.foundation.point_encoder),
            )
        processor.write_text(before)


def both_ways(world: World, sets: str, more: dict[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    state = {"sets": sets, "more": more}
    return lambda: checked(world, state["sets"], state["more"]), state


@remedy("would change what the encoder reads; set data.augment=false, or list the set that they were made from")
def test_features_of_a_run_that_augments(world: World):
    fault, state = both_ways(world, "fp32", {})
    state["more"] = {"data": _listed(world, "fp32") | {"augment": True}}
    return fault, lambda _: state.update(more={"data": _listed(world, "fp32") | {"augment": False}})


@remedy("make them again with `rb cache-features`, or list the set")
def test_features_of_another_number_of_points(world: World):
    model = to_tree(tiny.model_config(world.foundation, train_modalities=MODALITIES, num_points=24))
    fault, state = both_ways(world, "fp32", {"model": model})
    return fault, lambda _: state.update(sets="")


@remedy(
    "shows its sources differently every time, so their features cannot be stored; train without it: data.augment=false"
)
def test_caching_for_a_run_that_augments(world: World, tmp_path: Path):
    options = ["data.augment=true"]

    def follow(said) -> None:
        options[0] = said.found(r"without it: (\S+)")

    return lambda: world.cache(POINT_CLOUD, tmp_path / "out", *options), follow


@remedy("prepare clouds of as many points as the model reads, or set model.num_points")
def test_caching_clouds_that_are_thinned(world: World, tmp_path: Path):
    options = ["model.num_points=24"]
    out = tmp_path / "out"
    return lambda: world.cache(POINT_CLOUD, out, *options), lambda _: options.append(f"model.num_points={NUM_POINTS}")


@remedy("list features of all of its sets, or of none")
def test_features_and_sources_of_one_modality(world: World):
    listed = [DataSource(str(world.folder / "fp32" / IMAGE_REGION)), DataSource(str(world.folder / IMAGE_REGION))]
    return lambda: open_training_data({IMAGE_REGION: listed}, 0), lambda _: listed.pop()


@remedy("holds frozen features, which only data.train can list; give the set that they were made from")
def test_features_to_validate_on(world: World):
    listed = [world.folder / "fp32" / IMAGE_REGION]

    def follow(said) -> None:
        digest = said.found(r"manifest digest (\w+)")
        sets = (world.folder / modality for modality in MODALITIES)
        listed[0] = next(path for path in sets if ManifestReader(path).digest == digest)

    return lambda: open_validation_data(DataConfig(val={IMAGE_REGION: (DataSource(str(listed[0])),)})), follow


def test_damaged_features_are_named() -> None:
    about = FeatureSet("float32", [2, 3], "m", {})
    good = {"features": torch.ones(2, 3), "frame": torch.ones(4, dtype=torch.float64)}
    for tensors, says in (
        (good | {"more": torch.ones(1)}, "must hold the tensor 'features'"),
        ({"features": good["features"]}, "must hold the tensor"),
        (good | {"frame": torch.ones(3, dtype=torch.float64)}, "must hold the tensor"),
        (
            good | {"features": torch.ones(3, 2)},
            r"holds features \[3, 2\] of torch.float32, its manifest says \[2, 3\]",
        ),
        (good | {"features": torch.ones(2, 3).bfloat16()}, "of torch.bfloat16"),
        (good | {"features": torch.full((2, 3), torch.nan)}, "not finite"),
    ):
        with pytest.raises(FormatError, match=says):
            decode_features(Stored(tensor_bytes(tensors), (0, 0), "here"), about, 4)
    data = tensor_bytes(good)
    assert torch.equal(decode_features(Stored(data, (0, 0), "here"), about, 4)[0], good["features"])
    for cut in range(0, len(data), 7):
        with pytest.raises(FormatError, match="here: holds no complete safetensors"):
            decode_features(Stored(data[:cut], (0, 0), "here"), about, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is not one of float32, bfloat16"),
        ({"shape": [7]}, "must be two whole numbers above 0"),
        ({"shape": [10**6, 10**6]}, "a record has at most"),
        ({"settings": 3}, "settings must map names to values"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_a_manifest_that_lies_about_its_features(world: World, change: dict[str, Any], says: str) -> None:
    tree = json.loads((world.folder / "fp32" / IMAGE_REGION / "manifest.json").read_text())
    tree["features"] |= change
    with pytest.raises(FormatError, match=says):
        parse_manifest(json.dumps(tree).encode(), "here")


def _listed(world: World, sets: str) -> dict[str, Any]:
    return {"train": {m: [{"manifest": str(world.folder / sets / m)}] for m in MODALITIES}, "num_workers": 0}
