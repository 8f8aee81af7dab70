"""The persona library, and the personas that may write for a passage (paper section 3)."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qwen3emb.core.errors import UserError
from qwen3emb.core.rejects import Reject, escaped, text_problem
from qwen3emb.core.storage import Storage
from qwen3emb.encoding.nearest import top_k

__all__ = ["index_name", "nearest_personas", "parse_personas", "persona_vectors", "read_personas"]

_FIELD = "persona"


def read_personas(uri: str) -> tuple[list[str], list[Reject]]:
    """The personas of a JSONL or Parquet file (a local path or a URI) in the file's order, and its bad rows.

    Persona Hub's files are of this kind: one field `persona`, others ignored; JSONL may be compressed (.gz, .zst).

    Raises:
        UserError: the file cannot be read, or has no usable persona.
    """
    folder, name = Storage.of_file(uri)
    try:
        content = _content(folder, name)
    except FileNotFoundError as error:
        raise UserError(f"synthesize.personas {uri}: no such file") from error
    except OSError as error:
        raise UserError(f"synthesize.personas {uri}: cannot be read: {error}") from error
    personas, rejects = parse_personas(content, str(folder / name))
    if not personas:
        first = f" (row {rejects[0].row}: {rejects[0].reason})" if rejects else ""
        raise UserError(
            f"synthesize.personas {uri}: no row has a persona{first}; "
            f'write one object per line, e.g. {{"persona": "a ferry captain in Norway"}}'
        )
    return personas, rejects


def _content(folder: Storage, name: str) -> bytes:
    """The file as JSONL; of a Parquet file the column of personas.

    Raises:
        OSError: it cannot be read, or is no Parquet file with that column.
    """
    if not name.endswith(".parquet"):
        return folder.read_bytes(name)
    try:
        rows = pq.read_table(folder.path(name), filesystem=folder.filesystem, columns=[_FIELD]).to_pylist()
    except pa.ArrowInvalid as error:
        raise OSError(str(error)) from error
    return "\n".join(json.dumps(row) for row in rows).encode()


def parse_personas(content: bytes, source: str) -> tuple[list[str], list[Reject]]:
    """The distinct personas in JSONL `content`, in order of first appearance, and its bad rows.

    Further fields (Persona Hub has some) are ignored, empty lines too. Reject codes: invalid_utf8,
    invalid_json, missing_persona (no such field, or not a text), empty_persona, duplicate_persona, and those
    of `rejects.text_problem`.
    """
    personas: dict[str, None] = {}
    rejects = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        text, problem = _persona(line)
        if not problem and text in personas:
            problem = "duplicate_persona: the same text stands above"
        if problem:
            rejects.append(Reject(f"{source}:{number}", "synthesize", problem, source, number, escaped(line)))
        else:
            personas[text] = None
    return list(personas), rejects


def _persona(line: bytes) -> tuple[str, str | None]:
    """The persona of one row, or why it has none."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return "", f"invalid_utf8: byte {error.start} of the row"
    except (ValueError, RecursionError) as error:
        return "", f"invalid_json: {error}"
    text = row.get(_FIELD) if isinstance(row, dict) else None
    if not isinstance(text, str):
        return "", f"missing_persona: no text field {_FIELD!r}"
    text = " ".join(text.split())
    return text, text_problem(text) if text else "empty_persona: nothing but white space"


def nearest_personas(passages: NDArray[np.float32], personas: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The personas of each passage: indices of the `count` personas with the highest cosine, best first.

    Equal cosines are ordered by index. Where there are fewer personas than `count`, a passage has all of them.

    Args:
        passages: (N, dim), personas: (P, dim); rows need not be normalised, a zero row has cosine 0 to all.
        count: personas of a passage.

    Returns:
        (N, min(count, P)) indices into `personas`.
    """
    rows, _ = top_k(_normalised(passages), _normalised(personas), min(count, len(personas)))
    return rows


def index_name(personas: Sequence[str], model: str) -> str:
    """Name of the file that holds the vectors of these personas by this model."""
    digest = hashlib.sha256(json.dumps([model, *personas]).encode())
    return f"persona_index/{digest.hexdigest()[:16]}.npy"


def persona_vectors(folder: Storage, name: str, encode: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """The vectors in `folder`/`name`; encoded and written where they are not there, for every later reader and run."""
    if not folder.exists(name):
        buffer = io.BytesIO()
        np.save(buffer, encode())
        folder.write_bytes(name, buffer.getvalue())
    vectors: NDArray[np.float32] = np.load(io.BytesIO(folder.read_bytes(name)))
    return vectors


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalised: NDArray[np.float32] = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
    return normalised
