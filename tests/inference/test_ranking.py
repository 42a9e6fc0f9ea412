"""``rb predict --task retrieval | zeroshot``: ranks are those of a plain search, on any number of ranks, and after a stop at any chunk."""

from __future__ import annotations

import sys
from pathlib import Path
from zlib import crc32

import pytest
import torch

from rb.cli import main
from rb.core.config import FoundationConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD
from rb.core.text import clean_caption
from rb.data.formats import Record
from rb.data.index import ManifestReader
from rb.data.pipeline import PredictDataset
from rb.data.predictions import read_predictions
from rb.data.shard_writer import ShardWriter
from rb.inference import predicting
from rb.inference.__main__ import main as rank_main
from rb.inference.load import load_trained
from tests.support import exported
from tests.support.processes import finish, start_function_ranks
from tests.support.remedies import Said, covers, helps, remedy, typed
from tests.support.small_data import media, record
from tests.support.unfinished_prediction import predict_without_writing

NAME, TOP_K = "ranked.jsonl", 4
CLASSES = ("red cube", "green ball", "blue cone", "big red cone")


@pytest.fixture(scope="module")
def world(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, a set of regions, and clouds whose captions are names of classes."""
    folder = tmp_path_factory.mktemp("ranking")
    exported.make_run(folder, foundation)
    with ShardWriter(folder / "regions", "small", IMAGE_REGION, "test", max_shard_records=3) as writer:
        for i in range(8):
            writer.write(with_texts(record(IMAGE_REGION, i, "test")), *media(IMAGE_REGION, i))
    with ShardWriter(folder / "clouds", "small", POINT_CLOUD, "test") as writer:
        for i in range(9):
            writer.write(Record(f"c/{i}", "small", "test", 0, 0, [CLASSES[i % 3]]), *media(POINT_CLOUD, i))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


def with_texts(made: Record) -> Record:
    """Captions that differ in words that the model knows; every third is another region's too."""
    for k, item in enumerate(made.objects):
        for j, text in enumerate(item.captions):
            number = crc32(f"{made.source_id} {k} {j}".encode())
            words = [
                ("red", "green", "blue"),
                ("big", "small"),
                ("cube", "ball", "cone"),
                ("left", "right", "top", "bottom"),
            ]
            said = [choices[number // 7**n % len(choices)] for n, choices in enumerate(words)]
            item.captions[j] = f"the {said[1]} {said[0]} {said[2]} on the {said[3]}" if text[-1] != "2" else "a ball"
    return made


def retrieval(world: Path, out: Path, *more: str) -> list[str]:
    job = ["--checkpoint", str(world / "tiny"), "--data", str(world / "regions"), "--modality", IMAGE_REGION]
    return [*job, "--task", "retrieval", "--top-k", str(TOP_K), "--out", str(out), "--batch-size", "2", *more]


def zero_shot(world: Path, out: Path, *more: str) -> list[str]:
    job = ["--checkpoint", str(world / "tiny"), "--data", str(world / "clouds"), "--modality", POINT_CLOUD]
    return [*job, "--task", "zeroshot", "--out", str(out), "--classes", str(world / "classes.txt"), *more]


def searched(world: Path) -> dict[str, dict[str, dict[str, list[int]]]]:
    """The ranks of all regions by one example, one text and one pair at a time."""
    loaded, reader = load_trained(world / "tiny"), ManifestReader(world / "regions")
    model, heads = loaded.model, loaded.model.of(IMAGE_REGION)
    dataset = PredictDataset(reader, IMAGE_REGION, loaded.transform, batch_size=1)
    batches = [dataset[i] for i in range(len(dataset))]
    own = [[clean_caption(text) for text in batch.samples[0].references] for batch in batches]
    texts = list(dict.fromkeys(text for found in own for text in found))
    read = {text: loaded.text.encode_qformer([text]) for text in texts}
    itc, itm = torch.empty(len(own), len(texts)), torch.empty(len(own), len(texts))
    with torch.no_grad():
        for i, batch in enumerate(batches):
            features = model.encode(IMAGE_REGION, batch.inputs)
            query = heads.parts.vision_proj(model.query_output(IMAGE_REGION, features, batch.boxes))[0]
            for k, text in enumerate(texts):
                vector = heads.heads.text_proj(model.text_state(IMAGE_REGION, *read[text]))[0]
                itc[i, k] = torch.cosine_similarity(query, vector[None], dim=1).max()
                itm[i, k] = itc[i, k] + model.match(IMAGE_REGION, features, batch.boxes, read[text])[0]

    def rank(scores: torch.Tensor, right: list[int]) -> int:
        best = max(float(scores[k]) for k in right)
        return sum(float(scores[k]) >= best - 1e-6 for k in range(len(scores)) if k not in right)

    def again(first: torch.Tensor, second: torch.Tensor, right: list[int]) -> int:
        chosen = sorted(range(len(first)), key=lambda k: -float(first[k]))[:TOP_K]
        inside = [chosen.index(k) for k in right if k in chosen]
        return rank(second[chosen], inside) if inside else rank(first, right)

    found = {}
    for i, batch in enumerate(batches):
        mine = [texts.index(text) for text in own[i]]
        theirs = [[j for j, others in enumerate(own) if texts[k] in others] for k in mine]
        found[batch.samples[0].id] = {
            "itc": {
                "text": [rank(itc[i], mine)],
                "source": [rank(itc[:, k], right) for k, right in zip(mine, theirs, strict=True)],
            },
            "itm": {
                "text": [again(itc[i], itm[i], mine)],
                "source": [again(itc[:, k], itm[:, k], right) for k, right in zip(mine, theirs, strict=True)],
            },
        }
    return found


def rank(arguments: list[str]) -> None:
    """One rank; a chunk is one batch."""
    predicting.CHUNK_BATCHES = 1
    sys.argv = ["rb predict", *arguments]
    assert rank_main() == 0


@pytest.mark.dist
def test_retrieval_ranks_as_a_plain_search_on_one_and_two_ranks(world: Path, tmp_path: Path) -> None:
    out, two = tmp_path / NAME, tmp_path / "two" / NAME
    assert main(["predict", *retrieval(world, out)]) == 0
    rows, meta = read_predictions(out)
    assert {row.id: row.ranks for row in rows} == searched(world)
    assert len({row.id for row in rows}) == len(rows) == ManifestReader(world / "regions").num_examples
    assert meta["ranking"]["top_k"] == TOP_K
    assert all(row.prediction.split()[0] in ("the", "a") for row in rows)
    two.parent.mkdir()
    finish(*start_function_ranks(2, rank, retrieval(world, two)))
    assert two.read_bytes() == out.read_bytes()


def test_a_stopped_retrieval_goes_on_and_writes_the_same_bytes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predicting, "CHUNK_BATCHES", 2)
    out, whole = tmp_path / NAME, tmp_path / "whole" / NAME
    whole.parent.mkdir()
    assert main(["predict", *retrieval(world, whole)]) == 0
    predict_without_writing(*retrieval(world, out))
    kept = sorted(out.with_name(f".{NAME}.unfinished").glob("rank*"))
    vectors, matches = ([path for path in kept if word in path.name] for word in ("chunk", "match"))
    assert len(vectors) == len(matches) == 6  # rows and tensors of three chunks
    vectors[5].write_bytes(vectors[5].read_bytes()[:-9])  # a chunk that is cut, one that is gone, one of other pairs
    matches[3].unlink()
    capsys.readouterr()
    assert main(["predict", *retrieval(world, out)]) == 0
    said = capsys.readouterr().err
    assert "goes on after 8 of its 12 examples" in said
    assert "goes on after 4 of its 12 examples" in said
    assert out.read_bytes() == whole.read_bytes()


def test_classes_are_ranked_by_the_mean_of_their_prompts(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, prompts = tmp_path / NAME, tmp_path / "prompts.txt"
    prompts.write_text("a {}\n\nthe big {}\n")
    assert main(["predict", *zero_shot(world, out, "--templates", str(prompts))]) == 0
    rows, meta = read_predictions(out)
    assert meta["ranking"] == {"classes": list(CLASSES), "templates": ["a {}", "the big {}"]}
    loaded = load_trained(world / "tiny")
    heads = loaded.model.of(POINT_CLOUD)
    dataset = PredictDataset(ManifestReader(world / "clouds"), POINT_CLOUD, loaded.transform, batch_size=1)
    with torch.no_grad():
        names = []
        for name in CLASSES:
            read = [loaded.text.encode_qformer([f"{start} {name}"]) for start in ("a", "the big")]
            states = [heads.heads.text_proj(loaded.model.text_state(POINT_CLOUD, *one))[0] for one in read]
            names.append(sum(state / state.norm() for state in states))
        for row, batch in zip(rows, (dataset[i] for i in range(9)), strict=True):
            features = loaded.model.encode(POINT_CLOUD, batch.inputs)
            query = heads.parts.vision_proj(loaded.model.query_output(POINT_CLOUD, features, None))[0]
            scores = [float(torch.cosine_similarity(query, name[None], dim=1).max()) for name in names]
            right = scores[CLASSES.index(row.references[0])]
            others = [score for name, score in zip(CLASSES, scores, strict=True) if name != row.references[0]]
            assert row.ranks == {"itc": {"class": [sum(score >= right for score in others)]}}
            assert row.prediction == CLASSES[scores.index(max(scores))]
    capsys.readouterr()
    assert main(["score", "--task", "zeroshot", str(out), "--no-mlflow"]) == 0
    said = capsys.readouterr().out
    assert "9 examples, 4 classes, a {}, the big {}" in said
    assert "chance  25.0" in said


# Message -> (content of the file of names, words, the same after the advice was followed).
ADVICE: dict[str, tuple[bytes, list[str], bytes, list[str]]] = {
    "is the same name as class {}; remove one": (
        b"red cube\ngreen ball\nblue cone\nRed  cube.",
        [],
        b"red cube\ngreen ball\nblue cone",
        [],
    ),
    "is no name: give it a letter or a digit": (
        b"red cube\ngreen ball\nblue cone\n!",
        [],
        b"red cube\ngreen ball\nblue cone\na",
        [],
    ),
    "is none of the {} of --classes; add it, or correct the set": (
        b"red cube\ngreen ball",
        [],
        b"red cube\ngreen ball\nblue cone",
        [],
    ),
    "is empty; write one name or prompt a line": (b" \n", [], b"red cube\ngreen ball\nblue cone", []),
    "is no UTF-8 text ({} at byte {}); save it as UTF-8": (b"\xff", [], b"red cube\ngreen ball\nblue cone", []),
    "--{}: goes with --task {}, not with {}; leave it out": (
        b"red cube\ngreen ball\nblue cone",
        ["--top-k", "3"],
        b"",
        [],
    ),
}


@pytest.mark.parametrize("says", covers(ADVICE))
def test_what_is_told_of_classes_is_corrected_as_it_is_said(world: Path, tmp_path: Path, says: str) -> None:
    names, (before, wrong, after, right) = tmp_path / "names.txt", ADVICE[says]
    names.write_bytes(before)
    words = [*zero_shot(world, tmp_path / NAME, "--classes", str(names)), *wrong]

    def follow(_: Said) -> None:
        names.write_bytes(after or before)
        words[len(words) - len(wrong) :] = right

    helps(says, lambda: typed("predict", *words), follow)


@remedy("compares ITC vectors, which need trained heads of {}: {}; give a checkpoint trained for it")
def test_a_model_without_training_has_no_heads(world: Path, tmp_path: Path):
    words = retrieval(world, tmp_path / NAME, "--top-k", "0")
    given = [["--run", str(world / "tiny" / "config.yaml"), *words[2:]]]
    return lambda: typed("predict", *given[0]), lambda _: given.insert(0, words)


@remedy("id {}: has no rank of its {} by {}; predict it with --task {}")
def test_ranks_of_another_task(world: Path, tmp_path: Path):
    files = [tmp_path / "classes.jsonl", tmp_path / "rankings.jsonl"]
    assert main(["predict", *zero_shot(world, files[0])]) == 0
    follow = lambda _: main(["predict", *retrieval(world, files[-1])]) or files.reverse()  # noqa: E731
    return lambda: typed("score", "--task", "retrieval", files[0], "--no-mlflow"), follow


def test_bad_input_is_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, prompts = tmp_path / NAME, tmp_path / "prompts.txt"

    def refused(words: list[str], *said: str) -> None:
        assert main(["predict", *words]) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in said), error
        assert not out.exists()

    prompts.write_text("a photo\n")
    refused(zero_shot(world, out, "--templates", str(prompts)), "prompts.txt: 'a photo' must hold {} once")
    refused(zero_shot(world, out, "decode.class_templates=[no place]"), "decode.class_templates", "must hold {} once")
    refused(retrieval(world, out, "--modality", IMAGE), "trained heads of image", "checkpoint trained for it")
    refused(retrieval(world, out, "--top-k", "-1"), "--top-k -1")
    several = ["--data", str(world / "regions"), "--modality", IMAGE_REGION]
    refused(zero_shot(world, out, *several), "captions; zero-shot classes need one")
