"""Hostile files, more kinds: annotation files of data sets, by the function that reads each. Used by `hostile.py`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rb.core.modality import IMAGE_REGION
from rb.data.prepare.coco_files import open_captions
from rb.data.prepare.common import Conversion
from rb.data.prepare.entity_files import read_entities
from rb.data.prepare.genome_files import read_coco_style, read_descriptions, read_photos
from rb.data.prepare.pointllm import read_descriptions as read_conversations
from rb.data.prepare.vqa_files import Answers, read_questions
from rb.data.shard_writer import DryRun

REGION = {"region_id": 1, "image_id": 3, "x": 1, "y": 2, "width": 5, "height": 6, "phrase": "a red cube"}
GENOME = [{"id": 3, "regions": [REGION, REGION | {"region_id": 2, "phrase": "a ball"}]}]
PHOTOS = [{"image_id": 3, "width": 32, "height": 24, "coco_id": 9, "flickr_id": None, "url": "VG_100K/3.jpg"}]
STYLE = {
    "images": [{"id": 3, "file_name": "VG_100K/3.jpg", "width": 32, "height": 24}],
    "annotations": [{"id": 1, "image_id": 3, "bbox": [1, 2, 5, 6], "caption": "a red cube"}],
}
CAPTIONS = {
    "images": [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg"}],
    "annotations": [{"id": 1, "image_id": 9, "caption": "a red cube"}],
}
KARPATHY = {"images": [{"filename": "a.jpg", "cocoid": 9, "split": "val", "sentences": [{"raw": "a red cube"}]}]}
LAVIS = [{"image": "val2014/COCO_val2014_000000000009.jpg", "caption": ["a red cube"], "image_id": "coco_9"}]
ASKED = {"data_subtype": "val2014", "questions": [{"question_id": 9000, "image_id": 9, "question": "what is red?"}]}
ANSWERED = {
    "annotations": [
        {
            "question_id": 9000,
            "image_id": 9,
            "question_type": "what is",
            "answer_type": "other",
            "answers": [{"answer": "cube", "answer_id": i, "answer_confidence": "yes"} for i in range(1, 11)],
        }
    ]
}
CONVERSATIONS = [
    {
        "object_id": "a" * 32,
        "conversation_type": "simple_description",
        "conversations": [{"from": "human", "value": "<point>\nwhat?"}, {"from": "gpt", "value": "a red cube"}],
    }
]
ENTITIES = b"""<annotation><filename>1.jpg</filename><size><width>32</width><height>24</height><depth>3</depth></size>
<object><name>7</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""
SENTENCES = b"[/EN#7/other a red cube] stands on [/EN#8/scene the floor] .\nNothing else [/EN#0/notvisual it] .\n"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _conversion() -> Conversion:
    return Conversion(DryRun(IMAGE_REGION, "train"), "regions")


def readers(folder: Path) -> dict[str, tuple[str, Callable[[Path], Any], list[bytes]]]:
    """As `hostile.readers`."""
    for place in ("Sentences", "Annotations"):
        (folder / place).mkdir()
    (folder / "Annotations/1.xml").write_bytes(ENTITIES)
    return {
        "VG regions": ("a.json", lambda p: read_descriptions(_conversion(), p, None), [_json(GENOME)]),
        "VG photos": ("a.json", lambda p: read_photos(p, Counter()), [_json(PHOTOS)]),
        "VG, COCO style": ("a.json", lambda p: read_coco_style(_conversion(), p), [_json(STYLE)]),
        "captions": (
            "a.json",
            lambda p: open_captions(p).entries(Counter()),
            [_json(CAPTIONS), _json(KARPATHY), _json(LAVIS)],
        ),
        "VQA questions": ("a.json", lambda p: list(read_questions(p, "val2014", None, Counter())), [_json(ASKED)]),
        "VQA answers": ("a.json", lambda p: Answers(p, Counter()), [_json(ANSWERED)]),
        "conversations": ("a.json", lambda p: read_conversations(p, Counter()), [_json(CONVERSATIONS)]),
        "entity sentences": ("Sentences/1.txt", lambda p: read_entities(folder, "1", set()), [SENTENCES]),
    }
