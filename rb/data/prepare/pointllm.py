"""PointLLM's captions: its JSON list of conversations about Objaverse's clouds, of which the brief descriptions are captions. Used by `objaverse.py`.

An item is {"object_id", "conversation_type", "conversations": [{"from": "human", "value": "<point> ..."}, {"from": "gpt", "value": caption}]}.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rb.core.json_stream import stream_list
from rb.data.prepare.cap3d import CaptionTable

BRIEF = "simple_description"  # also where no type is given, as in the evaluation files
OTHER_KINDS = "conversations that are no brief description, left out"
_FIELDS = frozenset({"object_id", "conversation_type", "conversations", "from", "value"})
_POINTS = "<point>"  # stands for the cloud in a question


def read_descriptions(file: Path, notes: Counter[str]) -> CaptionTable:
    """The brief descriptions of ``file`` (660,000), item by item; other kinds (detailed descriptions, questions in rounds) are counted only.

    Raises:
        ValueError: no JSON list; the items before the damage are not used either.
    """
    table = CaptionTable(place="item")
    for number, item in enumerate(stream_list(file, _FIELDS, notes), 1):
        if isinstance(item, dict) and item.get("conversation_type", BRIEF) != BRIEF:
            notes[OTHER_KINDS] += 1
            continue
        try:
            uid, caption = _description(item)
        except ValueError as error:
            table.malformed.append((number, f"{file}, item {number}: {error}"))
            continue
        table.add(uid, caption, f"{file}, item {number}")
    return table


def _description(item: Any) -> tuple[str, str]:
    """(uid, caption) of one brief description; ``ValueError`` says what is wrong."""
    uid = item.get("object_id") if isinstance(item, dict) else None
    if not isinstance(uid, str) or not uid:
        raise ValueError("no text 'object_id'")
    turns = item.get("conversations")
    speakers = (
        [turn.get("from") if isinstance(turn, dict) else None for turn in turns] if isinstance(turns, list) else []
    )
    if speakers != ["human", "gpt"]:
        raise ValueError("'conversations' must be one turn of 'human' and one of 'gpt'")
    question, answer = (turn.get("value") for turn in turns)
    if not isinstance(question, str) or _POINTS not in question or not isinstance(answer, str):
        raise ValueError(f"the human turn must have {_POINTS}, and the other one a text")
    return uid, answer
