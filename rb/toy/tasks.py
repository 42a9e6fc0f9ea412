"""``rb toy tasks``: zero-shot classes, retrieval and answers of a trained toy model over scenes of the toy world, beside chance.

A seed draws the scenes: all seeds score the same checkpoint, so their spread is that of the scenes and not of trainings. The scenes are of a split
of their own, so no training has seen them. Regions are one object of each scene.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from PIL import Image

from rb.core import dist, seeding
from rb.core.exit_codes import FINISHED
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD
from rb.core.model_config import at_least
from rb.core.output import aligned, note, say, say_json
from rb.core.tasks import RETRIEVAL, VQA, ZEROSHOT
from rb.data.formats import ObjectAnnotation, Question, Record
from rb.data.index import ManifestReader
from rb.data.predictions import Prediction, read_predictions
from rb.data.shard_writer import ShardWriter
from rb.evaluation.task_scores import SCORERS
from rb.inference.load import Loaded, load_trained
from rb.inference.predicting import Job, decoding_of, predict
from rb.inference.ranking import Ranking
from rb.sources.points import encode_points
from rb.toy.world.scenes import ToyObject, ToyScene, cloud_captions, make_cloud, make_scene, region_expressions
from rb.toy.world.vocabulary import COLOURS, SHAPES

SPLIT = "tasks"
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
TOP_K = 16
ASKED_SCENES = 5  # a fifth of the scenes is asked about: answers are generated word by word


@dataclass(frozen=True)
class _Row:
    """A line of the table: what was measured, and its value of each seed, 0 to 1."""

    task: str
    who: str
    score: str
    values: list[float]


def run(args: argparse.Namespace) -> int:
    """Make the sets of each seed, ask the model, print the table."""
    for name, least in (("scenes", 10), ("seeds", 1)):
        at_least(f"--{name}", getattr(args, name), least)
    loaded = load_trained(args.checkpoint, args.foundation, dist.device())
    values: dict[tuple[str, str, str], list[float]] = {}
    for seed in range(args.seeds):
        for task, who, name, value in _of_seed(args, loaded, seed):
            values.setdefault((task, who, name), []).append(value)
    rows = [_Row(*key, each) for key, each in values.items()]
    if args.json:
        say_json([vars(row) for row in rows])
        return FINISHED
    say(f"{args.checkpoint}; {args.scenes} scenes, {args.seeds} draws of them; percent")
    for line in aligned([("task", "by", "score", "mean", "spread"), *map(_line, rows)], 3):
        say(line)
    return FINISHED


def _line(row: _Row) -> tuple[str, ...]:
    spread = stdev(row.values) if len(row.values) > 1 else 0.0
    return row.task, row.who, row.score, f"{100 * fmean(row.values):.1f}", f"{100 * spread:.1f}"


def _of_seed(args: argparse.Namespace, loaded: Loaded, seed: int) -> Iterator[tuple[str, str, str, float]]:
    """(task, who, score, value)."""
    made: tuple[tuple[str, str, str, int, Callable[[int, int], tuple[Record, bytes]], Ranking], ...] = (
        (f"{len(CLASSES)} classes of regions", ZEROSHOT, IMAGE_REGION, args.scenes, _class, Ranking(CLASSES, ("{}",))),
        ("retrieval of regions", RETRIEVAL, IMAGE_REGION, args.scenes, _region, Ranking(top_k=TOP_K)),
        ("retrieval of clouds", RETRIEVAL, POINT_CLOUD, args.scenes, _cloud, Ranking(top_k=TOP_K)),
        ("questions about images", VQA, IMAGE, args.scenes // ASKED_SCENES, _asked, Ranking()),
    )
    for name, task, modality, count, make, ranking in made:
        folder, extension = args.out / f"seed{seed}" / name.replace(" ", "_"), "points.npy" if make is _cloud else "jpg"
        note(f"seed {seed}: {name}")
        if not (folder / "manifest.json").exists():
            with ShardWriter(folder, "toy", modality, "test") as writer:
                for i in range(count):
                    writer.write(*make(seed, i), extension)
        rows, meta = _predicted(loaded, Job(ManifestReader(folder), modality, task=task, ranking=ranking), folder)
        found = SCORERS[task](rows, meta)
        for score, value in found.scores.items():
            who, _, what = score.partition("_")
            yield name, who, what, value
        for score, value in (found.chance or {"official": _drawn(rows)}).items():
            yield name, "chance", score, value


def _predicted(loaded: Loaded, job: Job, folder: Path) -> tuple[list[Prediction], dict[str, object]]:
    out = folder / "predictions.jsonl"
    predict(job, loaded.generating(decoding_of(job.asked, loaded)), out)
    return read_predictions(out)


def _drawn(rows: Sequence[Prediction]) -> float:
    """Expected accuracy of answers that are drawn from the right answers of all questions of their kind."""
    kinds: dict[str, Counter[str]] = {}
    for row in rows:
        kinds.setdefault(row.part or "", Counter())[row.references[0]] += 1
    right = sum(sum(n * n for n in answers.values()) / answers.total() for answers in kinds.values())
    return right / len(rows)


def _scene(seed: int, number: int) -> tuple[ToyScene, ToyObject, list[str]]:
    """A scene, and an object of it that an expression singles out."""
    scene = make_scene(seed, SPLIT, number)
    named = [(item, region_expressions(scene, item)) for item in scene.objects]
    named = [one for one in named if one[1]]
    item, texts = named[int(seeding.uniform("toy task", seed, number) * len(named))]
    return scene, item, texts


def _jpeg(scene: ToyScene) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(scene.image).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def _of_region(seed: int, number: int, texts: Callable[[ToyObject, list[str]], list[str]]) -> tuple[Record, bytes]:
    scene, item, expressions = _scene(seed, number)
    objects = [ObjectAnnotation(item.object_id, list(item.box), texts(item, expressions))]
    return Record(f"toy/{number}", "toy", "test", scene.width, scene.height, [], objects), _jpeg(scene)


def _class(seed: int, number: int) -> tuple[Record, bytes]:
    return _of_region(seed, number, lambda item, _: [f"{item.colour} {item.shape}"])


def _region(seed: int, number: int) -> tuple[Record, bytes]:
    return _of_region(seed, number, lambda _, expressions: expressions)


def _cloud(seed: int, number: int) -> tuple[Record, bytes]:
    cloud = make_cloud(seed, SPLIT, number)
    record = Record(f"toy/{number}", "toy", "test", 0, 0, cloud_captions(cloud, 1))
    return record, encode_points(cloud.points)


def _asked(seed: int, number: int) -> tuple[Record, bytes]:
    """Three questions: a count, yes or no, a colour."""
    scene = make_scene(seed, SPLIT, number)
    shape = SHAPES[number % len(SHAPES)]
    here = [item for item in scene.objects if item.shape == shape]
    texts = [(f"How many {shape}s are there?", str(len(here)), "number")]
    texts += [(f"Is there a {shape} in the image?", "yes" if here else "no", "yes/no")]
    if here:
        biggest = max(here, key=lambda item: (item.box[2] - item.box[0]) * (item.box[3] - item.box[1]))
        texts += [(f"What color is the {shape}?", str(biggest.colour), "color")]
    asked = [Question(10 * number + k, text, [answer] * 10, None, kind) for k, (text, answer, kind) in enumerate(texts)]
    return Record(f"toy/{number}", "toy", "test", scene.width, scene.height, [], questions=asked), _jpeg(scene)
