"""Requests that schemathesis makes of /openapi.json, right ones and wrong ones; half of the right ones get an image that is one."""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from rb.serving.forms import FORM
from tests.serving.conftest import picture, points
from tests.serving.served import Served, encoded, text

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
SECRETS = ("Traceback", "site-packages", ".py", "rb.serving")  # no answer may hold them


def fuzz(served: Served, examples: int) -> Counter[int]:
    """``examples`` right and as many wrong requests of each operation; each answer is checked. Returns answers by status."""
    statuses: Counter[int] = Counter()
    threads = threading.active_count()
    with requests.Session() as session:
        for result in schemathesis.openapi.from_url(f"{served.url}/openapi.json").get_all_operations():
            for mode in schemathesis.GenerationMode:
                statuses += fuzz_operation(session, result.ok(), mode, examples)
    assert served.engine.waiting == 0
    assert threading.active_count() <= threads + 45, "Starlette's pool has 40 threads"
    return statuses


def fuzz_operation(
    session: requests.Session, operation: schemathesis.APIOperation, mode: schemathesis.GenerationMode, examples: int
) -> Counter[int]:
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
    def one(case: schemathesis.Case, real: bool) -> None:
        if real and mode.is_positive and isinstance(case.body, dict):
            make_real(case.body, case.media_type == FORM)
        # 504 is the right answer to a deadline of no time.
        deadline = case.body.get("deadline_s") if isinstance(case.body, dict) else None
        if isinstance(deadline, (int, float)) and 0 < deadline < 60:
            case.body["deadline_s"] = 60
        answer = case.call(session=session, timeout=60)
        statuses[answer.status_code] += 1
        if case.path != "/openapi.json":
            assert not [word for word in SECRETS if word in answer.text], answer.text
        # In a form every value is a text, so one of another type may be right.
        form = case.media_type == FORM
        case.validate_response(answer, checks=[one for one in CHECKS if not (form and one is negative_data_rejection)])

    with suppress(Unsatisfiable):  # a request without fields has no wrong form
        one()
    return statuses


def make_real(body: dict[str, Any], form: bool) -> None:
    """Put a picture or a cloud and a box that fits into a right request, so that it gets further than to a refusal."""
    box = [[1, 1, 20, 20]]
    if "image" in body:
        data = encoded(picture(1))
        body |= {
            "image": data if form else text(data),
            "boxes": json.dumps(box) if form else box,
            "box_format": "pixels",
        }
    elif "points" in body and not form:
        body["points"] = points(1).tolist()
        body.pop("boxes", None)
    for name in ("model", "texts", "decoding"):
        body.pop(name, None)
