"""Fingerprints of the files of a corpus source or labelled dataset."""

from __future__ import annotations

import posixpath
import re
import sysconfig

from qwen3emb.core.location import is_uri, redacted
from qwen3emb.core.storage import Storage, external_fingerprint, files_fingerprint, input_uri
from qwen3emb.text.files import list_files, resolve

__all__ = ["source_fingerprint"]

_INSTALLED = {"stdlib": "stdlib", "site-packages": "purelib"}  # word of the config -> name in sysconfig


def source_fingerprint(place: str, kind: str = "") -> str:
    """The fingerprint of the files that a source names.

    Args:
        place: file, folder, glob, URI, or a word for installed packages, of which names and sizes count.
        kind: of the files in a folder (`text.files.SUFFIXES`); "" takes all.

    Returns:
        16 hexadecimal digits; `place` itself where its files cannot be listed without a network (`hf://`).

    Raises:
        UserError: there are no such files.
    """
    if place.startswith("hf://"):
        return str(redacted(place))
    if place in _INSTALLED:
        return external_fingerprint(sysconfig.get_paths()[_INSTALLED[place]], ".py", contents=False)
    uri = input_uri(place)
    if not kind and not _has_wildcard(uri):
        return external_fingerprint(uri)
    paths = list_files(uri, kind or "text")
    if paths == [uri]:
        return external_fingerprint(uri)
    return _of_files(paths)


def _has_wildcard(place: str) -> bool:
    """Whether `place` is a pattern; a `?` in a URI begins its options, and a file may have such a name."""
    if is_uri(place):
        return re.search(r"[*\[]", place.partition("?")[0]) is not None
    return re.search(r"[*?\[]", place) is not None and not Storage(place).exists()


def _of_files(uris: list[str]) -> str:
    """The fingerprint of several files, with their names relative to their common folder."""
    inside = [resolve(uri)[1] for uri in uris]
    common = posixpath.commonpath([posixpath.dirname(path) for path in inside])
    system, _ = resolve(uris[0])
    return files_fingerprint(system, common, system.get_file_info(inside))
