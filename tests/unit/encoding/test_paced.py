"""Lines of progress: few of them, and always the last."""

from __future__ import annotations

from qwen3emb.encoding.dispatch import paced


def test_within_the_pace_only_the_end_is_said() -> None:
    said: list[str] = []
    report = paced(said.append, "mine: queries embedded", seconds=3600)
    for done in range(1, 101):
        report(done, 100)
    assert said == ["mine: queries embedded: 100 of 100"]


def test_with_no_pace_everything_is_said() -> None:
    said: list[str] = []
    report = paced(said.append, "texts", seconds=0)
    for done in (1, 2, 3):
        report(done, 3)
    assert said == ["texts: 1 of 3", "texts: 2 of 3", "texts: 3 of 3"]
