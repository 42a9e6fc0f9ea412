"""DLC-Bench: asks a judge, a language model behind an endpoint, about captions, and writes its answers in the published form (``*_eval.json``).

Protocol of NVlabs/describe-anything, whose prompts are part of it: for each object first whether the description may be of its class, then each
question with its choices, one prompt each, greedy, at most 300 tokens. `rb.evaluation.dlc` scores what is written here. An answer from which no
choice can be read is kept as it is, counted, and earns 0; where it is the answer about the class, the object counts as not recognised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.chat_endpoint import ChatEndpoint, user
from rb.core.strict_json import FormatError, read
from rb.data.predictions import read_predictions

LETTERS = "ABCDE"
SETTINGS = {"temperature": 0.0, "max_tokens": 300, "top_p": 1}
_PROMPT = (
    "Answer the multiple-choice question based on the text description of an object in an image. You need to follow these rules:\n"
    "1. Do not output any reasoning. Do not perform correction. Please output exactly one answer from the choices for each question. "
    "Do not repeat the question.\n"
    "2. There is no need for exact matching. Please choose the closest option based on the description.\n\n"
    "The description is:\n{caption}\n\n"
    "From the description above, please answer the following question with one of the choices:\n{question}\n"
)
_CLASS = (
    "Is it likely that the {objects} in the description {are} {name} or {similar} of a similar type? "
    "Again, It does not have to be an exact match."
)
# A name that ends in "s" is asked about in the plural, unless it ends like "bus" or "tennis". The published questions do so for "wine glass" too.
_SINGULAR = ("us", "is")


def judge(
    captions: Mapping[str, str],
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    class_names: Mapping[str, str],
    endpoint: ChatEndpoint,
    parallel: int = 8,
) -> tuple[dict[str, Any], list[str]]:
    """The judge's answers by object, as published files hold them; and where no choice could be read.

    Raises:
        EndpointError: the judge is gone; what it answered is kept, so the same call asks only for the rest.
    """
    asked = {name: [class_question(class_names[name]), *rows] for name, rows in questions.items()}
    every = [(name, row) for name, rows in asked.items() for row in rows]
    answers = endpoint.ask_all(
        ([user(prompt(captions[name], row))] for name, row in every), parallel=parallel, **SETTINGS
    )
    found = iter([(row, answer.text.strip()) for (_, row), answer in zip(every, answers, strict=True)])
    judged, unread = {}, []
    for name, rows in asked.items():
        entry: dict[str, Any] = {"pred": captions[name]}
        details = [
            {**row, "pred_answer": said, "pred_index": pick(said, [text for text, _ in row["choices"]])}
            for row, said in (next(found) for _ in rows)
        ]
        for kind, field in (("positive", "positives"), ("negative", "negatives"), ("recognition", "recognition")):
            entry[f"details_{field}"] = [one for one in details if one["type"] == kind]
        entry["recognition_result"] = details[0]["pred_index"] == 0
        judged[name] = entry
        unread += [f"{name}: {one['pred_answer']!r:.60}" for one in details if one["pred_index"] is None]
    return judged, unread


def prompt(caption: str, question: Mapping[str, Any]) -> str:
    """The text that the judge gets."""
    choices = (f"{letter}. {text}" for letter, (text, _) in zip(LETTERS, question["choices"], strict=False))
    return _PROMPT.format(caption=caption, question="\n".join([question["question"], *choices]).strip())


def class_question(name: str) -> dict[str, Any]:
    """Whether the description may be of this class. Plural and article by rules that agree with the published questions on all 100 classes."""
    words = {"objects": "object", "are": "is", "name": f"{_article(name)} {name}", "similar": "an object"}
    if name.endswith("s") and not name.endswith(_SINGULAR):
        words = {"objects": "objects", "are": "are", "name": name, "similar": "objects"}
    return {
        "question": _CLASS.format(**words),
        "choices": [["Yes", "correct"], ["No", "incorrect"]],
        "type": "recognition",
    }


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def pick(answer: str, choices: Sequence[str]) -> int | None:
    """The choice that an answer names, as the published program reads it; none where it names none.

    In turn: the answer is a letter, a choice, or both; it holds exactly one choice; it begins with a letter and a period; it holds several
    choices (the last one counts, of two at one place the longer); it is a part of choices (the longest counts); a letter stands alone in
    its first line.
    """
    said = answer.strip().lower()
    texts = [text.strip().lower() for text in choices]
    letters = LETTERS.lower()[: len(texts)]
    if not said:
        return None
    for number, (letter, text) in enumerate(zip(letters, texts, strict=True)):
        if said in (text, letter, f"{letter}. {text}"):
            return number
    held = [(said.index(text), len(text), number) for number, text in enumerate(texts) if text in said]
    if len(held) == 1:
        return held[0][2]
    if said[0] in letters and said[1:2] == ".":
        return letters.index(said[0])
    if held:
        return max(held)[2]
    parts = [(len(text), -number) for number, text in enumerate(texts) if said in text]
    if parts:
        return -max(parts)[1]
    return letters.index(said[0]) if said[0] in letters and said[1:2] in ("", "\n") else None


def read_benchmark(questions: Path, class_names: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """``qa.json`` and ``class_names.json``: object to its questions, and to the name of its class. ``FormatError``: another format."""
    asked, names = read(questions), read(class_names)
    if not isinstance(asked, dict) or not asked or not all(map(_are_questions, asked.values())):
        raise FormatError(f"{questions}: must map objects to questions with choices; give the benchmark's qa.json")
    if not isinstance(names, dict) or not all(isinstance(names.get(name), str) for name in asked):
        raise FormatError(f"{class_names}: must give every object's class; give the benchmark's class_names.json")
    return asked, {name: names[name] for name in asked}


def _are_questions(rows: object) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("question"), str)
        and row.get("type") in ("positive", "negative")
        and isinstance(row.get("choices"), list)
        and 1 < len(row["choices"]) <= len(LETTERS)
        and all(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in row["choices"])
        for row in rows
    )


def read_captions(path: Path, objects: Sequence[str]) -> dict[str, str]:
    """Object to its caption, from DAM's form {mask id: text} or a predictions file (``.jsonl``), whose object ids or sources are the mask ids.

    Raises:
        FormatError: another format, or objects that miss or are unknown.
    """
    found = dict(_captions(path, set(objects)))
    for problem, names in (
        ("without a caption", [name for name in objects if name not in found]),
        ("that the benchmark does not have", sorted(found.keys() - set(objects))),
    ):
        if names:
            raise FormatError(
                f"{path}: {len(names):,} objects {problem}, such as {names[0]}; give one caption for each object"
            )
    return found


def _captions(path: Path, known: set[str]) -> Iterator[tuple[str, str]]:
    if path.suffix == ".jsonl":
        for row in read_predictions(path)[0]:
            of_source = row.object_id is None or row.object_id not in known
            yield row.source_id.rpartition("/")[2] if of_source else str(row.object_id), row.prediction
        return
    content = read(path)
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise FormatError(
            f"{path}: must be {{mask id: text}}, or a predictions.jsonl; give one caption for each object"
        )
    yield from content.items()
