"""Paths and URIs of files and folders: checking and joining them, and hiding their secrets in messages.

`s3://bucket/run?region=eu-central-1` has a path and options. Names are joined to the path, the options stay, and
neither options with a secret nor a password are shown or recorded.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from qwen3emb.core.errors import UserError

__all__ = [
    "checked_name",
    "checked_place",
    "encoded",
    "is_uri",
    "joined",
    "parent_and_name",
    "redacted",
    "with_secrets_of",
]

_SECRET = re.compile(
    r"([?&][^=&]*(?:key|secret|token|pass|pwd|auth|credential|signature|\bsig)[^=&]*=)[^&\s]+", re.IGNORECASE
)
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")
# A password may hold `/`, `@` or a blank that should have been percent-encoded, so this takes all up to the last `@`,
# but nothing of a second URI. In `http://host:8000/` the number is a port, and `host` no user with a password.
_RAW_PASSWORD = re.compile(
    r"(?<=://)(?!(?<=http://)[^/:]*:\d+/)(?!(?<=https://)[^/:]*:\d+/)[^/:@?\s'\"]*:(?:(?!\w+://)[^?'\"\n])*(?=@)"
)
_HALF = re.compile(r"(?:s3|gs|gcs|file|hdfs|viewfs|abfss?|az|adl|hf|https?):(?!//)", re.IGNORECASE)
_HIDDEN = "***"
_LEGAL = "/:@%+~!$&'()*,;=[]"  # besides letters, digits and -._ ; a percent sign is the user's own encoding


def is_uri(place: str) -> bool:
    """Whether `place` has a scheme, as `s3://bucket/run` does; else it is a path of this machine."""
    return "://" in place


def checked_place(place: str) -> str:
    """`place` as it is, after a check of its form.

    Raises:
        UserError: a URI without its two slashes, which would be taken for a local folder, or a `file://` URI with a
            `?`, behind which parsers drop everything.
    """
    if _HALF.match(place):
        scheme, _, rest = place.partition(":")
        shown = redacted(f"{scheme}://{rest.lstrip('/')}")
        raise UserError(
            f"{scheme}: must be followed by two slashes ({shown}); a local folder of that name is ./{scheme}:"
        )
    if "?" in place and place.lower().startswith("file://"):
        raise UserError(
            f"{redacted(place)}: a '?' in a file:// URI must be written %3F (for a pattern give the bare path)"
        )
    return place


def encoded(uri: str) -> str:
    """A URI as pyarrow parses it: blanks and letters beyond ASCII percent-encoded, no slash at the end of the path.

    Raises:
        UserError: it has a `#`, behind which parsers drop everything, so that several places would be one.
    """
    if "#" in uri:
        raise UserError(f"{redacted(uri)}: a '#' in a URI must be written %23")
    scheme, _, rest = uri.partition("://")
    path, mark, options = rest.partition("?")
    return f"{scheme}://{quote(path.rstrip('/') or '/', safe=_LEGAL)}{mark}{options}"


def checked_name(name: str) -> str:
    """A name below a folder, without slashes at its ends.

    Raises:
        UserError: it leads out of the folder.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"{name!r} is no name below a folder: it leads out of it")
    return name.strip("/")


def joined(place: str, name: str) -> str:
    """`name` below the folder `place`, a path or a URI whose options are kept.

    Raises:
        UserError: the name leads out of the folder.
    """
    below = checked_name(name)
    if not below:
        return place
    if not is_uri(place):
        return posixpath.join(place, below)
    path, mark, options = place.partition("?")
    return f"{path.rstrip('/')}/{quote(below, safe='/')}{mark}{options}"


def parent_and_name(place: str) -> tuple[str, str]:
    """The folder of a file, a path or a URI with its options, and the file's name as it is on storage."""
    path, mark, options = place.partition("?") if is_uri(place) else (place, "", "")
    folder, _, name = path.rpartition("/")
    if not is_uri(place):
        return folder or "/", name
    return f"{folder}{mark}{options}", unquote(name)


def redacted(content: Any) -> Any:
    """A text without the passwords and secret options of the URIs in it; lists and dictionaries entry by entry."""
    if isinstance(content, str):
        return (
            _SECRET.sub(rf"\1{_HIDDEN}", _PASSWORD.sub(_HIDDEN, _RAW_PASSWORD.sub(_HIDDEN, content)))
            if is_uri(content)
            else content
        )
    if isinstance(content, dict):
        return {redacted(key): redacted(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [redacted(value) for value in content]
    return content


def with_secrets_of(known: str, place: str) -> str:
    """`place`, a redacted URI with the credentials and options of `known`, a URI of the same bucket.

    Raises:
        UserError: `known` is of another bucket, whose credentials do not open `place`.
    """
    if _HIDDEN not in place:
        return place
    ours, theirs = urlsplit(known), urlsplit(place)
    if (ours.scheme, ours.hostname) != (theirs.scheme, theirs.hostname):
        raise UserError(f"{place}: its credentials are not recorded; give them by the environment instead of the URI")
    return ours._replace(path=theirs.path).geturl()
