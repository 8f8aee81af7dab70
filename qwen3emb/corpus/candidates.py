"""One file into candidate rows: passages, docstring pairs, evaluation functions and rejects, with signatures.

What depends on other files is decided in `corpus.split`: duplicates, overlaps and caps.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, Literal

import pyarrow as pa
from tokenizers import Tokenizer

from qwen3emb.config.data import CorpusConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.location import redacted
from qwen3emb.core.rejects import Passage, Reject, escaped, text_problem
from qwen3emb.corpus.docstrings import first_paragraph, is_natural_language
from qwen3emb.corpus.python_source import SourceItem, Split, docstring_pair, extract_items, split_of
from qwen3emb.corpus.sources import CorpusFile
from qwen3emb.model.fetch import resolve_model
from qwen3emb.text.chunking import TokenOffsets, chunk_text
from qwen3emb.text.files import first_line, resolve
from qwen3emb.text.identity import content_hash
from qwen3emb.text.languages import check_language
from qwen3emb.text.near_duplicates import minhash
from qwen3emb.text.readers import read_file
from qwen3emb.text.templates import control_ids, without_control_tokens

__all__ = [
    "CANDIDATE",
    "KEYS",
    "PLACES",
    "Chunker",
    "chunker",
    "file_rows",
    "python_rows",
    "text_rows",
    "token_offsets",
]

Chunker = Callable[[str], list[str]]
"""A text into pieces of at most the corpus' token budget."""

Row = dict[str, Any]
Role = Literal["passage", "pair", "function", "shadow", "reject"]

PLACES = 64
"""Places of a signature."""
_SIGNATURE = pa.binary(PLACES * 8)
_NO_SIGNATURE = bytes(PLACES * 8)

CANDIDATE = pa.schema(
    [
        *((name, pa.string()) for name in ("role", "split", "id", "text_hash", "query_hash")),
        *(("text_signature", _SIGNATURE), ("query_signature", _SIGNATURE)),
        *((name, pa.string()) for name in ("text", "title", "query", "language", "source", "reason")),
        ("row", pa.int64()),
    ]
)
"""The rows that one file yields. Roles: `passage` is a text to search in, for training unless its document is
of the dev or held-out split; `pair` is for training; `function` is a function of a dev or held-out module, with the
code as text and a query where its docstring gives one, else ""; `shadow` is a docstring of such a module, which has
only its hashes and signatures (`text_*` of all of it, `query_*` of its first paragraph); `reject` has a reason."""

KEYS = ["role", "split", "id", "text_hash", "query_hash", "text_signature", "query_signature", "reason"]
"""The columns that `split.decide` needs: none of the texts."""

_FILE_IS_DOCUMENT = ("markdown", "text")  # the others have a document in each row

_LONGEST_CODE = 20_000  # characters; beyond are generated tables and vendored blobs
_NOT_PYTHON = (
    SyntaxError,
    ValueError,
    RecursionError,
    MemoryError,
)  # raised for text that is not Python


def file_rows(file: CorpusFile, cfg: CorpusConfig, seed: int, chunk: Chunker) -> Iterator[Row]:
    """The candidate rows of one file, in its order, as dicts of `CANDIDATE`.

    Raises:
        UserError: the file cannot be read, lacks a column, or its source has an unknown language.
    """
    source = cfg.sources[file.source]
    if source.kind == "python":
        return python_rows(_read_bytes(file.path), file, cfg, seed, chunk)
    items = read_file(
        file.path,
        source.kind,
        text_field=source.text_field,
        title_field=source.title_field,
        id_field=source.id_field,
        language=source.language,
        language_field=source.language_field,
        id_prefix=file.prefix,
    )
    whole = file.prefix if source.kind in _FILE_IS_DOCUMENT else None
    return text_rows(items, chunk, lambda name: split_of(whole or name, cfg.dev_share, cfg.heldout_share, seed))


def text_rows(items: Iterable[Passage | Reject], chunk: Chunker, split: Callable[[str], Split]) -> Iterator[Row]:
    """A reader's passages and rejects as candidate rows: one per chunk, "<id>/1", "<id>/2" where a text has several.

    Args:
        items: of the reader.
        chunk: cuts a text.
        split: id of an item -> split of all its chunks.
    """
    for item in items:
        if isinstance(item, Reject):
            yield _row("reject", item.id, item.source, text=item.payload, reason=item.reason, row=item.row)
            continue
        passage = partial(
            _row,
            "passage",
            source=item.source,
            split=split(item.id),
            title=item.title,
            language=item.language,
        )
        chunks = _chunks(item.id, item.text, item.source, chunk)
        yield from (passage(c[0], text=c[1]) if isinstance(c, tuple) else c for c in chunks)


def python_rows(raw: bytes, file: CorpusFile, cfg: CorpusConfig, seed: int, chunk: Chunker) -> Iterator[Row]:
    """The candidate rows of one Python file; a file that is not Python is one reject.

    A docstring is a passage candidate with `cfg.min_words` words of natural language; chunks of a long one
    with fewer are left out. A function is a pair candidate where `docstring_pair` finds one in it.
    """
    try:
        items = extract_items(_decoded(raw), file.module)
    except UnicodeDecodeError as error:
        yield _rejected(file.prefix, file.path, f"invalid_utf8: byte {error.start}", raw)
        return
    except _NOT_PYTHON as error:
        reason = f"invalid_python: {first_line(error)}"
        yield _rejected(file.prefix, file.path, reason, raw, getattr(error, "lineno", None) or -1)
        return
    split = split_of(file.module, cfg.dev_share, cfg.heldout_share, seed)
    language = check_language(cfg.sources[file.source].language)
    for item in items:
        name = file.prefix + item.qualified_name.removeprefix(file.module)
        problem = text_problem(item.docstring) or text_problem(item.code)
        if problem:
            yield _rejected(name, file.path, problem, item.docstring + "\n" + item.code)
        elif split == "train":
            yield from _training_rows(item, name, language, file.path, cfg.min_words, chunk)
        else:
            yield from _evaluation_rows(item, name, language, file.path, split)


