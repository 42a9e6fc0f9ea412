"""The two files of an image in Flickr30k Entities: ``Sentences/ID.txt`` with marked phrases, ``Annotations/ID.xml`` with the boxes they name.

A phrase is ``[/EN#283585/people/scene a man]``: number of its entity, types, words. An ``<object>`` of the XML names one or several entities and
has a ``<bndbox>``, or says ``<scene>`` or ``<nobndbox>``. Corners count pixels from 1 and include both ends. Used by `flickr_entities.py`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

from rb.core.strict_json import FormatError, read_bytes
from rb.core.text import is_caption, one_line
from rb.core.text_encoding import byte_order_mark, decode
from rb.data.prepare.common import Reason, RejectedError, safe_path
from rb.data.prepare.xml_files import read_xml

Box = list[float]  # x1, y1, x2, y2 in pixels from 0, x2 and y2 exclusive

_PHRASE = re.compile(r"\[/EN#(\d{1,18})(?:/[^\s\[\]]*)?\s([^\[\]]*)\]")
_MARK = "[/EN#"
_NO_ENTITY = "0"  # of phrases that name nothing to be seen
_MOST_BYTES = 1 << 18  # of the sentences; an image's have some 500


@dataclass
class Entities:
    """What the two files say.

    Attributes:
        size: (width, height) in pixels.
        sentences: without markup, on one line each.
        phrases: entity -> what it is called, in the order of the sentences.
        boxes: entity -> its boxes; an error in place of one that cannot be read.
        boxless: entity -> why it has no box.
        broken: sentences whose markup is damaged.
        notes: what was counted.
    """

    size: tuple[int, int]
    sentences: list[str] = field(default_factory=list)
    phrases: dict[str, list[str]] = field(default_factory=dict)
    boxes: dict[str, list[Box | RejectedError]] = field(default_factory=dict)
    boxless: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def read_entities(folder: Path, stem: str, skipped: set[int]) -> Entities:
    """What ``folder/Annotations/STEM.xml`` and ``folder/Sentences/STEM.txt`` say.

    Args:
        skipped: numbers, from 1, of sentences to leave out.

    Raises:
        RejectedError: one of them is missing or cannot be read.
    """
    annotation, sentences = (
        safe_path(folder / place, f"{stem}.{kind}") for place, kind in (("Annotations", "xml"), ("Sentences", "txt"))
    )
    try:
        found = _annotated(annotation)
    except OSError as error:
        raise RejectedError(Reason.BOXES_MISSING, f"{annotation}: {error.strerror or error}") from None
    except ValueError as error:
        raise RejectedError(Reason.BOXES_UNREADABLE, str(error)) from None
    try:
        data = read_bytes(sentences, _MOST_BYTES)
        mark, encoding = byte_order_mark(data)
        text = decode(data[mark:], encoding, str(sentences), found.notes)[0]
    except OSError as error:
        raise RejectedError(Reason.NO_CAPTION, f"{sentences}: {error.strerror or error}") from None
    except ValueError as error:
        raise RejectedError(Reason.NO_CAPTION, str(error)) from None
    for number, line in enumerate(text.split("\n"), 1):
        if number in skipped:
            found.notes["sentences of another image, left out"] += 1
        elif line.strip():
            _read_sentence(found, line)
    return found


def _annotated(path: Path) -> Entities:
    root = read_xml(path)
    try:
        size = root.find("size")
        width, height = (int(_number(size, name)) for name in ("width", "height"))
    except ValueError as error:
        raise FormatError(f"{path}: size: {error}; download it again") from None
    found = Entities((width, height))
    for item in root.findall("object"):
        _read_object(found, item)
    return found


def _read_object(found: Entities, item: Element) -> None:
    names = [(name.text or "").strip() for name in item.findall("name")]
    frame = item.find("bndbox")
    if frame is None:
        scene = item.find("scene")
        whole = scene is not None and (scene.text or "").strip() not in ("", "0")
        found.boxless |= dict.fromkeys(names, "the whole scene" if whole else "not to be seen")
        return
    found.notes["boxes"] += 1
    box: Box | RejectedError
    try:
        x1, y1, x2, y2 = (_number(frame, name) for name in ("xmin", "ymin", "xmax", "ymax"))
        box = [x1 - 1, y1 - 1, x2, y2]
    except ValueError as error:
        box = RejectedError(Reason.BOX_EMPTY, f"bndbox: {error}")
    for name in names:
        found.boxes.setdefault(name, []).append(box)


def _number(parent: Element | None, name: str) -> float:
    child = None if parent is None else parent.find(name)
    text = "" if child is None else (child.text or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e9:
        raise ValueError(f"{name} must be a number of pixels, got {text!r:.40}")
    return value


def _read_sentence(found: Entities, line: str) -> None:
    text = one_line(_PHRASE.sub(r"\2", line))
    if _MARK in text:
        found.broken.append(text)
        return
    if is_caption(text):
        found.sentences.append(text)
    for entity, phrase in _PHRASE.findall(line):
        if entity == _NO_ENTITY:
            found.notes["phrases of nothing to be seen"] += 1
        else:
            found.phrases.setdefault(entity, []).append(phrase)
