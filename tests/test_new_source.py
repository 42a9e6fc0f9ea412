"""A new source, video: one class in a file and one row of each table; from shards to index, training, prediction and a page.

``VideoSource`` is the file that docs/extending.md ("A source") speaks of; nothing else of the project is changed or replaced here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageSequence
from torch import Tensor

from rb.cli import main as rb
from rb.core.boxes import image_box_problem, normalise_image_box
from rb.core.config import DecodeConfig, FoundationConfig, ModelConfig
from rb.core.modality import MODALITIES, ModalitySpec
from rb.core.run_file import to_tree
from rb.core.step_layout import StepLayout
from rb.core.strict_json import FormatError
from rb.data.formats import ObjectAnnotation, Record
from rb.data.index import ManifestReader
from rb.data.order import Stream
from rb.data.pipeline import PredictDataset, TrainDataset, TrainingData, train_loader
from rb.data.predictions import read_predictions
from rb.data.shard_writer import ShardWriter
from rb.drawing.page import Html
from rb.drawing.pictures import image_with_box
from rb.inference.generate import caption_batches
from rb.model.weights.build import build_model
from rb.pages.gallery import gallery
from rb.sources.images import ImageTransform
from rb.sources.source import Draws, EncoderSettings, FrozenEncoders, Source, Stored
from rb.sources.table import SOURCES
from rb.training.schedule import Schedule
from tests.support import tiny
from tests.support.loading import as_loaded

FRAMES = 3  # of a video that the model sees
SIDE, STEPS = 32, 25

# -- the file of the new source ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoTransform:
    """As every frame is transformed."""

    image: ImageTransform


class VideoSource(Source[VideoTransform]):
    """Short GIFs, three evenly spread frames of each, read frame by frame by BLIP-2's vision encoder; boxes as of images, over all frames."""

    name = "video"
    extensions = ("gif",)
    page_hint = "Of a video the middle frame is shown."

    @staticmethod
    def frames(stored: Stored) -> list[Image.Image]:
        """All frames, RGB."""
        try:
            with Image.open(io.BytesIO(stored.media), formats=("GIF",)) as file:
                return [frame.convert("RGB") for frame in ImageSequence.Iterator(file)]
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise FormatError(f"{stored.where}: not a readable GIF ({error})") from None

    def check(self, stored: Stored) -> None:
        """As many frames as the model reads, of the record's size."""
        frames = self.frames(stored)
        if len(frames) < FRAMES or frames[0].size != stored.size:
            raise FormatError(
                f"{stored.where}: {len(frames)} frames of {frames[0].size}, the record says {stored.size}"
            )

    def check_size(self, size: tuple[int, int], where: str) -> None:
        """A frame's size."""
        if min(size) <= 0:
            raise FormatError(f"{where}: width and height must be a frame's size, got {size}")

    def box_problem(self, box: Sequence[float], size: tuple[int, int]) -> str | None:
        """As of images."""
        return image_box_problem(box, *size)

    def transform(self, config: ModelConfig, settings: EncoderSettings) -> VideoTransform:
        """The image processor's settings."""
        return VideoTransform(ImageTransform(settings.image_side))

    def read(
        self,
        transform: VideoTransform,
        stored: Stored,
        boxes: Sequence[Sequence[float]],
        draws: Draws,
        crop: tuple[Sequence[float], float] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """[F, 3, side, side], and each box in [0, 1]."""
        frames = self.frames(stored)
        chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
        numbers = [torch.tensor(normalise_image_box(box, *stored.size), dtype=torch.float32) for box in boxes]
        return torch.stack([transform.image(frame) for frame in chosen]), numbers

    def encode(self, frozen: FrozenEncoders, inputs: Tensor) -> Tensor:
        """[B, F, 3, H, W] to the patches of all frames, [B, F * P, V]."""
        return frozen.encode_images(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]).flatten(1, 2)

    def picture(self, stored: Stored, box: Sequence[float] | None, up: str, text: str, still: bool) -> Html:
        """The middle frame."""
        frames = self.frames(stored)
        return image_with_box(frames[len(frames) // 2], box, text)

    def box_words(self, config: ModelConfig) -> str:
        """Normalised corners."""
        return "x1 y1 x2 y2, divided by the frame's width and height"

    def random_inputs(
        self, transform: VideoTransform, rows: int, regional: bool, device: torch.device, draws: torch.Generator
    ) -> Tensor:
        """Any bytes."""
        shape = (rows, FRAMES, 3, transform.image.size, transform.image.size)
        return torch.randint(256, shape, dtype=torch.uint8, device=device, generator=draws)


# -- its rows ---------------------------------------------------------------------------------------------------------

VIDEO = ModalitySpec("video_region", "video", 4, "a video of", trains_by_default=True)


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, VideoSource.name, VideoSource())
    monkeypatch.setitem(MODALITIES, VIDEO.name, VIDEO)


# -- the trial --------------------------------------------------------------------------------------------------------


def gif(i: int) -> tuple[bytes, list[float]]:
    """Five frames of a white square that moves right, or down in every second video, and a box around its way."""
    frames = []
    for step in range(5):
        pixels = np.full((SIDE, SIDE, 3), 40 + i % 4, np.uint8)
        x, y = (4, 4 + 4 * step) if i % 2 else (4 + 4 * step, 4)
        pixels[y : y + 8, x : x + 8] = 255
        frames.append(Image.fromarray(pixels))
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue(), [4.0, 4.0, 12.0, 28.0] if i % 2 else [4.0, 4.0, 28.0, 12.0]


def write_videos(folder: Path, count: int, split: str) -> Path:
    with ShardWriter(folder, "squares", VIDEO.name, split) as writer:
        for i in range(count):
            media, box = gif(i)
            words = ["ball left" if i % 2 else "cube right"]
            objects = [ObjectAnnotation("square", box, words)]
            writer.write(Record(f"video/{i}", "squares", split, SIDE, SIDE, [], objects), media, "gif")
    return folder


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    media, box = gif(0)
    good = Record("v", "squares", "train", SIDE, SIDE, [], [ObjectAnnotation("o", box, ["a ball"])])
    with ShardWriter(tmp_path / "set", "squares", VIDEO.name, "train") as writer:
        writer.write(good, media, "gif")
        with pytest.raises(FormatError, match="media 'png' does not fit a set of video_region: it holds gif"):
            writer.write(good, media, "png")
        with pytest.raises(FormatError, match="not a readable GIF"):
            writer.write(good, media[:20], "gif")
        with pytest.raises(FormatError, match="box_outside_image"):
            outside = [ObjectAnnotation("o", [0.0, 0.0, 99.0, 9.0], ["a ball"])]
            writer.write(Record("w", "squares", "train", SIDE, SIDE, [], outside), media, "gif")


def test_a_new_source_is_one_row_and_one_file(foundation: FoundationConfig, tmp_path: Path, capsys) -> None:
    train = ManifestReader(write_videos(tmp_path / "train", 8, "train"))
    test = ManifestReader(write_videos(tmp_path / "test", 4, "test"))
    config = tiny.model_config(foundation, train_modalities=(VIDEO.name, "image_region"))
    built = build_model(config, seed=0)
    loaded = as_loaded(built, DecodeConfig(num_beams=2, max_new_tokens=4), trained=True)
    model, text, transform = built.model, loaded.text, loaded.transform

    # Training reads the shards as the loop does; the loss falls.
    data = {VIDEO.name: TrainingData([train], Stream(VIDEO.name, [len(train)], [1], 0))}
    schedule = Schedule("sequential", {VIDEO.name: len(train)}, 8)
    dataset = TrainDataset(
        data,
        schedule.at,
        transform,
        text,
        total_steps=STEPS,
        layout=StepLayout(8, 8, 8, 1),
        rank=0,
    )
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
    losses = []
    for batch in train_loader(dataset):
        assert batch.inputs.shape == (8, FRAMES, 3, tiny.IMAGE_SIDE, tiny.IMAGE_SIDE)
        found = model(batch)
        assert set(found.terms) == {"itc", "itm", "itg", "llm", "reg"}
        found.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(found.terms["llm"].detach()))
    assert losses[-1] < 0.6 * losses[0], losses

    examples = PredictDataset(test, VIDEO.name, transform, batch_size=3)
    rows = [row for batch in caption_batches(loaded, examples, VIDEO.name) for row in batch]
    assert [row.id for row in rows] == [f"video/{i}#square" for i in range(4)]
    assert {row.prediction.split()[0] for row in rows} <= {"ball", "cube"}  # the words of the training captions
    assert rows[0].box == gif(0)[1]
    moving = examples[0].inputs
    stopped = moving[:, :1].expand_as(moving)
    assert not torch.equal(model.encode(VIDEO.name, moving), model.encode(VIDEO.name, stopped))  # every frame is read

    # The commands: a page of the data, predictions of the untrained parts; then the report's gallery.
    assert rb(["data", "show", str(tmp_path / "test"), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 4
    run = tmp_path / "run"
    (run / "predictions").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "run", "model": to_tree(config)}))
    out = run / "predictions" / "base.jsonl"
    asked = ["--run", str(run / "config.yaml"), "--data", str(tmp_path / "test"), "--modality", VIDEO.name]
    assert rb(["predict", *asked, "--out", str(out)]) == 0, capsys.readouterr().err
    assert len(read_predictions(out)[0]) == 4
    cards = gallery(run, 4)
    assert cards.count("data:image/jpeg") == 4
    assert VideoSource.page_hint in cards
    assert rb(["predict", *asked, "--out", str(out), "--crop-boxes"]) != 0
    assert "crops need a modality with image boxes" in capsys.readouterr().err
