from __future__ import annotations

import ast
import dataclasses
import io
import random
import sysconfig
import tokenize
import warnings
from collections import Counter
from pathlib import Path

import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.corpus.python_source import (
    SourceItem,
    docstring_pair,
    extract_items,
    first_paragraph,
    is_natural_language,
    module_name,
    natural_language_words,
    split_of,
)

STDLIB = Path(sysconfig.get_paths()["stdlib"])

SOURCE = '''"""Module summary."""
import os

class A:
    """Class doc."""

    @property
    def value(self):  # kept
        """Return the value.

        More text.
        """
        # a comment
        text = """first
        second
    third"""
        return call("a"
                    "b", text)

    class Inner:
        async def run(self): "Run it now."; await self.x; return 1

    def plain(self):
        return 2

if os.name:
    def f(x):
        """One doc for f."""  # noqa
        def nested():
            """Nested doc stays."""
        return nested
else:
    def f(x):
        "Other doc for f"; return x

try:
    pass
except ImportError:
    def é(ü="ä"): "Ünïcode döc"; return ü

def only():
    """Only a docstring here."""
'''


def items_by_name(source: str, module: str = "pkg.mod") -> dict[str, SourceItem]:
    return {item.qualified_name: item for item in extract_items(source, module)}


def test_extracts_documented_definitions_with_qualified_names_in_order() -> None:
    items = extract_items(SOURCE, "pkg.mod")
    assert [(item.qualified_name, item.kind) for item in items] == [
        ("pkg.mod", "module"),
        ("pkg.mod.A", "class"),
        ("pkg.mod.A.value", "function"),
        ("pkg.mod.A.Inner.run", "function"),
        ("pkg.mod.f", "function"),
        ("pkg.mod.f#2", "function"),
        ("pkg.mod.é", "function"),
        ("pkg.mod.only", "function"),
    ]
    assert {item.module for item in items} == {"pkg.mod"}
    assert items[2].docstring == "Return the value.\n\nMore text."
    assert items[0].code == items[1].code == ""


def test_code_keeps_comments_layout_and_strings_but_not_the_docstring() -> None:
    items = items_by_name(SOURCE)
    assert items["pkg.mod.A.value"].code == (
        "@property\n"
        "def value(self):  # kept\n"
        "    # a comment\n"
        '    text = """first\n'
        "        second\n"
        '    third"""\n'
        '    return call("a"\n'
        '                "b", text)'
    )
    assert items["pkg.mod.A.Inner.run"].code == "async def run(self): await self.x; return 1"
    assert items["pkg.mod.f"].code == (
        'def f(x):\n    def nested():\n        """Nested doc stays."""\n    return nested'
    )
    assert items["pkg.mod.f#2"].code == "def f(x):\n    return x"
    assert items["pkg.mod.é"].code == 'def é(ü="ä"): return ü'
    assert items["pkg.mod.only"].code == ""


def test_windows_line_ends_and_form_feeds_do_not_shift_lines() -> None:
    source = 'x = "a\x0cb\u2028c"\r\n\x0c\r\ndef f():\r\n    """Doc."""\r\n    return 1\r\n'
    assert items_by_name(source)["pkg.mod.f"].code == "def f():\n    return 1"


