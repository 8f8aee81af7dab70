"""Python source text into passages and docstring pairs, by its syntax tree; nothing is imported or run.

The pairs are CodeSearchNet's: the first paragraph of a docstring -> the function without the docstring.
"""

from __future__ import annotations

import ast
import posixpath
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

from qwen3emb.core.errors import UserError
from qwen3emb.corpus.docstrings import first_paragraph, is_natural_language, natural_language_words

__all__ = [
    "SourceItem",
    "docstring_pair",
    "extract_items",
    "first_paragraph",
    "is_natural_language",
    "module_name",
    "natural_language_words",
    "split_of",
]

Kind = Literal["module", "class", "function"]
Split = Literal["train", "dev", "heldout"]
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class SourceItem:
    """A documented module, class or function.

    `qualified_name` as in "json.decoder.JSONDecoder.decode" (a name defined again gets "#2", "#3", ...);
    `docstring` as `inspect.cleandoc` leaves it; `code` is the function's source, decorators included,
    docstring removed and dedented, and "" for modules, classes and functions with nothing else.
    """

    qualified_name: str
    kind: Kind
    module: str
    docstring: str
    code: str


def extract_items(source: str, module: str) -> list[SourceItem]:
    """The documented modules, classes, functions and methods of one file, in the order of their source.

    What is defined inside a function is left out. Raises SyntaxError or ValueError (null bytes), or
    RecursionError for absurd nesting, where the text is not Python.
    """
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in somebody else's strings are not ours to report
        tree = ast.parse(source)
    lines = source.split("\n")
    items = [item for item in _documented(tree, module, module, lines) if item.docstring]
    return _distinct_names(items)


def _documented(
    node: ast.Module | ast.ClassDef | _Function, name: str, module: str, lines: list[str]
) -> Iterator[SourceItem]:
    """`node` and the definitions inside it as items, those without a docstring too."""
    kind: Kind = "module" if isinstance(node, ast.Module) else "class"
    code = ""
    docstring = ast.get_docstring(node, clean=True) or ""
    if isinstance(node, _Function):
        kind = "function"
        code = _code_without_docstring(node, lines) if docstring else ""
    yield SourceItem(name, kind, module, docstring.strip(), code)
    if not isinstance(node, _Function):
        for inner in _definitions(node.body):
            yield from _documented(inner, f"{name}.{inner.name}", module, lines)


def _definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | _Function]:
    """Classes and functions of a body, those under `if`, `try`, `with` and loops included."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | _Function):
            yield statement
            continue
        for block in ("body", "handlers", "orelse", "finalbody", "cases"):
            for part in getattr(statement, block, []):
                nested = part.body if isinstance(part, ast.ExceptHandler | ast.match_case) else [part]
                yield from _definitions(nested)


def _distinct_names(items: list[SourceItem]) -> list[SourceItem]:
    seen: Counter[str] = Counter()
    distinct = []
    for item in items:
        seen[item.qualified_name] += 1
        count = seen[item.qualified_name]
        name = item.qualified_name + (f"#{count}" if count > 1 else "")
        distinct.append(replace(item, qualified_name=name))
    return distinct


def _code_without_docstring(node: _Function, lines: list[str]) -> str:
    """The function's own lines, comments and layout kept, without its docstring; "" if nothing is left."""
    if len(node.body) < 2:
        return ""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last, doc = node.end_lineno or node.lineno, node.body[0]
    doc_end, end_column = doc.end_lineno or doc.lineno, doc.end_col_offset or 0
    # ast's columns count UTF-8 bytes.
    before = lines[doc.lineno - 1].encode()[: doc.col_offset].decode()
    after = lines[doc_end - 1].encode()[end_column:].decode().lstrip()
    if after.startswith("\\"):  # a docstring and its statement joined by a backslash: not worth supporting
        return ""
    if after.startswith(";"):
        kept = [(doc.lineno, before + after[1:].lstrip())]
    else:  # a comment may follow the docstring, or nothing
        kept = [(doc.lineno, before.rstrip())] if before.strip() else []
    head = [(number, lines[number - 1]) for number in range(first, doc.lineno)]
    tail = [(number, lines[number - 1]) for number in range(doc_end + 1, last + 1)]
    indent = re.match(r"[ \t\f]*", lines[first - 1])
    margin = indent.group() if indent else ""
    inside = _lines_inside_strings(node, lines[first - 1 : last], first)
    code = [text if number in inside else text.removeprefix(margin) for number, text in head + kept + tail]
    return "\n".join(code).strip("\n")


