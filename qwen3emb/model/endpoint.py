"""Embedding models behind an OpenAI-compatible server, whose limits on requests and texts are not known beforehand.

A server may refuse (400, 413, 422) one text or the whole request. A refused request is halved. A text that is refused
alone is sent once more with `truncate` (known to our servers and to TEI). Where the server does not know that, the
longest accepted beginning of the text is searched for, in steps that are the same for all texts, so that the place of
the cut depends on the text alone. Earlier searches only decide where a search begins, so a limit costs a few requests.
"""

from __future__ import annotations

import bisect
import urllib.parse
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.model.endpoint_requests import FURTHER_TRIES, json_object, open_client, post, unit_vectors
from qwen3emb.text.templates import query_prompt

__all__ = ["PLACEHOLDER", "EndpointEncoder", "notes_lines"]

PLACEHOLDER = "."
"""Sent in place of an empty text: servers refuse those, and many refuse white space too."""

_REFUSED = (400, 413, 422)
_CHARACTERS = 4  # of a token, as a first guess
_LADDER = sorted({round(2 ** (step / 8)) for step in range(8 * 26)})  # lengths that a text may be cut to, 9 % apart
_SHORT = 16  # characters: below any server's limit, so that a refusal is for the content


class _Refusal(Exception):
    """The server refuses these texts; `args` are its status and its message."""


