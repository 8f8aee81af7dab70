"""Data cards as Markdown: every number of the card is on the page, and no text breaks its tables."""

from __future__ import annotations

from qwen3emb.data.card import markdown_card


def test_numbers_mappings_and_mappings_of_mappings() -> None:
    card = {
        "asked": 12_345,
        "rejected": {"wrong_language": 3},
        "empty": {},
        "sets": {"nq": {"rows": 5}, "a|b": {"x": 1}},
    }
    page = markdown_card("Pairs", card)
    assert page.startswith("# Pairs\n\n| | |\n|---|---|\n| asked | 12,345 |\n")
    assert "## rejected\n\n| | |\n|---|---|\n| wrong language | 3 |" in page
    assert "| | rows | x |\n|---|---|---|\n| nq | 5 |  |\n| a\\|b |  | 1 |" in page
    assert "empty" not in page and page.endswith("|\n")


def test_a_set_with_lists_and_nested_counts_is_one_line() -> None:
    page = markdown_card("Sets", {"nq": {"languages": ["en"], "rejected": {"empty": 2}, "note": "two\nlines"}})
    assert "| languages | ['en'] |" in page and "| note | two lines |" in page
