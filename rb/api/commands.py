"""``rb caption``: captions of one image or cloud, or of boxes in it, as lines or JSON. The work is done by ``rb/api/model.py``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.core.device import add_device, usable_device
from rb.core.exit_codes import FINISHED
from rb.core.output import add_json, note, say, say_json
from rb.inference.commands import add_foundation


@dataclass(frozen=True)
class _Source:
    """What is captioned, read and checked: the input, how its boxes count, what ``--json`` says of it."""

    given: Any
    box_format: str
    words: dict[str, Any]


def add_caption(parser: argparse.ArgumentParser) -> None:
    """``rb caption``."""
    # So that "--box -1,0,0,2,2,2" is a value of --box, not an option; argparse has no public way to say it.
    parser._negative_number_matcher = re.compile(r"-[\d.].*")  # noqa: SLF001
    parser.add_argument(
        "file", type=Path, nargs="?", help="image (JPEG, PNG, WebP) or cloud (.ply, .pcd, .npy, .npz, .pt, .xyz)"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="run folder, checkpoint, export, or one modality's folder of an export",
    )
    parser.add_argument(
        "--box",
        nargs="+",
        action="append",
        metavar="NUMBER",
        help="a region: X1 Y1 X2 Y2 of an image, X1 Y1 Z1 X2 Y2 Z2 (min, max) of a cloud; spaces or commas between; may be repeated",
    )
    units = parser.add_mutually_exclusive_group()
    units.add_argument(
        "--normalised",
        action="store_true",
        help="boxes are 0 to 1: divided by width and height, or along each axis of the cloud's extent",
    )
    units.add_argument("--metres", action="store_true", help="boxes of a cloud are in the units of its file")
    add_foundation(parser)
    parser.add_argument("--prompt", help="text that the caption goes on from")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run_caption)


def run_caption(args: argparse.Namespace) -> int:
    """Print the captions. A device, file, box or checkpoint that cannot be used is refused before the model is loaded."""
    device = usable_device(args.device)
    file, boxes = _file_and_boxes(args.file, args.box or ())
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    from rb.sources.cloud_files import EXTENSIONS

    is_cloud = file.suffix.lower() in EXTENSIONS
    source = (_cloud if is_cloud else _image)(file, boxes, args)

    from rb.api import RegionBLIP
    from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
    from rb.inference.load import build_trained, read_trained

    trained = read_trained(args.checkpoint, args.foundation)
    modality = (POINT_CLOUD_REGION if boxes else POINT_CLOUD) if is_cloud else IMAGE_REGION if boxes else IMAGE
    if modality not in (IMAGE, *trained.model.train_modalities):
        there = ", ".join(trained.model.train_modalities)
        raise ValueError(f"--checkpoint {args.checkpoint}: has {there}, but not {modality}; give one trained for it")
    model = RegionBLIP(build_trained(trained, device, args.allow))
    caption = model.caption_points if is_cloud else model.caption
    captions: list[str]
    if boxes:
        captions = caption(source.given, boxes, prompt=args.prompt, box_format=source.box_format)
    else:
        captions = [caption(source.given, prompt=args.prompt)]
    if args.json:
        asked: Sequence[list[float] | None] = boxes or [None]
        rows = [{"box": box, "caption": text} for box, text in zip(asked, captions, strict=True)]
        say_json(source.words | {"box_format": source.box_format if boxes else None, "captions": rows})
    else:
        say("\n".join(captions))
    return FINISHED


def _file_and_boxes(file: Path | None, given: Sequence[Sequence[str]]) -> tuple[Path, list[list[float]]]:
    """The file, which ``--box`` takes for one of its numbers where it follows them, and the boxes."""
    rows = [[word for part in words for word in part.split(",") if word] for words in given]
    if file is None and rows and not _is_number(given[-1][-1].split(",")[0]):
        file, rows[-1] = Path(given[-1][-1]), [word for part in given[-1][:-1] for word in part.split(",") if word]
    if file is None:
        raise ValueError("name the image or cloud to caption, e.g. rb caption photo.jpg --checkpoint RUN_DIR")
    for number, row in enumerate(rows, 1):
        wrong = next((word for word in row if not _is_number(word)), None)
        if wrong is not None:
            raise ValueError(f"--box {number}: {wrong!r} is not a number; write e.g. --box 48,30,210,190")
    return file, [[float(word) for word in row] for row in rows]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _check_length(boxes: Sequence[Sequence[float]], length: int, what: str) -> None:
    for number, box in enumerate(boxes, 1):
        if len(box) != length:
            raise ValueError(f"--box {number}: has {len(box)} numbers; a box of {what}")


def _image(file: Path, boxes: Sequence[Sequence[float]], args: argparse.Namespace) -> _Source:
    import rb.api.inputs as inputs
    from rb.sources.pixels import UPRIGHT

    if args.metres:
        raise ValueError(f"--metres: {file} is an image; its boxes are in pixels, or --normalised")
    _check_length(boxes, 4, "an image has 4: X1 Y1 X2 Y2")
    image, orientation = inputs.rgb_image(file, str(file))
    if orientation != UPRIGHT:
        size = f"{image.width} x {image.height} pixels"
        note(f"{file}: turned upright (EXIF orientation {orientation}): {size}; boxes are of this image")
    box_format = "normalised" if args.normalised else "pixels"
    for number, box in enumerate(boxes, 1):
        inputs.image_box(box, image.size, box_format, f"--box {number}")
    words = {"image": str(file), "size": list(image.size), "turned_upright": orientation != UPRIGHT}
    return _Source(image, box_format, words)


def _cloud(file: Path, boxes: Sequence[Sequence[float]], args: argparse.Namespace) -> _Source:
    import rb.api.inputs as inputs
    from rb.sources.cloud_files import read_cloud

    if boxes and not (args.metres or args.normalised):
        raise ValueError(
            f"--box: say what its numbers are: --metres (the units of {file}), or --normalised (0 to 1 along each axis of the cloud)"
        )
    _check_length(boxes, 6, "a cloud has 6: X1 Y1 Z1 X2 Y2 Z2 (min, max)")
    found = read_cloud(file)
    for sentence in found.notes:
        note(f"{file}: {sentence}")
    box_format = "normalised" if args.normalised else "metres"
    for number, box in enumerate(boxes, 1):
        inputs.cloud_box(box, found.points, box_format, f"--box {number}")
    words = {"cloud": str(file), "num_points": len(found.points), "colours": found.points.shape[1] == 6}
    return _Source(found.points, box_format, words)