def _lines_inside_strings(node: _Function, lines: list[str], first: int) -> set[int]:
    """The numbers of lines that begin inside a string: dedenting one of them would change the string.

    `lines` are the function's own, `first` is the number of the first.
    """
    strings = (inner for inner in ast.walk(node) if isinstance(inner, ast.Constant | ast.JoinedStr))
    if all(inner.end_lineno == inner.lineno for inner in strings if inner is not _docstring_of(node)):
        return set()  # the usual case, without the cost of tokens
    inside: set[int] = set()
    try:
        for token in tokenize.generate_tokens(iter(line + "\n" for line in lines).__next__):
            if tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE", "TSTRING_MIDDLE"):
                inside.update(range(token.start[0] + first, token.end[0] + first))
    except tokenize.TokenError as error:
        raise SyntaxError(f"function at line {first}: {error}") from error
    return inside


def _docstring_of(node: _Function) -> ast.expr:
    statement = node.body[0]
    assert isinstance(statement, ast.Expr), node.name
    return statement.value


def module_name(path: str, root: str) -> str:
    """The dotted module name of a file below `root`: root/a/b.py is "a.b", root/a/__init__.py is "a".

    root/__init__.py is named after the root's folder. Paths and URIs; raises ValueError for a file elsewhere.
    """
    base = root.rstrip("/") + "/"
    if not path.startswith(base):
        raise ValueError(f"{path} is not below {root}")
    parts = posixpath.splitext(path[len(base) :])[0].strip("/").split("/")
    if parts[-1] == "__init__":
        parts = parts[:-1] or [posixpath.basename(root.rstrip("/"))]
    return ".".join(parts)


def split_of(module: str, dev_share: float, heldout_share: float, seed: int) -> Split:
    """The split of a whole module or other document, by a hash of its name: the same on every machine and every run.

    Shares are of modules or documents, in [0, 1]; raises UserError where they are not or exceed 1 together.
    """
    if min(dev_share, heldout_share) < 0 or dev_share + heldout_share > 1:
        raise UserError(
            f"dev share {dev_share} and held-out share {heldout_share} must be at least 0 and together at most 1."
        )
    digest = blake2b(f"{seed}:{module}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64  # uniform in [0, 1)
    if place < heldout_share:
        return "heldout"
    return "dev" if place < heldout_share + dev_share else "train"


def docstring_pair(item: SourceItem, min_query_words: int = 3, min_code_lines: int = 2) -> tuple[str, str] | None:
    """(query, document) of a function: the docstring's first paragraph and the code, or None.

    None for what is no function, dunder methods, tests (`test_*`), a paragraph of fewer than
    `min_query_words` words of prose, code of fewer than `min_code_lines` lines (blank and comment lines
    not counted), and bodies that only pass or raise NotImplementedError.
    """
    name = item.qualified_name.rpartition(".")[2].partition("#")[0]
    special = name.startswith("test_") or (name.startswith("__") and name.endswith("__"))
    if item.kind != "function" or special or not item.code:
        return None
    lines = [line for line in item.code.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    query = first_paragraph(item.docstring)
    if len(lines) < min_code_lines or natural_language_words(query) < min_query_words:
        return None
    return None if _does_nothing(item.code) else (query, item.code)


def _does_nothing(code: str) -> bool:
    """Whether a function's body only passes, names constants or raises NotImplementedError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function = ast.parse(code).body[0]
    assert isinstance(function, _Function), code
    return all(_is_empty_statement(statement) for statement in function.body)


def _is_empty_statement(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.Raise) and statement.exc is not None:
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return isinstance(statement, ast.Pass)