class EndpointEncoder:
    """An OpenAI-compatible `/v1/embeddings`; the key, where one is needed, is the variable OPENAI_API_KEY.

    Queries carry the instruction in the text, as Qwen3 Embedding's do. The server decides where texts are cut.
    """

    def __init__(self, address: str) -> None:
        """Embed one text, to check the server and to learn the length of its vectors.

        Args:
            address: `http://HOST:PORT/v1?model=NAME`; without a model name the server's default.

        Raises:
            UserError: the answer is not that of such a server, or the server refuses the request.
            StageFailure: the server does not answer.
        """
        parts = urllib.parse.urlsplit(address)
        self._model = urllib.parse.parse_qs(parts.query).get("model", [""])[0]
        self._url = urllib.parse.urlunsplit(
            (parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/embeddings", "", "")
        )
        self._client = open_client(self._url)
        weakref.finalize(self, self._client.close)
        self._most: int | None = None  # texts in a request, at most; None: no limit is known
        self._truncates: bool | None = None  # whether the server knows `truncate`; None: not tried yet
        self._lists = False  # whether it then lists the cut texts, so that all requests may ask for it
        self._whole = 0  # characters of the longest text that was accepted uncut
        self._fits = 0  # characters of the longest accepted beginning of a text: where the next search starts
        self._refused = 0  # number of texts that were refused alone
        self._empty = self._cut = 0
        try:
            self._dimensions = int(self._ask(["a text"]).shape[1])
        except _Refusal as error:
            raise UserError(f"{self._url} refuses the request ({error.args[0]}): {error.args[1]}") from error

    @property
    def dimensions(self) -> int:
        """Length of the model's vectors."""
        return self._dimensions

    @property
    def notes(self) -> dict[str, int]:
        """Counts: `empty` texts replaced, texts `cut`, and the `most` texts in a request (0 = no limit known)."""
        return {"empty": self._empty, "cut": self._cut, "most": self._most or 0}

    def encode(self, texts: Sequence[str], *, max_tokens: int, instruction: str | None = None) -> np.ndarray:
        """Embed texts; the server cuts them, and `max_tokens` is used only where it refuses a text.

        Returns:
            (len(texts), dimensions) normalised float32.

        Raises:
            UserError: the server refuses the request, or a text at any length.
            StageFailure: the server does not answer, six times.
        """
        before = query_prompt(instruction) if instruction else ""
        out = np.empty((len(texts), self._dimensions), dtype=np.float32)
        inputs = [text if before or text.strip() else PLACEHOLDER for text in texts]
        self._empty += sum(not (before or text.strip()) for text in texts)
        # After a cut, texts longer than all accepted ones are sent alone, so that no other text shares their refusal.
        alone = self._cut > 0 and not self._lists
        longer = {row for row, text in enumerate(inputs) if alone and len(text) > self._whole}
        rest = [row for row in range(len(inputs)) if row not in longer]
        if rest:
            out[rest] = self._together(before, [inputs[row] for row in rest], max_tokens)
        for row in sorted(longer):
            if self._truncates:
                out[row] = self._together(before, [inputs[row]], max_tokens)[0]
            else:
                out[row] = self._shortened(before, inputs[row], max_tokens, None)[0]
        return out

    def _together(self, before: str, texts: list[str], max_tokens: int) -> np.ndarray:
        """Vectors of texts, in one request where the server accepts it, else in several."""
        size = self._most or len(texts)
        if len(texts) > size:
            parts = [texts[start : start + size] for start in range(0, len(texts), size)]
            return np.concatenate([self._together(before, part, max_tokens) for part in parts])
        try:
            vectors = self._ask([before + text for text in texts])
        except _Refusal as error:
            if len(texts) == 1:
                return self._alone(before, texts[0], max_tokens, error)
            half, refused = (len(texts) + 1) // 2, self._refused
            parts = [texts[:half], texts[half:]]
            vectors = np.concatenate([self._together(before, part, max_tokens) for part in parts])
            if refused == self._refused and half < (self._most or len(texts)):
                self._most = half if self._too_many(before, texts) else self._most
            return vectors
        self._whole = max(self._whole, *map(len, texts))
        return vectors

    def _too_many(self, before: str, texts: list[str]) -> bool:
        """Whether texts that are accepted in smaller requests are refused together once more."""
        try:
            self._ask([before + text for text in texts])
        except _Refusal:
            return True
        return False

    def _alone(self, before: str, text: str, max_tokens: int, error: _Refusal) -> np.ndarray:
        """The vector of a text that was refused, cut where it is refused again.

        Raises:
            UserError: the text is refused at any length.
        """
        if not self._cut or len(text) <= self._whole:
            try:
                return self._ask([before + text])  # the refusal may have passed
            except _Refusal:
                pass
        self._refused += 1
        if len(text) <= _SHORT:
            raise self._unwanted(text, error, "and not for its length")
        counted = self._cut
        if self._truncates is not False:
            try:
                vector = self._ask([before + text], truncate=True)
                self._truncates, self._cut = True, max(self._cut, counted + 1)
                return vector
            except _Refusal:
                self._truncates = self._truncates or False
        return self._shortened(before, text, max_tokens, error)

    def _shortened(self, before: str, text: str, max_tokens: int, error: _Refusal | None) -> np.ndarray:
        """The vector of the longest accepted beginning of a text.

        Args:
            before: the prompt in front of the text.
            text: the text.
            max_tokens: for the first guess of an accepted length.
            error: the refusal of the whole text; None where the whole text was not tried.

        Raises:
            UserError: the text is refused at any length, or for its content.
        """
        steps = [*_LADDER[: bisect.bisect_left(_LADDER, len(text))], len(text)]
        accepted, refused, vector = -1, len(steps) - (error is not None), None
        top, stride = refused, 1
        at = min(top, bisect.bisect_right(steps, self._fits or min(len(text) // 2, _CHARACTERS * max_tokens))) - 1
        while refused - accepted > 1:
            try:
                vector, accepted = self._ask([before + text[: steps[at]]]), at
            except _Refusal as again:
                refused, error = at, again
            down, up = max(0, refused - stride), min(top - 1, accepted + stride)
            between = up if refused == top else (accepted + refused) // 2
            at, stride = down if accepted < 0 else between, 2 * stride
        if vector is None or error is None:
            if vector is None:
                raise self._unwanted(text, error or _Refusal(0, ""), "even cut to nothing")
            self._whole = max(self._whole, len(text))
            return vector
        if len(text) <= self._whole:
            self._check_content(before, text, steps[accepted], steps[refused])
        self._fits, self._cut = max(self._fits, steps[accepted]), self._cut + 1
        return vector

    def _check_content(self, before: str, text: str, low: int, high: int) -> None:
        """Check that a text was refused for its length, although longer texts were accepted.

        The characters around `low` (accepted) and `high` (refused) are sent alone.

        Raises:
            UserError: they are refused too, so the refusal is for the content.
        """
        try:
            self._ask([before + text[max(0, low - 4 * _SHORT) : high]])
        except _Refusal as error:
            raise self._unwanted(text, error, "and not for its length") from error

    def _unwanted(self, text: str, error: _Refusal, how: str) -> UserError:
        status, message = error.args
        return UserError(f"{self._url} refuses a text, {how} ({status}): {message}; it is {text[:60]!r}")

    def _ask(self, texts: list[str], truncate: bool = False) -> np.ndarray:
        """Unit vectors of texts in one request; `truncate` asks the server to cut.

        Raises:
            _Refusal: the server refuses these texts.
            UserError: it refuses the request for another reason, or its answer cannot be used.
            StageFailure: it does not answer.
        """
        body: dict[str, Any] = {
            "input": [text.encode("utf-8", "replace").decode() for text in texts],
            "encoding_format": "float",
        }
        body |= {"model": self._model} if self._model else {}
        body |= {"truncate": True} if truncate or self._lists else {}
        answer = post(self._client, self._url, body)
        if answer.status_code in _REFUSED:
            raise _Refusal(answer.status_code, " ".join(answer.text[:300].split()))
        if answer.status_code == 429 or answer.status_code >= 500:
            raise StageFailure(
                f"{self._url} did not answer {FURTHER_TRIES} times more; the last time: HTTP {answer.status_code}"
            )
        if answer.status_code != 200:
            message = " ".join(answer.text[:300].split())
            raise UserError(f"{self._url} refuses the request ({answer.status_code}): {message}")
        content = json_object(answer, self._url)
        vectors = unit_vectors(content, texts, self._url)
        if getattr(self, "_dimensions", vectors.shape[1]) != vectors.shape[1]:
            raise UserError(f"{self._url}: vectors of {vectors.shape[1]} numbers, of {self._dimensions} before")
        cut: Any = content.get("truncated")
        self._lists |= truncate and isinstance(cut, list) and len(cut) > 0
        self._cut += _count(cut, len(texts))
        return vectors


def _count(truncated: Any, texts: int) -> int:
    """The number of cut texts by an answer's field `truncated`: a list in our servers, in others a number or true."""
    if isinstance(truncated, list):
        return min(len(truncated), texts)
    return min(max(truncated, 0), texts) if isinstance(truncated, int) else 0


def notes_lines(notes: Sequence[Mapping[str, int]]) -> list[str]:
    """Lines for the user on the sums of `EndpointEncoder.notes`; none where all texts were sent unchanged at once."""
    empty, cut = (sum(note.get(name, 0) for note in notes) for name in ("empty", "cut"))
    most = [note["most"] for note in notes if note.get("most")]
    lines = [f"{empty} empty texts were sent to the server as {PLACEHOLDER!r}"] if empty else []
    lines += [f"{cut} texts were longer than the server takes and lost their end"] if cut else []
    return lines + ([f"at most {min(most)} texts were sent together"] if most else [])
