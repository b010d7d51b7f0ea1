"""Some seconds of what tests/benchmarks/soak.py does for an hour."""

from __future__ import annotations

from pathlib import Path

from mixed_load import MixedLoad


FOLDER = Path(__file__).parents[1] / "fixtures" / "format_1"
POINTS = ["fastest", "point-03", "most-accurate", "by-features", "by-both"]


def test_mixed_requests_from_eight_threads_get_no_wrong_answer(images):
    pictures = [image for size in (16, 24, 32, 41) for image in images(12, size, seed=size)]
    load = MixedLoad(FOLDER, pictures, POINTS, tolerance=5e-3)  # its last layers have large weights
    assert all(len(rows) > len(pictures) / 4 for rows in load.asked.values())
    for counts in load.run(threads=8, seconds=6, every=6):
        assert not counts.wrong
    assert counts.kinds.keys() == {"plain", "decoded", "invalid", "stream", "budget"}
    assert load.forms["lazy"].experts[0].store.loads > 3  # experts leave and come back
