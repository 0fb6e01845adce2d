"""The benchmark's machinery on small cases; the promised ratios themselves are checked by a slow test."""

import math
import os
from pathlib import Path

import pytest
import torch

from eval import bench_quantizers as bench


def test_rows_of_small_cases(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        lambda: bench._rvq_case(dim=4, depth=3, size=16, count=64, target=5, train=False),
        lambda: bench._rvq_case(dim=4, depth=3, size=16, count=64, target=5, train=True),
        lambda: bench._vq_case(dim=4, size=16, count=64),
        lambda: bench._fsq_case((8, 5, 5), 64, 1.3),
        lambda: bench._lfq_case(bits=5, count=64, target=50, with_library=True),
        lambda: bench._lfq_case(bits=5, count=64, target=math.nan, with_library=False),
        lambda: bench._dimension_wise_case(count=64, dim=3),
    ]
    monkeypatch.setattr(bench, "_cases", lambda: small)
    # How memory is measured is tested below, once: each measurement copies this process.
    monkeypatch.setattr(bench, "_extra_memory", lambda call: math.nan if call is None else float(call().numel()))
    rows = bench.run(repeats=1)
    assert len(rows) == len(small)
    for row in rows:
        assert row.ours_seconds > 0
        assert row.ours_mib > 0
        if "18" in row.note or "not run" in row.note:
            assert math.isnan(row.theirs_seconds)
            assert math.isnan(row.theirs_mib)
            assert math.isnan(row.same_codes)
        else:
            assert row.same_codes == 1.0
            assert row.speedup == row.theirs_seconds / row.ours_seconds
            assert row.theirs_mib > 0
    bench.print_table(rows)
    printed = capsys.readouterr().out
    assert all(row.case.split(",")[0] in printed for row in rows)
    assert "not run" in printed


def test_the_command_fails_when_a_promise_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, broken = (
        bench.Row(case="a", ours_seconds=1, theirs_seconds=theirs, ours_mib=1, theirs_mib=1, same_codes=1, target=1.5)
        for theirs in (2.0, 1.0)
    )
    monkeypatch.setattr(bench, "run", lambda *, repeats: [kept] * repeats)
    assert bench.main(["--repeats", "2"]) == 0
    monkeypatch.setattr(bench, "run", lambda *, repeats: [kept, broken])
    assert bench.main([]) == 1


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no /proc/self/clear_refs, so peak memory cannot be measured")
    left: list[torch.Tensor] = []
    assert bench._extra_memory(lambda: left.append(torch.ones(16 << 18))) >= 15  # it allocates 16 MiB
    assert not left
    with pytest.raises(RuntimeError, match="ended without a result"):
        bench._extra_memory(lambda: os._exit(3))


@pytest.mark.slow
def test_memory_of_a_known_allocation() -> None:
    if math.isnan(bench._extra_memory(lambda: torch.ones(1))):
        pytest.skip("this system has no /proc/self/clear_refs, so peak memory cannot be measured")
    # Start-up of libraries and pages copied after the fork add some MiB to every call; the difference of two calls has neither.
    small, large = (min(bench._extra_memory(lambda n=n: torch.ones(n << 20)) for _ in range(5)) for n in (16, 80))
    assert large - small == pytest.approx(256, abs=8)
    assert small == pytest.approx(64, abs=24)


def test_refuses_no_repeats() -> None:
    with pytest.raises(ValueError, match=r"repeats=0"):
        bench.run(repeats=0)


@pytest.mark.slow
def test_promised_ratios() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = bench.run(repeats=2)
    finally:
        torch.set_num_threads(before)
    for row in rows:
        if not math.isnan(row.target):
            assert row.speedup >= row.target, row
        if not math.isnan(row.same_codes):
            assert row.same_codes > 0.9999, row
    assert rows[0].memory_share < 0.2
