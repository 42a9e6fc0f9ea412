"""The paper's Tables 1 to 3 (``paper.json``), read and printed: beside a comparison, an ablation, a model card, or by themselves.

Scores are times 100, of the paper's data and full-size models. They compare with ours only on the same set, references and decoding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rb.core.output import aligned
from rb.core.strict_json import read

PAPER = Path(__file__).with_name("paper.json")
_ABSENT = "-"  # as the paper prints what it does not give


def read_paper() -> dict[str, Any]:
    """The content of ``paper.json``: ``source``, ``models``, ``table1``, ``table2_model``, ``table2``, ``table3``."""
    content = read(PAPER)
    assert isinstance(content, dict), PAPER
    return content


def paper_models() -> list[str]:
    """The models of Table 1, its columns: ``OPT-2.7B`` and so on."""
    return [str(name) for name in read_paper()["models"]]


def table1_scores(row: str, dataset: str, model: str) -> dict[str, float]:
    """Table 1's scores (times 100) of a row (``RegionBLIP``, ``BLIP-2 on crops``), a data set and a model, by metric; empty where it has none."""
    column = paper_models().index(model)
    return {
        metric: float(values[column])
        for one in read_paper()["table1"]
        if row in one["row"].split(" and ") and one["dataset"] == dataset
        for metric, values in one["scores"].items()
    }


def table1_rows(modality: str) -> list[dict[str, Any]]:
    """The rows of Table 1 of one modality: ``row``, ``dataset``, ``split``, and ``scores``: metric to a value for each of ``models``."""
    return [row for row in read_paper()["table1"] if row["modality"] == modality]


def format_table1(modality: str) -> str:
    """Table 1's rows of one modality, marked as the paper's."""
    paper = read_paper()
    lines = [
        f"the paper's values ({paper['source']}, Table 1; its data, full-size models): {', '.join(paper['models'])}"
    ]
    for row in table1_rows(modality):
        for metric, values in row["scores"].items():
            shown = "  ".join(printed(value) for value in values)
            lines.append(f"  paper: {row['row']}, {row['dataset']} {row['split']}, {metric}  {shown}")
    return "\n".join(lines) + "\n"


def format_paper() -> str:
    """All three tables as plain text."""
    paper = read_paper()
    first = [["row", "data", "metric", *paper["models"]]]
    for row in paper["table1"]:
        for metric, values in row["scores"].items():
            first.append([row["row"], f"{row['dataset']} {row['split']}", metric, *map(printed, values)])
    second = [["data", "metric", "with PaFE", "without PaFE"]]
    for row in paper["table2"]:
        for metric, value in row["with_pafe"].items():
            pair = (printed(value), printed(row["without_pafe"][metric]))
            second.append([f"{row['dataset']} {row['split']}", metric, *pair])
    third = [["data", "images", "objects", "words per caption"]]
    for row in paper["table3"]:
        words = _ABSENT if row["words"] is None else f"{row['words']:.2f}"
        third.append([row["dataset"], f"{row['images']:,}", f"{row['objects']:,}", words])
    parts = (
        (f"Table 1: captions and answers, times 100 ({paper['source']})", first, 3),
        (f"Table 2: RegionBLIP {paper['table2_model']} with and without position features, times 100", second, 2),
        ("Table 3: data sets", third, 1),
    )
    return "\n".join("\n".join([title, "", *aligned(rows, texts), ""]) for title, rows, texts in parts)


def printed(value: float) -> str:
    """A score as the paper prints it: one decimal, VQA accuracies two."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"
