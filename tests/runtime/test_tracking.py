"""A loop without a terminal says now and then how far it is."""

from __future__ import annotations

import pytest

from constrained_diffusion.runtime import tracking
from constrained_diffusion.runtime.tracking import in_words, tracked


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0:00"), (59.6, "1:00"), (130, "2:10"), (3723, "1:02:03")])
def test_durations(seconds: float, said: str) -> None:
    assert in_words(seconds) == said


@pytest.mark.parametrize("silent", [False, True])
def test_a_line_after_every_half_minute(
    silent: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now)
    with caplog.at_level("INFO"):
        for item in tracked("abcdef", "Drawing", silent):
            now += 20.0
            assert item in "abcdef"
    lines = ["Drawing: 2 of 6 batches, 1:20 left", "Drawing: 4 of 6 batches, 0:40 left"]
    expected = [] if silent else lines
    assert [record.getMessage() for record in caplog.records] == expected
    assert list(tracked([], "nothing")) == []
