"""What mining advises, followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rb.mining.inputs import find_inputs
from tests.mining.test_stage import png, write_tar
from tests.support.remedies import Said, remedy

Case = tuple[Callable[[], object], Callable[[Said], object]]


@remedy("no shards there; give a manifest, a tar, a folder of either, or a pattern such as 'DIR/*.tar'")
def test_no_input_there(tmp_path: Path) -> Case:
    wish = [str(tmp_path)]

    def follow(said: Said) -> None:
        write_tar(tmp_path / "images" / "0.tar", {"1.png": png()})
        wish[:] = [said.found("such as '(.*)'").replace("DIR", str(tmp_path / "images"))]

    return lambda: find_inputs(wish), follow
