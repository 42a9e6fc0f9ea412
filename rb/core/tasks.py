"""The table of tasks: what ``rb predict --task`` asks of a model, one row a task. ``rb score --task`` scores what it writes.

How a task is done is in ``rb/inference/`` (`predicting.ROWS` names a function for each), how it is scored in ``rb/evaluation/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CAPTION, VQA, ZEROSHOT, RETRIEVAL = "caption", "vqa", "zeroshot", "retrieval"


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        asks: what the model does, for people.
        makes: what a row of its predictions is, for people.
        needs: what a set must hold for it, for people.
        of_questions: whether its sets hold questions; else captions.
        ranks: whether it ranks texts by ITC, so that only a modality that trains can do it; nothing is generated.
        prompt: what the LLM reads behind the soft prompt, ``{}`` being the question; none: the run's prompt, or no LLM.
        decoding: by kind of LLM, fields of ``decode`` that take the place of the run's where the command does not set them.
        scores: names of its scores.
    """

    name: str
    asks: str
    makes: str
    needs: str
    scores: tuple[str, ...]
    of_questions: bool = False
    ranks: bool = False
    prompt: str | None = None
    decoding: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _vqa_decoding(length_penalty: float) -> dict[str, Any]:
    """As the released code: beams, lengths, and a length penalty that is the LLM's."""
    return {
        "num_beams": 5,
        "max_new_tokens": 10,
        "min_new_tokens": 1,
        "length_penalty": length_penalty,
        "image_size": None,
    }


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(CAPTION, "writes a caption", "captions", "captions", ("BLEU", "METEOR", "ROUGE_L", "CIDEr", "SPICE")),
        Task(
            VQA,
            "answers questions about whole images or clouds",
            "answers",
            "questions",
            ("accuracy by three normalisations, of all and of each answer type",),
            of_questions=True,
            prompt="Question: {} Short answer:",
            decoding={"decoder": _vqa_decoding(0.0), "encoder_decoder": _vqa_decoding(-1.0)},
        ),
        Task(
            ZEROSHOT,
            "names the class whose prompts are most similar (ITC)",
            "classes",
            "one caption an example, the name of its class",
            ("top1", "top5", "class_mean"),
            ranks=True,
        ),
        Task(
            RETRIEVAL,
            "ranks all texts for each example and all examples for each text (ITC, then ITM)",
            "rankings",
            "captions",
            ("recall at 1, 5 and 10, both ways",),
            ranks=True,
        ),
    )
}
