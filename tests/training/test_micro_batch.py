"""``train.micro_batch_size: auto``: every run file of the project starts on 1, 8, 16 and 32 ranks, a size is chosen by memory, a resume chooses anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rb.core.config import AUTO, FoundationConfig, RunConfig, TrainConfig
from rb.core.run_file import load_run, to_tree
from rb.core.run_layout import RUN_CONFIG, RUN_ENVIRONMENT
from rb.core.run_paths import view_run
from rb.core.step_layout import StepLayout
from rb.costs.memory import CONTEXT_BYTES, SPARE, largest_that_fits, room_of, step_bytes, step_on_meta
from rb.costs.meta_model import META, model_of
from rb.costs.on_meta import as_on_a_gpu
from rb.model.weights.build import build_model
from rb.training.micro_batch import CPU_MOST, choose_layout, memory_model
from tests.support import small_data, tiny
from tests.support.processes import finish, start_ranks
from tests.support.remedies import Fault, Said, remedy

RUNS = sorted((Path(__file__).parents[2] / "launch" / "runs").glob("*.yaml"))
TRAIN = TrainConfig(global_batch_size=32, contrastive_batch_size=16, ds_config="ds_configs/zero2_cpu.json")
MODALITIES = ("image_region", "point_cloud")


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
@pytest.mark.parametrize("ranks", [1, 8, 16, 32])
def test_every_run_file_starts_on_any_number_of_gpus(path: Path, ranks: int) -> None:
    config = view_run(path)
    if ranks > config.train.global_batch_size:  # the toy's steps have 16 samples
        with pytest.raises(ValueError, match=r"train.global_batch_size=32"):
            choose_layout(config, ranks, None)
        config = replace(config, train=replace(config.train, global_batch_size=32))
    layout = choose_layout(config, ranks, None)
    assert layout.global_batch_size == config.train.global_batch_size == layout.pool_size
    assert layout.micro_batch_size * layout.grad_accum_steps * ranks == layout.global_batch_size
    assert layout.micro_batch_size == min(layout.global_batch_size // ranks, CPU_MOST)


def test_allowed_sizes_divide_share_and_pool() -> None:
    sizes = [layout.micro_batch_size for layout in replace(TRAIN, contrastive_batch_size=8).layouts(2)]
    assert sizes == [8, 4, 2, 1]
    assert [layout.micro_batch_size for layout in replace(TRAIN, micro_batch_size=4).layouts(2)] == [4]


def test_words_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: a\n")

    def read(text: str) -> object:
        return load_run(tmp_path / "run.yaml", [f"train.micro_batch_size={text}"]).train.micro_batch_size

    assert (read("auto"), read("'auto'"), read("8")) == (AUTO, AUTO, 8)
    for wrong in ("many", "1.5", "true", "null"):
        with pytest.raises(ValueError, match=r"train.micro_batch_size: must be of type int or auto, got"):
            read(wrong)
    with pytest.raises(ValueError, match=r"train.micro_batch_size: .*0"):
        read("0")


def run_of(foundation: FoundationConfig, frozen_dtype: str = "auto") -> RunConfig:
    return RunConfig(model=tiny.model_config(foundation, frozen_dtype=frozen_dtype), train=TRAIN)


def device_of(room: int) -> int:
    """A device with so many bytes for tensors."""
    return round((room + CONTEXT_BYTES) / (1 - SPARE)) + 2


def test_the_largest_that_fits_is_chosen(foundation: FoundationConfig) -> None:
    config = run_of(foundation)
    memory = memory_model(config, 1)
    peaks = {layout.micro_batch_size: memory.peak(layout) for layout in config.train.layouts(1)}
    assert list(peaks) == [16, 8, 4, 2, 1]
    assert sorted(peaks.values(), reverse=True) == list(peaks.values())
    for size, peak in peaks.items():
        fits = largest_that_fits(config.train.layouts(1), memory.peak, room_of(device_of(peak)))
        assert fits is not None
        assert fits.micro_batch_size == size
    assert choose_layout(config, 1, device_of(peaks[4])).micro_batch_size == 4
    # The line between two counted sizes bounds what is counted in between.
    for modality in MODALITIES:
        counted = step_on_meta(memory.model, modality, 4).peak
        assert counted <= memory.of(modality, StepLayout(32, 4, 16, 1)).step <= 1.2 * counted


@pytest.mark.parametrize("modality", MODALITIES)
def test_predicted_bytes_are_those_of_a_real_step(foundation: FoundationConfig, modality: str) -> None:
    """The model with numbers on a CPU and without them on the meta device, the same captions."""
    config = tiny.model_config(foundation, frozen_dtype="float32")
    built = build_model(config, seed=0)
    batch = tiny.make_batch(modality, built.text, range(8))
    real = step_bytes(built.model, batch)
    without = model_of(config)
    with as_on_a_gpu():
        predicted = step_bytes(without, batch.to(META))
    assert predicted.saved == pytest.approx(real.saved, rel=0.1)
    assert predicted.peak == pytest.approx(real.peak, rel=0.1)


@pytest.mark.dist
def test_a_run_records_its_size_and_a_resume_chooses_anew(foundation: FoundationConfig, tmp_path: Path) -> None:
    small_data.write_set(tmp_path / "regions", "image_region", 10)
    tree = {
        "name": "auto",
        "output_dir": str(tmp_path),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["image_region"]},
        "data": {"train": {"image_region": [{"manifest": str(tmp_path / "regions")}]}, "num_workers": 0},
        "train": to_tree(TRAIN)
        | {"global_batch_size": 8, "contrastive_batch_size": None, "max_steps": 2, "num_threads": 1},
        "tracking": {"mlflow": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))

    def recorded() -> tuple[int, int]:
        place = json.loads((tmp_path / "auto" / RUN_ENVIRONMENT).read_text())
        assert load_run(tmp_path / "auto" / RUN_CONFIG).train.micro_batch_size == AUTO
        assert place["contrastive_batch_size"] == 8
        return place["ranks"], place["micro_batch_size"]

    finish(*start_ranks(2, "rb.train", "--run", tmp_path / "run.yaml", "train.checkpoint_every=1"))
    assert recorded() == (2, 4)
    finish(*start_ranks(1, "rb.train", "--resume", tmp_path / "auto"))
    assert recorded() == (1, 8)


@remedy("auto finds no size that fits: one sample takes {} GB of the {} GB that a GPU here has for it; use larger GPUs")
def test_no_size_fits(foundation: FoundationConfig) -> tuple[Fault, Callable[[Said], object]]:
    config, device = run_of(foundation), {"device_bytes": CONTEXT_BYTES}
    return lambda: choose_layout(config, 1, **device), lambda _: device.update(device_bytes=80_000_000_000)


@remedy(
    "is not a multiple of {} ranks; use a number of ranks that divides it, or for a new run train.global_batch_size={}"
)
def test_ranks_that_do_not_divide() -> tuple[Fault, Callable[[Said], object]]:
    sizes = {"global_batch_size": 32}

    def follow(said: Said) -> None:
        sizes["global_batch_size"] = int(said.found(r"train.global_batch_size=(\d+)"))

    return lambda: TrainConfig(**sizes).layout(12), follow


@remedy(
    "of model.itm_negatives=local, which seeks negatives within a micro-batch; give a number, such as train.micro_batch_size=16"
)
def test_auto_would_change_local_negatives(tmp_path: Path) -> tuple[Fault, Callable[[Said], object]]:
    (tmp_path / "run.yaml").write_text("model: {itm_negatives: local}\n")
    overrides: list[str] = []
    return lambda: load_run(tmp_path / "run.yaml", overrides), lambda said: overrides.append(said.split("such as ")[1])
