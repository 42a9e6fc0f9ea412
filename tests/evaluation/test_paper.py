"""The paper's tables as data equal a transcription made apart from them, and are printed in full."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rb.cli import main as rb
from rb.evaluation.paper import format_paper, format_table1, read_paper

# Typed from the paper's text, not from paper.json. Models in the order OPT-2.7B, OPT-6.7B, FlanT5-XL, FlanT5-XXL.
VQAV2_VAL = "51.88 54.01 63.13 65.11"
COCO_KARPATHY_TEST = {"CIDEr": "130.7 130.3 123.0 117.8", "SPICE": "23.8 23.7 22.0 21.1"}
REFCOCO_CROPS = {"CIDEr": "15.1 13.9 19.6 22.3", "SPICE": "13.2 12.6 13.7 14.4"}
# CIDEr / SPICE of RegionBLIP, model after model
REFCOCO = "63.5 / 21.3, 64.2 / 20.9, 47.6 / 17.8, 56.1 / 18.4"
OBJAVERSE = "112.7 / 31.6, 113.6 / 31.6, 108.1 / 31.7, 109.0 / 31.5"
REFERSCANNET = "57.0 / 13.5, 59.3 / 14.4, 59.2 / 13.5, 53.6 / 13.0"
WITH_PAFE = "RefCOCO test 63.5 / 21.3, Objaverse test 112.7 / 31.6, ReferScannet val 57.0 / 13.5"
WITHOUT_PAFE = "44.7 / 14.8, 84.7 / 27.6, 21.4 / 8.4"
# images, objects, words
TABLE_3 = """Flickr Entities 31,783, 275,775, -; RefCOCOg 26,711, 54,822, 8.43; RefCOCO 19,994, 50,000, 3.61;
RefCOCO+ 19,992, 49,856, 3.53; Visual Genome 108,077, 4,102,818, -; RegionCap-10M 5,655,833, 10,766,958, 9.66"""


def numbers(text: str) -> list[float]:
    return [float(value) for value in text.split()]


def pairs(text: str) -> dict[str, list[float]]:
    """ "1.0 / 2.0, 3.0 / 4.0" as CIDEr 1.0, 3.0 and SPICE 2.0, 4.0."""
    both = [[float(value) for value in pair.split("/")] for pair in text.split(",")]
    return {"CIDEr": [pair[0] for pair in both], "SPICE": [pair[1] for pair in both]}


def test_table_1_is_the_papers() -> None:
    expected = {
        ("BLIP-2 and RegionBLIP", "image", "VQAv2", "val"): {"accuracy": numbers(VQAV2_VAL)},
        ("BLIP-2 and RegionBLIP", "image", "COCO", "Karpathy test"): {
            name: numbers(text) for name, text in COCO_KARPATHY_TEST.items()
        },
        ("BLIP-2 on crops", "image_region", "RefCOCO", "test"): {n: numbers(t) for n, t in REFCOCO_CROPS.items()},
        ("RegionBLIP", "image_region", "RefCOCO", "test"): pairs(REFCOCO),
        ("RegionBLIP", "point_cloud", "Objaverse", "test"): pairs(OBJAVERSE),
        ("RegionBLIP", "point_cloud_region", "ReferScannet", "val"): pairs(REFERSCANNET),
    }
    paper = read_paper()
    assert paper["models"] == ["OPT-2.7B", "OPT-6.7B", "FlanT5-XL", "FlanT5-XXL"]
    found = {(r["row"], r["modality"], r["dataset"], r["split"]): r["scores"] for r in paper["table1"]}
    assert found == expected
    assert len(paper["table1"]) == len(expected)


def test_table_2_is_the_papers() -> None:
    expected: list[tuple[str, list[float], list[float]]] = []
    for one, without in zip(WITH_PAFE.split(","), WITHOUT_PAFE.split(","), strict=True):
        *data, cider, _, spice = one.split()
        other = [float(value) for value in without.split("/")]
        expected.append((" ".join(data), [float(cider), float(spice)], other))
    paper = read_paper()
    found = [
        (
            f"{r['dataset']} {r['split']}",
            *([r[side][m] for m in ("CIDEr", "SPICE")] for side in ("with_pafe", "without_pafe")),
        )
        for r in paper["table2"]
    ]
    assert found == expected
    assert [r["modality"] for r in paper["table2"]] == ["image_region", "point_cloud", "point_cloud_region"]
    # Its full model is Table 1's of the same LLM.
    k = paper["models"].index(paper["table2_model"])
    ours = {
        r["modality"]: {m: v[k] for m, v in r["scores"].items()} for r in paper["table1"] if r["row"] == "RegionBLIP"
    }
    assert {r["modality"]: r["with_pafe"] for r in paper["table2"]} == ours


def test_table_3_is_the_papers() -> None:
    expected = []
    for row in TABLE_3.replace("\n", " ").split("; "):
        *name, images, objects, words = row.split(" ")
        numbers_of = [int(text.rstrip(",").replace(",", "")) for text in (images, objects)]
        expected.append([" ".join(name), *numbers_of, None if words == "-" else float(words)])
    assert [[r["dataset"], r["images"], r["objects"], r["words"]] for r in read_paper()["table3"]] == expected


def test_null_stands_only_where_the_paper_prints_a_dash() -> None:
    def nulls(tree: Any, path: str = "") -> list[str]:
        if isinstance(tree, dict):
            return [p for key, value in tree.items() for p in nulls(value, f"{path}/{key}")]
        if isinstance(tree, list):
            return [p for i, value in enumerate(tree) for p in nulls(value, f"{path}/{i}")]
        return [path] if tree is None else []

    assert nulls(read_paper()) == ["/table3/0/words", "/table3/4/words"]


def test_the_tables_in_print() -> None:
    text = format_paper()
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("Table")] == [
        "Table 1",
        "Table 2",
        "Table 3",
    ]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "BLIP-2 and RegionBLIP VQAv2 val accuracy 51.88 54.01 63.13 65.11",
        "RegionBLIP ReferScannet val CIDEr 57.0 59.3 59.2 53.6",
        "ReferScannet val SPICE 13.5 8.4",
        "Flickr Entities 31,783 275,775 -",
    ):
        assert line in lines
    assert "VQAv2 val, accuracy  51.88  54.01" in format_table1("image")
    assert "Objaverse" not in format_table1("image_region")


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert rb(["table", "--paper"]) == 0
    assert capsys.readouterr().out == format_paper()
    assert rb(["table", "--paper", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_paper()
    assert rb(["table"]) == rb(["table", "run", "--paper"]) == 2
    assert "give either RUN_DIR" in capsys.readouterr().err