def _training_rows(
    item: SourceItem, name: str, language: str, source: str, min_words: int, chunk: Chunker
) -> Iterator[Row]:
    if is_natural_language(item.docstring, min_words):
        passage = partial(_row, "passage", source=source, title=name, language=language)
        for c in _chunks(name, item.docstring, source, chunk):
            if not isinstance(c, tuple):
                yield c
            elif c[1] == item.docstring or is_natural_language(c[1], min_words):
                yield passage(c[0], text=c[1])
    try:
        pair = docstring_pair(item)
    except _NOT_PYTHON as error:
        yield _rejected(name, source, f"invalid_python: {first_line(error)}", item.code)
        return
    if pair is None:
        return
    query, code = pair
    if len(code) > _LONGEST_CODE:
        yield _rejected(f"docstrings:{name}", source, f"code_too_long: {len(code)} characters", code)
        return
    yield _row("pair", f"docstrings:{name}", source, text=code, title=name, query=query, language=language)


def _evaluation_rows(item: SourceItem, name: str, language: str, source: str, split: str) -> Iterator[Row]:
    shadow = _row("shadow", name, source, split, text=item.docstring, query=first_paragraph(item.docstring))
    yield shadow | {"text": "", "query": ""}
    if item.kind != "function" or not item.code:
        return
    try:
        pair = docstring_pair(item)
    except _NOT_PYTHON as error:
        yield _rejected(name, source, f"invalid_python: {first_line(error)}", item.code)
        return
    query = pair[0] if pair else ""
    yield _row("function", name, source, split, text=item.code, query=query, language=language)


def _read_bytes(path: str) -> bytes:
    system, place = resolve(path)
    try:
        with system.open_input_stream(place) as stream:
            return bytes(stream.read())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); check that it exists and may be read."
        ) from error


def _decoded(raw: bytes) -> str:
    """Python source as text, by its byte order mark or coding line, else UTF-8."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    except SyntaxError:
        raw.decode("utf-8")  # says where, when that is what is wrong
        raise
    return raw.decode(encoding)


def _chunks(name: str, text: str, source: str, chunk: Chunker) -> Iterator[tuple[str, str] | Row]:
    """(id, text) of each chunk, or the reject of a text that has none."""
    try:
        chunks = chunk(text)
    except UserError as error:
        yield _rejected(name, source, f"cannot_chunk: {error}", text)
        return
    for number, part in enumerate(chunks, start=1):
        yield (name if len(chunks) == 1 else f"{name}/{number}"), part


def _rejected(name: str, source: str, reason: str, payload: bytes | str, row: int = -1) -> Row:
    return _row("reject", name, source, text=escaped(payload), reason=escaped(reason), row=row)


def _row(
    role: Role,
    name: str,
    source: str,
    split: str = "train",
    *,
    text: str,
    title: str = "",
    query: str = "",
    language: str = "",
    reason: str = "",
    row: int = -1,
) -> Row:
    """A dict of `CANDIDATE`, with hashes and signatures: of the text except for rejects, of the query if any."""
    signed = role != "reject"
    return {
        "role": role,
        "split": split,
        "id": name,
        "text_hash": content_hash(text) if signed else "",
        "query_hash": content_hash(query) if query else "",
        "text_signature": minhash(text, PLACES).tobytes() if signed else _NO_SIGNATURE,
        "query_signature": minhash(query, PLACES).tobytes() if query else _NO_SIGNATURE,
        "text": text,
        "title": title,
        "query": query,
        "language": language,
        "source": redacted(source),
        "reason": reason,
        "row": row,
    }


def chunker(model: str, max_tokens: int, overlap_tokens: int) -> Chunker:
    """`chunk_text` with the tokenizer of a model, which is loaded at once.

    Args:
        model: directory, name or hub id, as `resolve_model` takes it.
        max_tokens: longest chunk.
        overlap_tokens: tokens that neighbouring chunks share.

    Raises:
        UserError: there is no such model, or it cannot tell where tokens begin and end.
    """
    offsets = token_offsets(model)
    return lambda text: chunk_text(text, offsets, max_tokens, overlap_tokens)


@lru_cache(maxsize=1)
def token_offsets(model: str) -> TokenOffsets:
    """The tokenizer of a model as `chunk_text` takes it, control tokens read as text; loaded once per process.

    Raises:
        UserError: there is no such model, or it cannot tell where tokens begin and end.
    """
    file = resolve_model(model) / "tokenizer.json"
    backend = Tokenizer.from_file(str(file)) if file.is_file() else _converted(model)
    backend.no_truncation()
    backend.no_padding()

    control = control_ids(backend)
    plain = lru_cache(maxsize=1)(lambda: without_control_tokens(backend))

    def offsets(text: str) -> list[tuple[int, int]]:
        encoding = backend.encode(text, add_special_tokens=False)
        if not control.isdisjoint(encoding.ids):
            encoding = plain().encode(text, add_special_tokens=False)
        spans: list[tuple[int, int]] = encoding.offsets
        return spans

    return offsets


def _converted(model: str) -> Tokenizer:
    """The tokenizer of a directory in an older form; this imports torch, which costs each process seconds."""
    from qwen3emb.model.loading import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(model))
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer of {model}: it cannot tell where tokens end; name a model with tokenizer.json")
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend
