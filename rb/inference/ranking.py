"""Rankings of the examples of a `PredictDataset` on one process or sharded over ranks: zero-shot classes, and retrieval both ways. No files, no scores.

Each rank makes the ITC vectors of its own examples, kept chunk by chunk (`rb/inference/chunks.py`). For retrieval the best candidates of each
example and of each text are scored again by ITM, by the rank that has the example. Every rank then holds all similarities, 4 bytes for each pair of
example and text, and ranks alike. N examples, D different texts, Q query tokens, E ITC width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rb.core import dist, heartbeat
from rb.core.config import check_templates
from rb.core.modality import modality_spec
from rb.core.ranking import CLASS, ITC, ITM, SOURCE, TEXT, candidates, ranks, reranked
from rb.core.strict_json import read_bytes
from rb.core.tasks import RETRIEVAL, ZEROSHOT
from rb.core.text import clean_caption
from rb.data.pipeline import PredictDataset
from rb.data.predictions import Prediction
from rb.inference.chunks import Chunks, Piece
from rb.inference.generate import batches_on_device, row_of
from rb.inference.load import Loaded
from rb.inference.vectors import query_vectors, similarities, text_vectors, tokens

TOP_K = 128  # candidates that ITM scores again, as in BLIP-2
QUERIES, TEXTS, PAIRS, SCORES = "queries", "texts", "pairs", "scores"  # tensors of chunks
PAIRS_AT_ONCE = 64  # of one pass of the Q-Former


@dataclass(frozen=True)
class Ranking:
    """What a job that ranks is told.

    Attributes:
        classes: zero-shot: names of all classes; none: those of the set.
        templates: zero-shot: prompts of a class; none: those of the run.
        top_k: retrieval: candidates that ITM scores again; 0: none.
    """

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    top_k: int = TOP_K


@dataclass(frozen=True)
class Work:
    """A job as this rank sees it: the model, its examples, and what it has kept of them."""

    loaded: Loaded
    dataset: PredictDataset
    read_as: str
    chunks: Chunks
    told: Ranking
    num_workers: int = 0

    def pieces(
        self, batches: Callable[[int], Iterator[Piece]], fits: Callable[[int, Piece], bool], kind: str = "chunk"
    ) -> list[Piece]:
        """As of ``Chunks.all``, without gradient."""
        with torch.no_grad():
            return self.chunks.all(self.dataset, batches, fits, kind)


Found = tuple[list[Prediction], dict[str, Any]]  # all rows, and what the meta file says of how they were ranked


def zero_shot(work: Work) -> Found:
    """The rank of each example's class among all classes; its prediction is the most similar one. Collective.

    Raises:
        ValueError: an example without one caption, or with one that is no class; classes whose names the model cannot tell apart.
    """
    pieces = work.pieces(partial(_vectors, work, with_texts=False), _has_vectors)
    rows = _of_all([row for piece in pieces for row in piece.rows])
    for row in rows:
        if len(row.references) != 1:
            raise ValueError(
                f"id {row.id!r}: has {len(row.references)} captions; zero-shot classes need one for each example, the name of its class"
            )
    names = work.told.classes or tuple(dict.fromkeys(row.references[0] for row in rows))
    number = numbered(names)
    for row in rows:
        if clean_caption(row.references[0]) not in number:
            raise ValueError(
                f"id {row.id!r}: its class {row.references[0]!r:.100} is none of the {len(names)} of --classes; add it, or correct the set"
            )
    templates = templates_of(work)
    similarity = _similarities(work, pieces, _class_vectors(work, list(number), templates))
    labels = np.array([number[clean_caption(row.references[0])] for row in rows])
    found = ranks(similarity, np.arange(len(names)) == labels[:, None])
    ranked = [
        replace(row, prediction=names[best], ranks={ITC: {CLASS: [int(rank)]}})
        for row, best, rank in zip(rows, similarity.argmax(1), found, strict=True)
    ]
    return ranked, {"classes": list(names), "templates": list(templates)}


def retrieve(work: Work) -> Found:
    """Ranks of each example's texts among all texts and of each text's example among all, by ITC and then by ITM. Collective.

    Texts that the model reads alike are one text, which is right for each example that has it. An example's prediction is the text that fits best.
    """
    pieces = work.pieces(partial(_vectors, work, with_texts=True), _has_vectors)
    rows = _of_all([row for piece in pieces for row in piece.rows])
    vectors = _of_all([vector for piece in pieces for vector in piece.tensors[TEXTS]])
    captions = [text for row in rows for text in row.references]
    written = {
        clean_caption(text): text for text in reversed(captions)
    }  # as the model reads it -> as it was first written
    number = {text: k for k, text in enumerate(dict.fromkeys(map(clean_caption, captions)))}
    own = [[number[clean_caption(text)] for text in row.references] for row in rows]
    first = {number[clean_caption(text)]: k for k, text in reversed(list(enumerate(captions)))}
    texts = torch.stack([vectors[first[k]] for k in range(len(number))]).to(work.loaded.model.device)
    scores = _similarities(work, pieces, texts)
    right = np.zeros(scores.shape, dtype=bool)
    for row, numbers in zip(right, own, strict=True):
        row[numbers] = True
    found = {ITC: (ranks(scores, right), ranks(scores.T, right.T))}
    if work.told.top_k:
        texts_to_try, examples_to_try = (
            candidates(*both, work.told.top_k) for both in ((scores, right), (scores.T, right.T))
        )
        pairs = np.zeros(scores.shape, dtype=bool)
        np.put_along_axis(pairs, texts_to_try, True, axis=1)
        np.put_along_axis(pairs.T, examples_to_try, True, axis=1)
        fits = _matches(work, pairs, list(number))
        fits[pairs] += scores[pairs]
        found[ITM] = (
            reranked(found[ITC][0], texts_to_try, np.take_along_axis(fits, texts_to_try, 1), right),
            reranked(found[ITC][1], examples_to_try, np.take_along_axis(fits.T, examples_to_try, 1), right.T),
        )
        scores = fits
    names = [written[text] for text in number]
    ranked = [
        replace(
            row,
            prediction=names[best],
            ranks={who: {TEXT: [int(a[i])], SOURCE: [int(b[k]) for k in own[i]]} for who, (a, b) in found.items()},
        )
        for i, (row, best) in enumerate(zip(rows, scores.argmax(1), strict=True))
    ]
    return ranked, {"texts": len(names), "top_k": work.told.top_k}


RANKED: dict[str, Callable[[Work], Found]] = {ZEROSHOT: zero_shot, RETRIEVAL: retrieve}


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line; ``ValueError`` for two that the model reads alike."""
    names = _lines(path)
    try:
        numbered(names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return names


def read_templates(path: Path) -> tuple[str, ...]:
    """Prompts of a class, one a line; ``ValueError`` unless each holds ``{}`` once."""
    templates = _lines(path)
    check_templates(str(path), templates)
    return templates


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file that hold something."""
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise ValueError(f"{path}: is empty; write one name or prompt a line")
    return found


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Names of classes as the model reads them, and their places; ``ValueError`` for two that are alike."""
    number: dict[str, int] = {}
    for place, name in enumerate(names):
        read = clean_caption(name)
        if not read:
            raise ValueError(f"class {place + 1}: {name!r:.100} is no name: give it a letter or a digit")
        if read in number:
            raise ValueError(
                f"class {place + 1}: {name!r:.100} is the same name as class {number[read] + 1}; remove one"
            )
        number[read] = place
    return number


def templates_of(work: Work) -> tuple[str, ...]:
    """Prompts of a class: told, or the run's, or the modality's."""
    return work.told.templates or work.loaded.generation.class_templates or (modality_spec(work.read_as).class_prompt,)


def _class_vectors(work: Work, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """The mean of the vectors of each class's prompts, of length 1: [C, E]."""
    model, text = work.loaded.model, work.loaded.text
    prompts = [clean_caption(template.format(name)) for name in names for template in templates]
    vectors = text_vectors(model, text, work.read_as, prompts).view(len(names), len(templates), -1)
    return torch.nn.functional.normalize(vectors.mean(1), dim=-1)


def _vectors(work: Work, first: int, with_texts: bool) -> Iterator[Piece]:
    """Rows and ITC vectors of this rank's examples, batch by batch."""
    loaded, read_as = work.loaded, work.read_as
    model = loaded.model
    for batch in batches_on_device(loaded, work.dataset, read_as, "vectors", work.num_workers, first=first):
        features = model.frozen_features(read_as, batch.inputs)
        found = {QUERIES: query_vectors(model, read_as, features, batch.boxes, batch.source_rows).cpu()}
        rows = [row_of(sample, "") for sample in batch.samples]
        if with_texts:
            texts = [clean_caption(text) for row in rows for text in row.references]
            found[TEXTS] = text_vectors(model, loaded.text, read_as, texts).cpu()
        heartbeat.beat()
        yield Piece(rows, found)


def _has_vectors(_number: int, piece: Piece) -> bool:
    return len(piece.tensors.get(QUERIES, ())) == len(piece.rows)


def _of_all(own: Sequence[Any]) -> list[Any]:
    """What all ranks have, one behind the other, on each of them."""
    return [one for found in dist.broadcast_object(dist.gather_objects(list(own))) for one in found]


def _similarities(work: Work, pieces: Sequence[Piece], texts: torch.Tensor) -> NDArray[np.float32]:
    """ITC similarities of all ranks' examples and texts [D, E], on each rank: [N, D]."""
    rows = [row for piece in pieces for row in piece.tensors[QUERIES].split(work.dataset.batch_size)]
    return np.stack(_of_all([row for part in rows for row in similarities(part.to(texts.device), texts).cpu().numpy()]))


def _matches(work: Work, wanted: NDArray[np.bool_], texts: Sequence[str]) -> NDArray[np.float32]:
    """ITM's scores of the wanted pairs on each rank, [N, D], -inf elsewhere. Each rank scores the pairs of its own examples."""
    counts = _of_all([len(work.dataset.examples)])
    start = sum(counts[: dist.rank()])
    own = wanted[start : start + counts[dist.rank()]]

    def fits(number: int, piece: Piece) -> bool:
        first = number * work.chunks.size
        pairs = np.argwhere(own[first : first + work.chunks.size]) + np.array([first, 0])
        return np.array_equal(pairs, piece.tensors.get(PAIRS, torch.empty(0)).numpy())

    made = work.pieces(partial(_scored, work, own, texts), fits, "match")
    scores = np.full(wanted.shape, -np.inf, dtype=np.float32)
    scores[wanted] = _of_all([score for piece in made for score in piece.tensors[SCORES].tolist()])
    return scores


def _scored(work: Work, wanted: NDArray[np.bool_], texts: Sequence[str], first: int) -> Iterator[Piece]:
    """ITM's scores of the wanted pairs, [n own, D], of this rank's examples, batch by batch."""
    loaded, read_as, size = work.loaded, work.read_as, work.dataset.batch_size
    model, start = loaded.model, first * size
    for batch in batches_on_device(loaded, work.dataset, read_as, "matches", work.num_workers, first=first):
        features = model.frozen_features(read_as, batch.inputs)
        own = np.argwhere(wanted[start : start + len(batch.samples)])
        scores = []
        for part in np.split(own, range(PAIRS_AT_ONCE, len(own), PAIRS_AT_ONCE)):
            examples = torch.from_numpy(part[:, 0]).to(model.device)
            sources = examples if batch.source_rows is None else batch.source_rows[examples]
            seen, places = sources.unique(return_inverse=True)
            boxes = None if batch.boxes is None else batch.boxes[examples]
            read = tokens(loaded.text, [texts[k] for k in part[:, 1]], model.device)
            scores.append(model.match(read_as, features[seen], boxes, read, places).cpu())
            heartbeat.beat()
        rows = [row_of(sample, "") for sample in batch.samples]
        yield Piece(rows, {PAIRS: torch.from_numpy(own + np.array([start, 0])), SCORES: torch.cat(scores)})
        start += len(batch.samples)
