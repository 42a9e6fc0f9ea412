"""What the messages of the Python API, `rb caption`, `rb predict` and `rb export` advise helps."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rb.api import RegionBLIP, inputs
from rb.core.files import CannotWriteError
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD
from rb.data.index import ManifestReader
from rb.data.predictions import read_predictions
from rb.data.shard_writer import ShardWriter
from rb.exporting.writing import export_run
from rb.inference import predicting
from rb.inference.predicting import CROPS, SHUFFLED, WHOLE, Job
from tests.data.test_formats import rows
from tests.data.test_questions import ABOUT
from tests.inference.test_load import altered
from tests.support.exported import make_run
from tests.support.remedies import Said, covers, helps, remedy, typed
from tests.support.small_data import image_bytes, media, write_set
from tests.support.weights_files import no_key_bias

CLOUD = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
NAN = CLOUD.copy()
NAN[7] = np.nan
LOW, HIGH = CLOUD.min(0), CLOUD.max(0)
OWN = [*LOW.tolist(), *HIGH.tolist()]
OWN_METRES = [*(LOW * 4).tolist(), *(HIGH * 4).tolist()]
# Message -> (call, arguments that it refuses, arguments as it says; {NAME} words are taken from the message).
CALLS = {
    "give [H, W, 3], [H, W], or a torch tensor [3, H, W]": (
        inputs.rgb_image,
        (np.zeros((4, 5, 4), np.uint8), "a"),
        (np.zeros((4, 5, 3), np.uint8), "a"),
    ),
    "{}: type {}; give uint8 in 0..255 or floats in 0..1": (
        inputs.rgb_image,
        (np.zeros((4, 5), np.int64), "a"),
        (np.zeros((4, 5), np.uint8), "a"),
    ),
    "floats must be finite and lie in 0..1; give uint8 for 0..255": (
        inputs.rgb_image,
        (np.full((4, 5), 200.0), "a"),
        (np.full((4, 5), 200, np.uint8), "a"),
    ),
    "give [N, 3] xyz or [N, 6] xyz and colour": (inputs.cloud, (CLOUD.T, "a"), (CLOUD, "a")),
    "give [{}] or [n, {}]": (inputs.box_rows, ([[[1, 2, 3, 4]]], 4, "a"), ([[1, 2, 3, 4]], 4, "a")),
    "if these are pixels, say box_format='pixels'": (
        inputs.image_box,
        ([1, 2, 9, 11], (23, 17), "normalised", "a"),
        ([1, 2, 9, 11], (23, 17), "{say box_format='(.*)'}", "a"),
    ),
    "if it is normalised, say box_format='normalised'": (
        inputs.image_box,
        ([0.1, 0.2, 0.9, 0.5], (23, 17), "pixels", "a"),
        ([0.1, 0.2, 0.9, 0.5], (23, 17), "{say box_format='(.*)'}", "a"),
    ),
    "leans out of the image of {} x {} pixels; clip it": (
        inputs.image_box,
        ([1, 2, 30, 11], (23, 17), "pixels", "a"),
        ([1, 2, 23, 11], (23, 17), "pixels", "a"),
    ),
    "if it is in the cloud's own units, say box_format='metres'": (
        inputs.cloud_box,
        (OWN_METRES, CLOUD * 4, "normalised", "a"),
        (OWN_METRES, CLOUD * 4, "{say box_format='(.*)'}", "a"),
    ),
    "holds none of the cloud's {} points; give a box that does": (
        inputs.cloud_box,
        ([*(LOW + 1e-3), *(LOW + 2e-3)], CLOUD, "metres", "a"),
        (OWN, CLOUD, "metres", "a"),
    ),
    "say 'pixels' or 'normalised' (divided by width and height)": (
        inputs.check_box_format,
        (None,),
        ("{say '(.*?)'}",),
    ),
    "say 'metres' (the cloud's own units) or": (inputs.check_cloud_box_format, ("pixels",), ("{say '(.*?)'}",)),
    "give one entry (a box or a list of boxes) for each": (
        inputs.per_source,
        ([[1, 2, 3, 4]], 2, False, "images"),
        ([[1, 2, 3, 4]] * 2, 2, False, "images"),
    ),
}


@pytest.mark.parametrize("says", covers(CALLS))
def test_a_call_is_corrected_as_it_is_said(says: str) -> None:
    call, given, advised = CALLS[says]
    arguments = [given]

    def follow(said: Said) -> None:
        is_word = [isinstance(word, str) and word.startswith("{") for word in advised]
        arguments[0] = tuple(said.found(w[1:-1]) if yes else w for w, yes in zip(advised, is_word, strict=True))

    helps(says, lambda: list(call(*arguments[0])) and None, follow)


def test_points_that_are_not_finite_are_removed() -> None:
    cloud = [NAN]
    # The same words stand in rb/sources, whose tests run that place.
    helps(
        "points are not finite (NaN or infinite), first {}; remove them",
        lambda: inputs.cloud(cloud[0], "a"),
        lambda _: cloud.append(cloud.pop()[np.isfinite(NAN).all(1)]),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to caption, shards to predict."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "a.png").write_bytes(image_bytes(0))
    np.save(folder / "a.npy", CLOUD)
    for modality in (IMAGE, IMAGE_REGION, POINT_CLOUD):
        write_set(folder / modality, modality, 2)
    return folder


CAPTION = {
    "name the image or cloud to caption, e.g. rb caption photo.jpg": ([], "a.png", []),
    "is not a number; write e.g. --box 48,30,210,190": (["a.png", "--box", "1,2,x,8"], None, ["--box", "1,2,9,8"]),
    "--metres (the units of {}), or": (["a.npy", "--box", "-9,-9,-9,9,9,9"], None, ["{or (--normalised)}"]),
}


@pytest.mark.parametrize("says", covers(CAPTION))
def test_caption(finished: Path, folder: Path, says: str) -> None:
    before, file, advised = CAPTION[says]
    words = [str(folder / word) if word.startswith("a.") else word for word in before]

    def follow(said: Said) -> None:
        if file:
            words.insert(0, str(folder / file))
        elif "e.g. --box" in says:
            words[words.index("--box") :] = advised
        else:
            words[words.index("--box") + 1] = "0,0,0,1,1,1"
            words.append(said.found(advised[0][1:-1]))

    helps(says, lambda: typed("caption", *words, "--checkpoint", finished / "run", "--device", "cpu"), follow)


METRES = "is an image; its boxes are in pixels, or --normalised"


@pytest.mark.parametrize("way", ["pixels", "normalised"])
def test_an_image_in_metres(finished: Path, folder: Path, way: str) -> None:
    words = ["caption", folder / "a.png", "--checkpoint", finished / "run", "--device", "cpu", "--box", "1,2,9,8"]

    def follow(said: Said) -> None:
        words.pop()
        if way == "normalised":
            words[-2:] = ["--box", "0.1,0.1,0.9,0.9", said.found(r"or (--\w+)")]

    words.append("--metres")
    helps(METRES, lambda: typed(*words), follow)


covers([METRES])


@pytest.fixture(scope="module")
def regions_only(finished: Path) -> Path:
    """An export of image regions alone: one modality's folder."""
    return finished / "export" / IMAGE_REGION


