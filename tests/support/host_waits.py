"""Finds operators that make the host wait for a GPU; the CPU's profile shows them as well. For whole passes."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"}


def host_waits(work: Callable[[], object]) -> list[str]:
    """Names of such operators in `work`, inner ones too (boolean indexing calls nonzero)."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        work()
    return [event.key for event in record.key_averages() if event.key in WAITING]
