"""Ranks of this host that share a work: what they are given, and how it ends when one dies or the user wants it to."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rb.core import ranks_here
from rb.core.exit_codes import STOPPED
from rb.launching import local, node

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"


@pytest.mark.dist
@pytest.mark.parametrize(("who", "code"), [("supervisor", STOPPED), ("rank", 128 + signal.SIGKILL)])
def test_ranks_get_the_listed_gpus_in_order_and_end_together(
    who: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for module in (local, node):
        monkeypatch.setattr(module, "devices_of_ranks", lambda _ranks: ["3", UUID])
    files = [tmp_path / f"rank{rank}.json" for rank in (0, 1)]

    def given() -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in files]

    def disturb() -> None:
        end = time.monotonic() + 120
        while not all(file.is_file() for file in files) and time.monotonic() < end:
            time.sleep(0.05)
        if who == "rank":
            os.kill(given()[1]["pid"], signal.SIGKILL)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=disturb).start()
    assert local.share_here("tests.support.rank_probe", [str(tmp_path)], 2, "rb predict") == code
    # DeepSpeed's own command would sort "3,1", take a number of GPUs for 0 and 1, and fail at a UUID.
    assert [one[ranks_here.VISIBLE] for one in given()] == [f"3,{UUID}"] * 2
    assert [(one["RANK"], one["WORLD_SIZE"], one["LOCAL_RANK"]) for one in given()] == [
        ("0", "2", "0"),
        ("1", "2", "1"),
    ]
    assert not any(psutil.pid_exists(one["pid"]) for one in given())
    assert ("rb predict: rank 1 on" in capfd.readouterr().err) == (who == "rank")