@remedy("has {}, but not {}; give one trained for it")
def test_a_checkpoint_of_another_modality(finished: Path, regions_only: Path, foundation, folder: Path):
    home, at = Path(foundation.blip2).parent, [regions_only]
    words = ["caption", folder / "a.npy", "--foundation", home, "--device", "cpu"]
    return lambda: typed(*words, "--checkpoint", at[0]), lambda _: at.append(at.pop() and finished / "export")


@remedy("is not in this checkpoint, which has {}; load one trained for it")
def test_a_model_of_another_modality(finished: Path, regions_only: Path, foundation):
    home, at = Path(foundation.blip2).parent, [regions_only]
    call = lambda: RegionBLIP.from_pretrained(at[0], home).caption_points([CLOUD]) and None  # noqa: E731
    return call, lambda _: at.append(at.pop() and finished / "export")


@remedy(
    "an export holds no frozen weights; give --foundation (foundation= in Python), a folder with {}/ and text_branch/"
)
def test_an_export_without_its_foundation(finished: Path, foundation, folder: Path):
    words = ["caption", folder / "a.png", "--checkpoint", finished / "export", "--device", "cpu"]

    def follow(said: Said) -> None:
        home = Path(foundation.blip2).parent
        assert (home / said.found(r"a folder with (\S+)/ and")).is_dir()
        words.extend([said.found(r"give (--\w+)"), home])

    return lambda: typed(*words), follow


ANOTHER = "name the right folder with --foundation, or accept this one with --allow foundation"


@pytest.mark.parametrize("way", ["name", "accept"])
def test_another_foundation(finished: Path, foundation, folder: Path, tmp_path: Path, way: str) -> None:
    home = Path(foundation.blip2).parent
    world = tmp_path / "world"
    shutil.copytree(home, world / "foundation")
    words = ["caption", folder / "a.png", "--checkpoint", finished / "run", "--device", "cpu"]
    words += ["--foundation", altered(world, tmp_path)]

    def follow(said: Said) -> None:
        if way == "name":
            words[words.index(said.found(r"folder with (--\w+),")) + 1] = home
        else:
            words.extend(said.found(r"with (--allow foundation)").split())

    helps(ANOTHER, lambda: typed(*words), follow)


covers([ANOTHER])


