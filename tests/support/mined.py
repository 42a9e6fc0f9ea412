"""What tests of mining use: tars of drawn images as img2dataset packs them, two small real stages (a segmenter, colour words as captions), a job."""

from __future__ import annotations

import io
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage.segmentation import felzenszwalb

from rb.core.files import file_sha256
from rb.data.index import ManifestReader
from rb.data.shards import verify_shards
from rb.mining.finish import Finished, finish
from rb.mining.inputs import InputImage, InputShard, find_inputs
from rb.mining.on_ray import run_on_ray
from rb.mining.record import ImageRecord, Region, read_records
from rb.mining.screen import SCREEN, Screen
from rb.mining.settings import FinishConfig, ScreenConfig, StageSize
from rb.mining.stage import Stage, made_of, run_stage, with_pixels
from rb.mining.views import encode_mask
from rb.mining.work import Made, alone_in, sweep

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 160, 40),
    "blue": (30, 50, 200),
    "yellow": (220, 200, 40),
    "white": (245, 245, 245),
}


def drawn(seed: int, side: int = 48) -> bytes:
    """A PNG of two coloured rectangles on grey with a gradient."""
    draws = np.random.default_rng(seed)
    grey = (
        np.linspace(*draws.integers(60, 190, 2), side)[None, :]
        + np.linspace(*draws.integers(-60, 60, 2), side)[:, None]
    )
    image = Image.fromarray(np.clip(np.repeat(grey[:, :, None], 3, axis=2), 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for left in (2, side // 2 + 2):
        x, y, w, h = left + draws.integers(0, 4), draws.integers(2, side // 2), *draws.integers(12, side // 2 - 6, 2)
        pen.rectangle(
            (int(x), int(y), int(x + w), int(y + h)), fill=list(COLOURS.values())[draws.integers(len(COLOURS))]
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, images: Sequence[tuple[str, bytes]], text: str | None = "a picture") -> Path:
    """Images with their text, as img2dataset packs them."""
    with tarfile.open(path, "w") as tar:
        for key, data in images:
            for extension, content in (("png", data), ("txt", text.encode() if text else b"")):
                if extension == "png" or text:
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return path


def input_tars(folder: Path, shards: int, images: int) -> list[InputShard]:
    """``shards`` tars of ``images`` images each, every one another picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        number = shard * images
        write_tar(folder / f"{shard:05d}.tar", [(f"{shard:05d}{i:04d}", drawn(number + i)) for i in range(images)])
    return find_inputs([str(folder)])


class Segments(Stage):
    """Regions by scikit-image's felzenszwalb."""

    name = "masks"

    def __init__(self) -> None:
        super().__init__({"scale": 100})

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        records, rejected = [], []
        for image in shard.images():
            try:
                if not isinstance(image, InputImage):
                    rejected.append((image.key, image.reason))
                    continue
                pixels = image.decode()
            except ValueError:
                rejected.append((image.key, "damaged image"))
                continue
            labels = felzenszwalb(np.asarray(pixels), scale=100, sigma=0.5, min_size=40)
            record = ImageRecord(image.key, *pixels.size, alt=image.text)
            for label in range(labels.max() + 1):
                ys, xs = np.nonzero(labels == label)
                box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
                region = Region(f"{image.key}:{label}", [float(v) for v in box], encode_mask(labels == label), len(xs))
                if len(xs) > pixels.width * pixels.height // 2:
                    region.drop(self.name, "too large")
                record.regions.append(region)
            records.append(record)
        return made_of(records, rejected)


class ColourWords(Stage):
    """Captions: the nearest colour word. ``pause_s``: time that an image takes at least, so that kills hit the middle."""

    name = "describe"

    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__({"words": "colours"})
        self.pause_s = pause_s

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        for record, image in with_pixels(shard, before):
            time.sleep(self.pause_s)
            for region in record.kept:
                x1, y1, x2, y2 = map(int, region.box)
                colour = np.median(np.asarray(image)[y1:y2, x1:x2].reshape(-1, 3), axis=0)
                word = min(COLOURS, key=lambda name: float(np.abs(colour - COLOURS[name]).sum()))
                region.text = f"a {word} block on a grey wall"
        return made_of(before)


def stages(pause_s: float = 0.0) -> list[Stage]:
    """Of a small job."""
    return [Segments(), ColourWords(pause_s), Screen(ScreenConfig())]


def job(
    out: Path,
    shards: Sequence[InputShard],
    pause_s: float = 0.0,
    max_rejected: float = 1.0,
    bytes_a_shard: int = 20_000,
) -> Finished:
    """The whole job in this process, as ``rb mine run --local`` does it."""
    with alone_in(out):
        sweep(out)
        for shard in shards:
            before = None
            for stage in stages(pause_s):
                run_stage(stage, shard, out, before, max_rejected)
                before = stage.name
        return finish(out, shards, SCREEN, FinishConfig(max_shard_bytes=bytes_a_shard))[0]


def outputs(out: Path) -> dict[str, str]:
    """Digests of all that a job writes, but for the records, which hold seconds."""
    files = [*out.glob("*/*.jsonl"), out / "mined.jsonl", *(out / "shards").iterdir()]
    return {str(path.relative_to(out)): file_sha256(path) for path in sorted(files)}


def check_whole(out: Path, images: int) -> None:
    """Every image and every region is in the history once, every kept region in the set once, and nothing is left half written."""
    history = read_records(out / "mined.jsonl")
    assert len({record.key for record in history}) == len(history) == images
    ids = [region.id for record in history for region in record.regions]
    assert len(set(ids)) == len(ids) > images
    kept = [region.id for record in history for region in record.kept]
    verify_shards(out / "shards")
    reader = ManifestReader(out / "shards")
    assert [f"{r.source_id}:{item.object_id}" for r, _ in reader.records() for item in r.objects] == kept
    assert [path for path in out.rglob("*") if path.name.endswith(".tmp") or "unfinished" in path.name] == []


SIZES = {"masks": StageSize(2, 0.25), "describe": StageSize(2, 0.25), SCREEN: StageSize(1, 0.25)}


def ray_job(out: Path, shards: Sequence[InputShard], pause_s: float = 0.0, address: str | None = None) -> Finished:
    """``job`` on Ray."""
    with alone_in(out):
        sweep(out)
        run_on_ray(stages(pause_s), shards, out, SIZES, address=address)
        return finish(out, shards, SCREEN, FinishConfig(max_shard_bytes=20_000))[0]


if __name__ == "__main__":  # python -m tests.support.mined local|ray IN OUT PAUSE_S [ADDRESS]: a job that a drill kills
    kind, source, target, pause, *rest = sys.argv[1:]
    given = find_inputs([source])
    if kind == "local":
        job(Path(target), given, float(pause))
    else:
        ray_job(Path(target), given, float(pause), *rest)
