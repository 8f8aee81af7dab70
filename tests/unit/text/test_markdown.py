from __future__ import annotations

import io
import random

import pytest

from qwen3emb.text import markdown
from qwen3emb.text.markdown import Section, UndecodedLines, markdown_sections

WORDS = ["rye", "`# code`", "*dough*", "é", "日本", "2 > 1", "a | b", "<b>bold</b>", "[link](x.md)"]


def sections(text: str | bytes) -> list[tuple[str, str, int]]:
    raw = text.encode() if isinstance(text, str) else text
    found = list(markdown_sections(io.BytesIO(raw)))
    return [(s.title, s.text, s.line) for s in found if isinstance(s, Section)]


def document(seed: int, count: int = 30) -> tuple[str, list[tuple[str, str, int]]]:
    """A random document, and its sections as it was put together from them."""
    draw = random.Random(seed)
    lines, expected, open_headings = ["", "", "Before."], [("", "Before.", 1)], list[tuple[int, str]]()
    for number in range(count):
        level = draw.randint(1, 6)
        open_headings = [(other, title) for other, title in open_headings if other < level]
        open_headings.append((level, f"Part {number}"))
        line = len(lines) + 1
        if level < 3 and draw.random() < 0.5:
            lines += ["", f"Part *{number}*", "=" * 5 if level == 1 else "---"]
            line += 1
        else:
            lines += [f"{'#' * level} Part **{number}** {'#' * draw.randint(0, 3)}".rstrip()]
        body = [
            *draw.choice(
                [["```sh", "# no heading", "", "no", "---", "```"], ["> # quoted"], ["- # listed"], [" a"], []]
            ),
            *("" for _ in range(draw.randint(1, 3))),
            " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 40))) + " end",
            "",
        ]
        lines += body
        title = " > ".join(title for _, title in open_headings)
        expected.append((title, "\n".join(body).strip(), line))
    return "\n".join(lines), expected


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_document_comes_back_as_the_sections_it_was_put_together_from(seed: int, newline: str) -> None:
    text, expected = document(seed)
    assert sections(text.replace("\n", newline)) == expected


@pytest.mark.parametrize("piece", [500, 2000])
def test_large_files_are_read_by_pieces_and_no_section_is_cut_or_moved(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, expected = document(3, count=80)
    monkeypatch.setattr(markdown, "PIECE_BYTES", piece)
    assert sections(text) == expected


def test_a_section_larger_than_a_piece_is_cut_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    paragraphs = [f"paragraph {n} " + "x " * 30 for n in range(50)]
    code = "```\n" + "\n\n".join("# in code " + "y" * 50 for _ in range(9)) + "\n```"
    monkeypatch.setattr(markdown, "PIECE_BYTES", 200)
    text = "# Long\n\n" + "\n\n".join([*paragraphs, code, "last"])
    found = sections(text)
    assert {title for title, _, _ in found} == {"Long"} and len(found) > 5
    assert "\n\n".join(part for _, part, _ in found).replace(" \n", "\n") == text[8:].replace(" \n", "\n")
    assert sum(code in part for _, part, _ in found) == 1
    lines = text.split("\n")
    assert len({line for _, _, line in found}) == len(found)
    for _, part, line in found[1:]:
        assert lines[line - 1] == part.split("\n")[0].ljust(len(lines[line - 1]))


@pytest.mark.parametrize(
    ("front", "title"),
    [
        ("---\ntitle: The guide\ntags: [a]\n---\n", "The guide"),
        ("---\ntitle: 2024-13-45\n...\n", "2024-13-45"),
        ('+++\ntitle = "Über uns"\n[more]\nx = 1\n+++\n', "Über uns"),
        ("---\nsidebar: 3\n---\n", ""),
        ("---\n---\n", ""),
        ("---\n{{ template }}: [\n---\n", ""),
        ("---\ntitle: {a: b}\n---\n", ""),
    ],
)
def test_front_matter_is_left_out_and_its_title_begins_the_path(front: str, title: str) -> None:
    line = front.count("\n") + 1
    path = [title] if title else []
    assert sections(f"\ufeff{front}Before.\n# One\ntext\n## Two\nmore\n") == [
        (title, "Before.", 1),
        (" > ".join([*path, "One"]), "text", line + 1),
        (" > ".join([*path, "One", "Two"]), "more", line + 3),
    ]


def test_a_front_matter_title_that_the_first_heading_repeats_stands_once() -> None:
    assert [title for title, _, _ in sections("---\ntitle: Guide\n---\n# Guide\na\n## Two\nb\n# Other\nc\n")] == [
        "Guide",
        "Guide > Two",
        "Guide > Other",
    ]


@pytest.mark.parametrize("start", ["---\nnever closed\n\ntext\n", "---\n\nA sentence.\n\n---\n", "---\n- list\n---\n"])
def test_a_rule_at_the_start_is_no_front_matter(start: str) -> None:
    assert sections(start)[0][1].startswith("---")


def test_comments_are_left_out_and_code_keeps_them() -> None:
    text = """<!-- licence

# not a heading
-->
One<!-- two --> three \\<!-- escaped --> `<!-- code -->` ``a ` <!-- b -->``

<!-- alone -->

```html
<!-- fenced -->
```

    <!-- indented -->

- item <!-- over
  two lines --> end
- <!-- x -->next

<div><!-- in html --></div>

# Head <!-- ing -->

a <!-- never closed
"""
    assert sections(text) == [
        (
            "",
            "One three \\<!-- escaped --> `<!-- code -->` ``a ` <!-- b -->``\n\n\n```html\n<!-- fenced -->\n```\n\n"
            "    <!-- indented -->\n\n- item\n end\n- next\n\n<div></div>",
            1,
        ),
        ("Head", "a <!-- never closed", 21),
    ]


def test_titles_have_no_markup() -> None:
    headings = {
        "## The *`clip`* [function](x.md) {#clip}": "The clip function",
        "## [By name][1] &amp; ![logo](l.png) <a id='x'></a>": "By name & logo",
        "## C\\# \\* ##": "C# *",
        "Two\nlines\n---": "Two lines",
    }
    for heading, title in headings.items():
        assert sections(f"{heading}\n\ntext\n\n[1]: http://x.org\n")[0][0] == title


def test_a_heading_without_a_text_counts_where_nothing_is_below_it() -> None:
    assert sections("# A\n## B\n### C\n## D\ntext\n# E\n") == [
        ("A > B > C", "", 3),
        ("A > D", "text", 4),
        ("E", "", 6),
    ]
    for nothing in ("", "\n \n", "<!-- nothing -->", "---\na: b\n---\n"):
        assert sections(nothing) == [("", "", 1)]


def test_bytes_that_are_not_utf8_cost_their_piece_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "PIECE_BYTES", 10)
    bad = b"# Bad\n\none \xff\n\n"
    found = list(markdown_sections(io.BytesIO(b"# Good one\n\ntext\n\n" + bad + b"# Better one\n\nmore")))
    assert [s.title for s in found if isinstance(s, Section)] == ["Good one", "Better one"]
    [undecoded] = [s for s in found if isinstance(s, UndecodedLines)]
    assert undecoded.bad_line == 7 and bad.strip() in undecoded.raw
    assert found[-1] == Section("Better one", "more", 9)
