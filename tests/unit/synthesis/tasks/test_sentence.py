"""The sentence of a passage that bitext and STS items are made of."""

from __future__ import annotations

from qwen3emb.synthesis.tasks.sentence import drawn_sentence


def test_sentences_are_drawn_in_scripts_with_and_without_spaces() -> None:
    assert drawn_sentence("Kurz. Die Fähre fährt heute leider nicht mehr.", 0.0).startswith("Die Fähre")
    assert drawn_sentence("渡轮星期天不开。狗可以免费乘坐所有的船。", 0.99) == "狗可以免费乘坐所有的船。"
    assert len(drawn_sentence("word " * 500, 0.5).split()) == 40
    assert drawn_sentence("a" * 100_000, 0.5) == "a" * 400
