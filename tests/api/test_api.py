"""The Python API: one encoder pass per image, the same text as one by one, every kind of input, errors that say what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from rb.api import RegionBLIP
from rb.api.inputs import InputError
from rb.checkpoints.export_folder import ExportError
from rb.cli import main as rb
from rb.core.config import FoundationConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.exporting.writing import export_run
from tests.support import tiny
from tests.support.exported import MODALITIES, make_run

SIZE = (23, 17)
BOXES = [[1.0, 2.0, 9.0, 11.0], [3.0, 3.0, 20.0, 16.0], [0.0, 0.0, 23.0, 17.0]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(folder of the foundation, run folder, export)."""
    folder = tmp_path_factory.mktemp("api")
    run = make_run(folder / "runs", tiny.write_foundation(folder / "foundation"))
    export_run(run, folder / "out")
    return folder / "foundation", run, folder / "out"


@pytest.fixture(scope="module")
def model(world: tuple[Path, Path, Path]) -> RegionBLIP:
    return RegionBLIP.from_pretrained(world[2], world[0])


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)) for _ in range(count)]


def clouds(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(40, 3)).astype(np.float32) * 3 + 5 for _ in range(count)]


@pytest.fixture
def encoded(model: RegionBLIP, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sources went through an encoder, call by call."""
    seen: list[int] = []
    encode = model.model.encode

    def counting(modality: str, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        return encode(modality, inputs)

    monkeypatch.setattr(model.model, "encode", counting)
    return seen


def test_each_image_is_encoded_once_and_the_texts_are_those_of_single_calls(
    model: RegionBLIP, encoded: list[int]
) -> None:
    images = pictures(5)
    boxes = [BOXES[: 1 + i % 3] for i in range(5)]
    together = model.caption(images, boxes, box_format="pixels", batch_size=2)
    assert encoded == [2, 2, 1]
    encoded.clear()
    single = [
        [model.caption(image, box, box_format="pixels") for box in rows]
        for image, rows in zip(images, boxes, strict=True)
    ]
    assert sum(encoded) == sum(map(len, boxes))
    assert together == single
    assert len({text for rows in single for text in rows}) > 1  # they are not all the same sentence
    encoded.clear()
    cloud = clouds(1)[0]
    low, high = cloud.min(0), cloud.max(0)
    cloud_boxes = [[*low, *high], [*low, *(low + 2 * high) / 3], [*(2 * low + high) / 3, *high]]
    texts = model.caption_points(cloud, cloud_boxes)
    assert encoded == [1]
    assert texts == [model.caption_points(cloud, box) for box in cloud_boxes]


def test_answers_have_the_shape_of_the_question(model: RegionBLIP) -> None:
    images, points = pictures(2), clouds(2)
    assert isinstance(model.caption(images[0]), str)
    assert [type(text) for text in model.caption(images)] == [str, str]
    assert isinstance(model.caption(images[0], BOXES[0], box_format="pixels"), str)
    mixed = model.caption(images, [BOXES[0], BOXES], box_format="pixels")
    assert (type(mixed[0]), len(mixed[1])) == (str, 3)
    assert model.caption(images, [[], BOXES[:1]], box_format="pixels")[0] == []
    assert isinstance(model.caption_points(points[0]), str)
    assert len(model.caption_points(points)) == 2


def test_every_kind_of_input_is_the_same_image(model: RegionBLIP, tmp_path: Path) -> None:
    image = pictures(1)[0]
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())
    kinds = [image, array, tensor, tensor.float() / 255, array / 255.0, tmp_path / "a.png", str(tmp_path / "a.png")]
    first = model.embed(image, BOXES, "pixels")
    for kind in kinds[1:]:
        assert torch.equal(model.embed(kind, BOXES, "pixels"), first)
    normalised = [[x1 / 23, y1 / 17, x2 / 23, y2 / 17] for x1, y1, x2, y2 in BOXES]
    for boxes in (normalised, np.array(normalised), torch.tensor(normalised, dtype=torch.float64)):
        torch.testing.assert_close(model.embed(image, boxes, "normalised"), first)
    cloud = clouds(1)[0]
    assert torch.equal(model.embed_points(torch.from_numpy(cloud)), model.embed_points(cloud))


def test_run_folder_export_and_one_folder_say_the_same(world: tuple[Path, Path, Path], model: RegionBLIP) -> None:
    foundation, run, out = world
    image = pictures(1)[0]
    expected = model.caption(image, BOXES, box_format="pixels")
    assert RegionBLIP.from_pretrained(run).caption(image, BOXES, box_format="pixels") == expected
    alone = RegionBLIP.from_pretrained(out / IMAGE_REGION, foundation)
    assert alone.modalities == (IMAGE_REGION,)
    assert alone.caption(image, BOXES, box_format="pixels") == expected
    with pytest.raises(InputError, match="point_cloud is not in this checkpoint, which has image_region"):
        alone.caption_points(clouds(1)[0])
    points = FoundationConfig(str(foundation / "blip2-opt"), str(foundation / "text_branch"))
    lone_cloud = RegionBLIP.from_pretrained(out / POINT_CLOUD, points)  # its encoder lies in the export
    assert lone_cloud.caption_points(clouds(1)[0]) == model.caption_points(clouds(1)[0])
    with pytest.raises(ExportError, match="holds no frozen weights; give --foundation"):
        RegionBLIP.from_pretrained(out)


def test_prompt_is_what_the_caption_goes_on_from(model: RegionBLIP) -> None:
    images = pictures(4)
    plain, led = model.caption(images), model.caption(images, prompt="a photo of the")
    assert plain != led
    assert model.caption(images, prompt="a photo of the ") == led  # a space at its end is no word's
    assert model.caption(images) == plain


def test_retrieval_space_is_that_of_training(model: RegionBLIP) -> None:
    """Against the similarities that the ITC loss is computed from."""
    text = model.text
    batch = tiny.make_batch(IMAGE_REGION, text, range(3))
    found: list[torch.Tensor] = []
    from rb.model import losses

    original = losses.similarities

    def spy(queries: torch.Tensor, texts: torch.Tensor, *rest: object) -> object:
        found.extend([queries, texts])
        return original(queries, texts, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(losses, "similarities", spy)
        model.model(batch)
        output = model.model.query_output(IMAGE_REGION, model.model.encode(IMAGE_REGION, batch.inputs), batch.boxes)
    embeds = torch.nn.functional.normalize(model.model.parts[IMAGE_REGION].vision_proj(output), dim=-1)
    texts = model.embed_texts(batch.captions, IMAGE_REGION)
    torch.testing.assert_close(embeds, found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, found[1], rtol=1e-4, atol=1e-5)
    ours = model.embed(pictures(2), [BOXES, BOXES[0]], "pixels")
    assert ours.shape == (4, 4, 8)
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(4, 4))
    assert model.similarity(ours, texts).shape == (4, 3)
    with pytest.raises(InputError, match="image is not in this checkpoint"):
        model.embed(pictures(1))


def test_errors_say_what_is_wrong_and_what_would_be_right(model: RegionBLIP) -> None:
    image, cloud = pictures(1)[0], clouds(1)[0]
    bad = cloud.copy()
    bad[7, 1] = np.nan
    low = cloud.min(axis=0)
    cases = {
        r"box_format: None; say 'pixels' or 'normalised'": lambda: model.caption(image, BOXES[0]),
        r"boxes\[0\]\[1\]: .*leans out of the image of 23 x 17": lambda: model.caption(
            image, [BOXES[0], [5, 5, 40, 9]], box_format="pixels"
        ),
        r"is empty or not finite": lambda: model.caption(image, [9, 9, 9, 12], box_format="pixels"),
        r"if these are pixels": lambda: model.caption(image, BOXES[0], box_format="normalised"),
        r"if it is normalised": lambda: model.caption(image, [0.1, 0.1, 0.5, 0.5], box_format="pixels"),
        r"boxes have shape \(3,\); give \[4\] or \[n, 4\]": lambda: model.caption(
            image, [1, 2, 3], box_format="pixels"
        ),
        r"boxes must be numbers": lambda: model.caption(image, ["a", 1, 2, 3], box_format="pixels"),
        r"boxes: 1 entries for 2 images": lambda: model.caption([image] * 2, [BOXES], box_format="pixels"),
        r"images\[0\]: shape \(5, 4, 2\)": lambda: model.caption(np.zeros((5, 4, 2), np.uint8)),
        r"images\[0\]: type int64": lambda: model.caption(np.zeros((5, 4, 3), np.int64)),
        r"images\[0\]: floats must be finite and lie in 0\.\.1": lambda: model.caption(np.full((5, 4, 3), 200.0)),
        r"points\[0\]: 1 of 40 points are not finite.*first 7": lambda: model.caption_points(bad),
        r"points\[0\]: shape \(40, 2\)": lambda: model.caption_points(cloud[:, :2]),
        r"lies outside the cloud": lambda: model.caption_points(cloud, [50, 50, 50, 60, 60, 60]),
        r"holds none of the cloud's 40 points": lambda: model.caption_points(cloud, [*low, *(low + 1e-3)]),
        r"min x y z, max x y z with min < max": lambda: model.caption_points(cloud, [1, 1, 1, 0, 2, 2]),
        r"give \[6\] or \[n, 6\]": lambda: model.caption_points(cloud, BOXES[0]),
    }
    for words, call in cases.items():
        with pytest.raises(InputError, match=words):
            call()


def test_caption_command(
    world: tuple[Path, Path, Path], model: RegionBLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foundation, run, out = world
    image = pictures(1)[0]
    image.save(tmp_path / "a.png")
    boxes = [word for box in BOXES[:2] for word in ("--box", *map(str, box))]
    expected = model.caption(image, BOXES[:2], box_format="pixels")
    capsys.readouterr()
    command = ["caption", str(tmp_path / "a.png"), *boxes, "--checkpoint", str(out), "--foundation", str(foundation)]
    assert rb([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["caption"] for row in answer["captions"]] == expected
    assert [row["box"] for row in answer["captions"]] == BOXES[:2]
    assert rb(["caption", str(tmp_path / "a.png"), "--checkpoint", str(run)]) == 0
    assert capsys.readouterr().out == model.caption(image) + "\n"
    assert rb(["caption", str(tmp_path / "none.png"), "--checkpoint", str(run)]) == 2
    assert "no such file" in capsys.readouterr().err


def test_clouds_on_the_command_line(
    world: tuple[Path, Path, Path], model: RegionBLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud, file = clouds(1)[0], tmp_path / "scan.npy"
    np.save(file, cloud)
    low, high = cloud.min(0).astype(float), cloud.max(0).astype(float)
    box = [*low.tolist(), *((low + 2 * high) / 3).tolist()]
    expected = model.caption_points(cloud, [box])
    assert model.caption_points([str(file), cloud]) == [model.caption_points(cloud)] * 2
    same = [0.0, 0.0, 0.0, 2 / 3, 2 / 3, 2 / 3]
    assert torch.allclose(
        model.embed_points(file, [same], box_format="normalised"), model.embed_points(cloud, [box]), atol=1e-5
    )
    rest = ["--checkpoint", str(world[1]), "--json"]
    written = ",".join(map(repr, box))
    assert written.startswith("-")  # which argparse must not take for an option
    for given in ([str(file), "--box", written], ["--box", *map(str, box), str(file)]):
        assert rb(["caption", *given, "--metres", *rest]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer == {
            "cloud": str(file),
            "num_points": 40,
            "colours": False,
            "box_format": "metres",
            "captions": [{"box": box, "caption": expected[0]}],
        }
    assert rb(["caption", str(file), *rest]) == 0
    assert json.loads(capsys.readouterr().out)["captions"] == [{"box": None, "caption": model.caption_points(cloud)}]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["scan.npy", "--box", "0,0,0,1,1,1"], "say what its numbers are: --metres"),
        (["scan.npy", "--box", "0,0,1,1", "--metres"], "--box 1: has 4 numbers; a box of a cloud has 6"),
        (["scan.npy", "--box", "90,90,90,91,91,91", "--metres"], "--box 1: .* lies outside the cloud"),
        (["scan.npy", "--box", "9,9,9,1,1,1", "--metres"], "it must be min x y z, max x y z with min < max"),
        (["scan.npy", "--box", "3,3,3,7,7,7", "--normalised"], "is not within 0..1; if it is in the cloud's own units"),
        (["a.png", "--box", "0,0,9,9", "--box", "0,0,1"], "--box 2: has 3 numbers; a box of an image has 4"),
        (["a.png", "--box", "0,0,9,x"], "--box 1: 'x' is not a number"),
        (["a.png", "--box", "0,0,99,9"], "--box 1: .* leans out of the image of 23 x 17"),
        (["a.png", "--box", "0,0," + "9" * 4000 + ",9"], "--box 1: .* is empty or not finite"),
        (["a.png", "--box", "0,0,9,9", "--metres"], "--metres: .*a.png is an image"),
        (["--box", "0,0,9,9"], "name the image or cloud to caption"),
        (["broken.ply"], "it is a web page"),
    ],
)
def test_what_cannot_be_captioned_is_said_before_the_model_is_loaded(
    words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", clouds(1)[0])
    pictures(1)[0].save("a.png")
    Path("broken.ply").write_text("<html>")
    assert rb(["caption", *words, "--checkpoint", "there is none"]) == 2
    said = capsys.readouterr().err
    assert re.search(error, said)
    assert said.count("\n") == 1


def test_a_checkpoint_for_other_inputs_is_refused_before_its_foundation_is_read(
    world: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("rb.inference.load.build_model", loaded)
    np.save(tmp_path / "scan.npy", clouds(1)[0])
    command = ["caption", str(tmp_path / "scan.npy"), "--foundation", str(world[0])]
    assert rb([*command, "--checkpoint", str(world[2] / IMAGE_REGION)]) == 2
    assert "has image_region, but not point_cloud; give one trained for it" in capsys.readouterr().err


def test_a_phone_photo_is_read_upright_and_this_is_said(
    world: tuple[Path, Path, Path],
    model: RegionBLIP,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    upright, photo = pictures(1)[0], tmp_path / "photo.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(photo, exif=exif)  # stored 17 x 23, looks 23 x 17
    box = [12.0, 2.0, 21.0, 11.0]  # leans out of the stored pixels
    expected = model.caption(upright, box, box_format="pixels")
    for given in (photo, Image.open(photo)):
        caplog.clear()
        first, second = model.embed([upright, given], [box, box], "pixels")
        assert torch.equal(first, second)
        assert "1 of 2 images turned upright, as their EXIF says (first: images[1])" in caplog.text
    command = ["caption", str(photo), "--checkpoint", str(world[1]), "--json", "--box", *map(str, box)]
    assert rb(command) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) | {"captions": []} == {
        "image": str(photo),
        "size": [23, 17],
        "turned_upright": True,
        "box_format": "pixels",
        "captions": [],
    }
    assert json.loads(printed.out)["captions"][0]["caption"] == expected
    assert "photo.png: turned upright (EXIF orientation 6): 23 x 17 pixels; boxes are of this image" in printed.err


def test_names_of_the_modalities(model: RegionBLIP) -> None:
    assert model.modalities == MODALITIES == (IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION)
    assert IMAGE not in model.modalities