@remedy("with --run give model.foundation.blip2=FOLDER and so on")
def test_another_foundation_of_a_run_file(foundation, folder: Path, tmp_path: Path):
    home = Path(foundation.blip2).parent
    (tmp_path / "run.yaml").write_text(
        f"model: {{train_modalities: [image_region], max_text_tokens: 12, foundation: {{blip2: lost, text_branch: {foundation.text_branch}}}}}\n"
    )
    words = ["predict", "--run", tmp_path / "run.yaml", "--data", folder / IMAGE_REGION, "--modality", IMAGE_REGION]
    words += ["--out", tmp_path / "p.jsonl", "--foundation", home]
    follow = lambda said: words.__setitem__(slice(-2, None), [said.found(r"give (\S+=)FOLDER") + foundation.blip2])  # noqa: E731
    return lambda: typed(*words), follow


@remedy("`rb predict --checkpoint RUN_DIR --data MANIFEST --modality MODALITY --out {}` writes one")
def test_no_predictions(finished: Path, folder: Path, tmp_path: Path):
    values = {"RUN_DIR": finished / "run", "MANIFEST": folder / IMAGE_REGION, "MODALITY": IMAGE_REGION}

    def follow(said: Said) -> None:
        words = [str(values.get(word, word)) for word in said.commands[0].split()]
        assert "error" not in typed(*words[1:])

    return lambda: read_predictions(tmp_path / "p.jsonl"), follow


@pytest.mark.parametrize(
    ("says", "view", "modality"),
    [("leave --crop-boxes out", CROPS, IMAGE), ("leave --shuffle-boxes out", SHUFFLED, POINT_CLOUD)],
)
def test_views_of_boxes_where_there_are_none(folder: Path, says: str, view: str, modality: str) -> None:
    views = [view]
    reader = ManifestReader(folder / modality)
    helps(says, lambda: Job(reader, modality, view=views[0]), lambda _: views.append(views.pop() and WHOLE))


covers(["leave --crop-boxes out", "leave --shuffle-boxes out"])


@remedy("make room and move both files to {}")
def test_a_full_disk_under_predictions(tmp_path: Path, monkeypatch):
    """The disk refuses once; the files are then moved by hand and read."""
    real, out = predicting.write_predictions, tmp_path / "out" / "p.jsonl"

    def full(path: Path, *rest: object) -> None:
        if path == out:
            raise CannotWriteError(errno.ENOSPC, f"{path}: cannot be written ({os.strerror(errno.ENOSPC)})")
        real(path, *rest)

    monkeypatch.setattr(predicting, "write_predictions", full)

    def work() -> None:
        if not out.exists():
            predicting._write(out, rows(), {})
        read_predictions(out)

    def follow(said: Said) -> None:
        for path in sorted(Path(said.found(r"predictions are in (\S+): make")).iterdir()):
            target = Path(said.found(r"move both files to (\S+)$"))
            target.mkdir(exist_ok=True)
            shutil.move(path, target)

    return work, follow


@remedy("exists already; nothing is overwritten, name another folder")
def test_an_export_over_another(finished: Path, tmp_path: Path):
    out = [tmp_path]
    return lambda: export_run(finished / "run", out[0]), lambda _: out.append(out.pop() / "new")


@remedy("is an export already; name the run folder that it came from")
def test_an_export_of_an_export(finished: Path, tmp_path: Path):
    run = [finished / "export"]
    return lambda: export_run(run[0], tmp_path / "new"), lambda _: run.append(run.pop() and finished / "run")


@pytest.mark.parametrize(
    ("says", "changes"),
    [
        ("a plain BLIP-2 folder is always 'hf'; export without it", {"numerics": "lavis"}),
        ("a plain BLIP-2 has one Q-Former; export without it", {"point_qformer": "separate"}),
    ],
)
def test_a_merge_that_no_plain_blip2_can_hold(foundation, tmp_path: Path, says: str, changes: dict[str, str]) -> None:
    if changes.get("numerics") == "lavis":
        home = shutil.copytree(Path(foundation.blip2).parent, tmp_path / "foundation")
        no_key_bias(home / "blip2-opt")
        foundation = replace(foundation, blip2=str(home / "blip2-opt"))
    run = make_run(tmp_path, foundation, **changes)
    words = ["export", run, "--out", tmp_path / "out", "--merge"]
    helps(says, lambda: typed(*words), lambda said: words.remove(said.found(r"(--merge): ")))


covers(
    ["a plain BLIP-2 folder is always 'hf'; export without it", "a plain BLIP-2 has one Q-Former; export without it"]
)


@remedy("--decode released: is of captions, not of --task {}; leave it out")
def test_the_decoding_of_captions_for_answers(tmp_path: Path):
    with ShardWriter(tmp_path / "asked", "small", IMAGE, "val") as writer:
        writer.write(ABOUT, *media(IMAGE, 0))
    where = ["--data", tmp_path / "asked", "--modality", IMAGE, "--out", tmp_path / "answers.jsonl"]
    released = ["--decode", "released"]
    return (
        lambda: typed("predict", "--run", "toy_opt", *where, "--task", "vqa", *released),
        lambda _: released.clear(),
    )
