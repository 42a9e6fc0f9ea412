"""A training in which certain samples give numbers that are not finite: in one loss term, or only in the gradient. Also for replaying it.

usage: python -m tests.support.poison PLAN.json TRAINING-ARGUMENTS     (one rank of `rb train`; the plan: see ``Plan``)

The model's own functions run; what they give for a poisoned sample is multiplied by infinity, wherever that sample is read. The sample is known by its
modality and its position in the stream, so it is the same one in a run of several ranks and in a replay by one process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rb.core.batch import Batch
from rb.core.exit_codes import leave
from rb.core.metric_names import GRADIENT
from rb.model import loss_terms
from rb.model.encoded import Encoded

Plan = dict[tuple[str, int], str]
"""(modality, position) -> a loss term, or ``grad``."""


def write(plan: Plan, path: Path) -> Path:
    """The plan as a file."""
    path.write_text(json.dumps([[*key, term] for key, term in plan.items()]))
    return path


def read(path: Path) -> Plan:
    """The plan of a file."""
    return {(modality, position): term for modality, position, term in json.loads(path.read_text())}


@contextmanager
def poisoned(plan: Plan) -> Iterator[None]:
    """Inside, the model is poisoned."""
    functions, vectors, of = dict(loss_terms.FUNCTIONS), Encoded.__dict__["itc_vectors"], Encoded.__dict__["of"]

    def rows(batch: Batch, term: str) -> list[int]:
        return [row for row, p in enumerate(batch.positions) if plan.get((batch.modality, p)) == term]

    def of_term(term: str, function: Callable[[Encoded], Tensor]) -> Callable[[Encoded], Tensor]:
        return lambda encoded: function(encoded) * (torch.inf if rows(encoded.batch, term) else 1.0)

    def itc_vectors(encoded: Encoded) -> tuple[Tensor, Tensor]:
        queries, texts = vectors.func(encoded)
        factor = torch.ones(len(encoded.batch), 1, 1)
        factor[rows(encoded.batch, "itc")] = torch.inf
        return queries * factor, texts

    def with_bad_gradient(_: type[Encoded], model: Any, batch: Batch, *rest: Any, **named: Any) -> Encoded:
        encoded = of.__func__(Encoded, model, batch, *rest, **named)
        bad = rows(batch, GRADIENT)
        if bad and encoded.query_output.requires_grad:
            factor = torch.ones(len(batch), 1, 1)
            factor[bad] = torch.inf
            encoded.query_output.register_hook(lambda gradient: gradient * factor)
        return encoded

    patched = cached_property(itc_vectors)
    patched.__set_name__(Encoded, "itc_vectors")
    try:
        loss_terms.FUNCTIONS.update({term: of_term(term, f) for term, f in functions.items() if term != "itc"})
        Encoded.itc_vectors, Encoded.of = patched, classmethod(with_bad_gradient)  # type: ignore[method-assign]
        yield
    finally:
        loss_terms.FUNCTIONS.update(functions)
        Encoded.itc_vectors, Encoded.of = vectors, of


if __name__ == "__main__":
    from rb.train import main

    with poisoned(read(Path(sys.argv[1]))):
        leave(main(sys.argv[2:]))