def test_bad_source_raises_and_odd_escapes_do_not_warn() -> None:
    with pytest.raises(SyntaxError):
        extract_items("def f(:\n", "m")
    with pytest.raises((SyntaxError, ValueError)):
        extract_items("x = 1\0", "m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extract_items('"""Doc \\d."""\nx = "\\d" is 1\n', "m")[0].docstring == "Doc \\d."


def code_as_the_tree_has_it(source: str) -> Counter[str]:
    """Dumps of every documented, non-nested function without its docstring: found by another route."""
    dumps: Counter[str] = Counter()

    class Collector(ast.NodeVisitor):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            if (ast.get_docstring(node) or "").strip() and len(node.body) > 1:
                node.body = node.body[1:]
                dumps[ast.dump(node)] += 1

        visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    Collector().visit(ast.parse(source))
    return dumps


def test_removing_docstrings_keeps_the_same_program_over_the_standard_library() -> None:
    files = sorted(STDLIB.glob("*.py")) + sorted(STDLIB.glob("asyncio/*.py"))
    checked = 0
    for path in random.Random(0).sample(files, 15):
        source = path.read_bytes().decode("utf-8")
        found = Counter(
            ast.dump(ast.parse(item.code).body[0]) for item in extract_items(source, path.stem) if item.code
        )
        assert found == code_as_the_tree_has_it(source), path.name
        checked += sum(found.values())
    assert checked > 50


def test_comments_survive_in_a_file_of_the_standard_library() -> None:
    source = (STDLIB / "textwrap.py").read_text("utf-8")
    code = {item.qualified_name: item.code for item in extract_items(source, "textwrap")}["textwrap.dedent"]
    tokens = list(tokenize.generate_tokens(io.StringIO(code + "\n").readline))
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    assert len(comments) > 5 and all(comment in source for comment in comments)


def test_module_names() -> None:
    assert module_name("/src/lib/a/b.py", "/src/lib") == "a.b"
    assert module_name("/src/lib/a/__init__.py", "/src/lib/") == "a"
    assert module_name("/src/lib/__init__.py", "/src/lib") == "lib"
    assert module_name("s3://bucket/src/a/b.py", "s3://bucket/src") == "a.b"
    with pytest.raises(ValueError, match="not below"):
        module_name("/src/library/a.py", "/src/lib")


def test_first_paragraph_is_one_line_without_fields_or_doctests() -> None:
    assert first_paragraph("\n    Parse the\n      text.\n\n    More.\n    ") == "Parse the text."
    assert first_paragraph("Parse it.\n:param x: the text") == "Parse it."
    assert first_paragraph("Parse it.\n>>> parse()") == "Parse it."
    assert first_paragraph("") == ""


def test_words_count_prose_only() -> None:
    text = """Return the well-known user's value, quickly (if any).

    Example::

        these words are code and do not count

    >>> these words neither
    nor this output

    .. note:: nor
       the note's text

    Title words
    -----------
    :param x: not these
        nor the continuation
    Uses foo_bar(x), a.b.c and x1 = 5.

    ```
    no fenced words
    ```
    """
    # 8 in the first line, "Example", 2 of the title, "Uses" and "and" of the last.
    assert natural_language_words(text) == 8 + 1 + 2 + 2
    assert natural_language_words("返回字符串的长度。") == 8
    assert natural_language_words("") == 0


def test_natural_language_needs_words_that_are_most_of_the_tokens() -> None:
    prose = "the quick brown fox jumps over lazy dogs " * 5
    assert is_natural_language(prose)
    assert not is_natural_language(prose, min_words=41)
    assert not is_natural_language(prose + " x1=2" * 41)


def test_split_is_stable_by_whole_module_with_the_shares_asked_for() -> None:
    names = [f"package{i}.module" for i in range(20_000)]
    counts = Counter(split_of(name, 0.1, 0.2, seed=3) for name in names)
    assert counts["heldout"] / len(names) == pytest.approx(0.2, abs=0.01)
    assert counts["dev"] / len(names) == pytest.approx(0.1, abs=0.01)
    # The hash must be the same on every machine: frozen values.
    assert [split_of(f"m{i}", 0.3, 0.2, 0) for i in range(11, 15)] == ["train", "heldout", "dev", "heldout"]
    assert {split_of(name, 0.0, 1.0, 0) for name in names[:50]} == {"heldout"}
    assert any(split_of(name, 0.1, 0.2, 3) != split_of(name, 0.1, 0.2, 4) for name in names[:50])
    with pytest.raises(UserError, match=r"0\.7"):
        split_of("m", 0.7, 0.4, 0)


def function_item(code: str, docstring: str = "Return the sum of two.", name: str = "m.f") -> SourceItem:
    return SourceItem(name, "function", "m", docstring, code)


CODE = "def f(a, b):\n    return a + b"


def test_labelled_pair_is_summary_and_code() -> None:
    item = function_item(CODE, "Return the sum\nof two.\n\nDetails.")
    assert docstring_pair(item) == ("Return the sum of two.", CODE)


@pytest.mark.parametrize(
    "item",
    [
        function_item(CODE, name="m.A.__add__"),
        function_item(CODE, name="m.A.__add__#2"),
        function_item(CODE, name="m.test_sum"),
        function_item(CODE, docstring="Sum."),
        function_item(""),
        function_item("def f(): return 1"),
        function_item("def f():\n    # comment\n\n    pass"),
        function_item("def f():\n    raise NotImplementedError('later')"),
        function_item("def f():\n    ..."),
        dataclasses.replace(function_item(CODE), kind="class"),
    ],
)
def test_unsuitable_items_are_no_pair(item: SourceItem) -> None:
    assert docstring_pair(item) is None


def test_limits_of_a_pair_are_the_callers() -> None:
    assert docstring_pair(function_item(CODE, docstring="Sum."), min_query_words=1) == ("Sum.", CODE)
    assert docstring_pair(function_item("def f(): return 1"), min_code_lines=1) is not None
    assert docstring_pair(function_item(CODE), min_code_lines=3) is None
