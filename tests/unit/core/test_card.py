"""Data cards as Markdown: every number of the card is on the page, and no text breaks its tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from qwen3emb.core.card import count_rows, markdown_card, write_card
from qwen3emb.core.records import PAIR, PASSAGE
from qwen3emb.core.storage import Storage


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


def test_rows_are_counted_over_all_files_of_a_folder(tmp_path: Path) -> None:
    out = Storage(str(tmp_path))
    for number, lengths in enumerate([(10, 49), (50, 5000)]):
        rows = [{"text": "ß" * n, "language": "de" if n < 50 else "en", "id": str(n)} for n in lengths]
        out.write_table(f"passages/{number}.parquet", pa.Table.from_pylist(rows, schema=PASSAGE))
    pairs = [{"query": "q", "document": "d" * 99, "dataset": "synthetic", "language": ""}]
    out.write_table("pairs/0.parquet", pa.Table.from_pylist(pairs, schema=PAIR))
    card = count_rows(out, ("passages", "pairs", "none"))
    assert (card["passages"], card["pairs"], card["none"]) == (4, 1, 0)
    assert card["passages_by_language"] == {"de": 2, "en": 2}
    assert card["pairs_by_dataset"] == {"synthetic": 1} and "pairs_by_language" not in card
    lengths = card["characters_of_passages"]
    assert [lengths[edge].get("text") for edge in ("0-50", "50-100", "5000-")] == [2, 1, 1]
    assert card["characters_of_pairs"]["50-100"] == {"query": 0, "document": 1}
    write_card(out, "Corpus", card)
    assert out.read_json("card.json")["passages"] == 4
    assert "| 50-100 | 1 |" in out.read_bytes("card.md").decode()
