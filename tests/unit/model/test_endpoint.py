"""Embedding servers with limits of their own: every text gets its vector, in few requests, and what was cut is said."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tenacity import wait_none

from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.model import endpoint_requests
from qwen3emb.model.endpoint import PLACEHOLDER, EndpointEncoder, notes_lines
from qwen3emb.model.loading import load_tokenizer
from qwen3emb.text.templates import EmbeddingTemplate, TextLimits
from serve.inputs import EmbeddingInputs, Prepared
from serve.schema import ApiError, EmbeddingRequest, embedding_response, validation_error

Answer = tuple[int, dict[str, Any], dict[str, str]]


def vector(text: str) -> list[float]:
    """Decides by the text's beginning and length, so that a cut text has another vector."""
    return [1.0, float(len(text)), float(sum(map(ord, text[:50])) % 97)]


def good(body: dict[str, Any]) -> Answer:
    rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
    return 200, {"data": rows[::-1]}, {}


def refused(status: int, why: str) -> Answer:
    return status, {"error": {"message": why}}, {}


class Served:
    """A server whose answers a test decides; `requests` are the bodies that came."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = good
        self.requests: list[dict[str, Any]] = []
        self.broken = 0  # answers that end in the middle
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet for an answer, else each waits for an acknowledgement

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                status, content, headers = outer.answer(body)
                payload = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(payload))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload[: len(payload) // 2] if outer.broken else payload)
                if outer.broken:
                    outer.broken, self.close_connection = outer.broken - 1, True

            def log_message(self, *_: Any) -> None:
                """Nothing: the test's output is for failures."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1?model=m"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.server.shutdown()
    one.server.server_close()


def unit(texts: list[str]) -> np.ndarray:
    found = np.array([vector(text) for text in texts])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


TEXTS = [f"text number {i} " + "x" * (i % 7) for i in range(64)]


def test_texts_go_in_one_request_with_the_key_and_the_model(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    encoder = EndpointEncoder(served.address)
    np.testing.assert_allclose(encoder.encode(TEXTS, max_tokens=64), unit(TEXTS), atol=1e-6)
    asked = encoder.encode(["a"], max_tokens=64, instruction="Find it")
    np.testing.assert_allclose(asked, unit(["Instruct: Find it\nQuery:a"]), atol=1e-6)
    assert len(served.requests) == 3 and served.requests[1]["model"] == "m" and "truncate" not in served.requests[1]
    assert served.keys == ["Bearer secret"] * 3
    assert encoder.encode([], max_tokens=64).shape == (0, 3) and notes_lines([encoder.notes]) == []


def test_no_netrc_stands_in_for_the_key(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    encoder = EndpointEncoder(served.address)
    monkeypatch.delenv("OPENAI_API_KEY")
    encoder.encode(["a"], max_tokens=64)
    assert served.keys == ["Bearer secret", None]


@pytest.mark.parametrize(("ranges", "direct"), [("example.org, 127.0.0.0/8", True), ("10.0.0.0/8", False)])
def test_a_server_within_a_range_of_no_proxy_is_asked_directly(
    served: Served, monkeypatch: pytest.MonkeyPatch, ranges: str, direct: bool
) -> None:
    monkeypatch.setattr(endpoint_requests, "_BACK_OFF", wait_none())
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", ranges)
    with contextlib.nullcontext() if direct else pytest.raises(StageFailure, match="does not answer"):
        assert EndpointEncoder(served.address).dimensions == 3


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("all_proxy", raising=False)
    monkeypatch.setenv("ALL_PROXY", "ftp://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1/embeddings: the environment's proxy cannot be used"):
        EndpointEncoder("http://127.0.0.1:9/v1")


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("most", [8, 1, 20])
def test_a_server_that_takes_fewer_texts_is_asked_for_fewer(served: Served, status: int, most: int) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return good(body) if len(body["input"]) <= most else refused(status, f"at most {most} inputs")

    served.answer = answer
    encoder = EndpointEncoder(served.address)
    np.testing.assert_allclose(encoder.encode(TEXTS, max_tokens=64), unit(TEXTS), atol=1e-6)
    first = len(served.requests)
    np.testing.assert_allclose(encoder.encode(TEXTS, max_tokens=64), unit(TEXTS), atol=1e-6)
    fits = 2 ** int(np.log2(most))
    assert len(served.requests) - first == 64 // fits, "what fits is known"
    assert first <= 1 + 7 + 64 // fits
    assert notes_lines([encoder.notes]) == [f"at most {fits} texts were sent together"]


def limited(status: int, longest: int, cuts: bool = False, unknown: bool = False) -> Callable[[dict[str, Any]], Answer]:
    """A server that refuses empty and long texts; ours cuts where it is asked to, a strict one refuses the field."""

    def answer(body: dict[str, Any]) -> Answer:
        if unknown and "truncate" in body:
            return refused(status, "unknown field truncate")
        empty = [i for i, text in enumerate(body["input"]) if not text.strip()]
        if empty:
            return refused(status, f"input[{empty[0]}] is empty")
        long = [i for i, text in enumerate(body["input"]) if len(text) > longest]
        if long and not (cuts and body.get("truncate")):
            return refused(status, f"input[{long[0]}] is too long")
        code, content, headers = good(body | {"input": [text[:longest] for text in body["input"]]})
        return code, content | ({"truncated": long} if long else {}), headers

    return answer


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("server", ["ours", "strict", "careless"])
def test_empty_and_long_texts_cost_only_themselves(served: Served, status: int, server: str) -> None:
    served.answer = limited(status, 300, server == "ours", server == "strict")
    encoder = EndpointEncoder(served.address)
    texts = [*TEXTS[:30], "", " \n", "long " * 200, *TEXTS[30:61]]
    found = encoder.encode(texts, max_tokens=64)
    wanted = [text if text.strip() else PLACEHOLDER for text in texts]
    others = [i for i in range(64) if i != 32]
    np.testing.assert_allclose(found[others], unit([wanted[i] for i in others]), atol=1e-6)
    kept = next(n for n in range(300, 0, -1) if np.allclose(found[32], unit([texts[32][:n]])[0], atol=1e-6))
    assert kept == 300 if server == "ours" else kept > 250, "little more is lost than must be"
    assert len(served.requests) <= 28
    before = len(served.requests)
    np.testing.assert_allclose(encoder.encode(texts, max_tokens=64), found, atol=1e-6)
    assert len(served.requests) - before <= (1 if server == "ours" else 3)
    assert encoder.notes == {"empty": 4, "cut": 2, "most": 0}
    assert notes_lines([encoder.notes, {"empty": 1, "cut": 0, "most": 0}]) == [
        "5 empty texts were sent to the server as '.'",
        "2 texts were longer than the server takes and lost their end",
    ]


def test_a_server_of_ours_cuts_to_its_limit_and_says_so(served: Served, tiny_qwen3: Path) -> None:
    inputs = EmbeddingInputs(
        EmbeddingTemplate(load_tokenizer(tiny_qwen3), "<|endoftext|>"), "Find it", TextLimits(40, 40), 3
    )

    def numbers(prepared: Prepared) -> list[list[float]]:
        return [[1.0, float(len(leaf)), float(sum(leaf) % 97)] for leaf in prepared.leaves]

    def answer(body: dict[str, Any]) -> Answer:
        try:
            prepared = inputs.prepare(EmbeddingRequest.model_validate(body))
        except ValidationError as error:
            wrong = validation_error(error.errors())
            return wrong.status, {"error": str(wrong)}, {}
        except ApiError as wrong:
            return wrong.status, {"error": str(wrong)}, {}
        return 200, embedding_response("m", numbers(prepared), 1, prepared.truncated), {}

    served.answer = answer
    encoder = EndpointEncoder(served.address)
    texts = ["A kettle boils water.", "", "A lamp gives light. " * 40, "word " * 300, "last"]
    sent = EmbeddingRequest(input=[text or PLACEHOLDER for text in texts], truncate=True)
    wanted = np.array(numbers(inputs.prepare(sent)))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    for _ in range(2):
        np.testing.assert_allclose(encoder.encode(texts, max_tokens=512), wanted, atol=1e-6)
    assert encoder.notes == {"empty": 2, "cut": 4, "most": 0} and len(served.requests) <= 9


def test_only_the_text_behind_the_instruction_is_cut(served: Served) -> None:
    served.answer = limited(413, 100)
    found = EndpointEncoder(served.address).encode(["y" * 400, ""], max_tokens=8, instruction="Find it")
    before = "Instruct: Find it\nQuery:"
    np.testing.assert_allclose(found[1], unit([before])[0], atol=1e-6)
    assert any(np.allclose(found[0], unit([before + "y" * n])[0], atol=1e-6) for n in range(50, 77))


def test_a_text_that_is_refused_however_short_is_named(served: Served) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        wrong = any(text.startswith("forbidden") or (text and text in "forbidden") for text in body["input"])
        return refused(422, "content policy") if wrong else good(body)

    served.answer = answer
    encoder = EndpointEncoder(served.address)
    with pytest.raises(UserError, match=r"refuses a text, even cut to nothing \(422\).*content policy.*'forbidden"):
        encoder.encode(["fine", "forbidden words " * 9], max_tokens=64)


def test_other_refusals_are_the_users_and_a_busy_server_is_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_requests, "_BACK_OFF", wait_none())
    for status in (401, 403, 404):
        served.answer = lambda body, status=status: refused(status, "no such model")
        with pytest.raises(UserError, match=rf"refuses the request \({status}\).*no such model"):
            EndpointEncoder(served.address)
    busy = iter([(429, {}, {"Retry-After": "1"}), (503, {}, {}), (500, {}, {})])
    served.answer = lambda body: next(busy, None) or good(body)
    served.requests.clear()
    began = time.monotonic()
    assert EndpointEncoder(served.address).dimensions == 3 and len(served.requests) == 4
    assert time.monotonic() - began >= 1.0, "it says how long to wait"
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    busy = iter([(413, {}, {"Retry-After": past}), (429, {}, {"Retry-After": "soon"}), (502, {}, {"Retry-After": ""})])
    assert EndpointEncoder(served.address).notes["most"] == 0 and len(served.requests) == 8
    served.answer = lambda body: (429, {}, {"Retry-After": "0"})
    with pytest.raises(StageFailure, match="HTTP 429"):
        EndpointEncoder(served.address)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": [float("nan"), 1.0, 1.0]}, "hold NaN or only zeros, the first for 'b'"),
        ({"embedding": [0.0, 0.0, 0.0]}, "hold NaN or only zeros, the first for 'b'"),
        ({"embedding": [None, 1.0, 1.0]}, "hold NaN or only zeros|does not answer like"),
        ({"index": 0}, "does not answer like"),
        ({"embedding": "AAAA"}, "does not answer like"),
        ({"embedding": [1.0]}, "does not answer like"),
    ],
)
def test_an_answer_that_is_no_vector_for_each_text_is_refused(
    served: Served, change: dict[str, Any], message: str
) -> None:
    encoder = EndpointEncoder(served.address)

    def answer(body: dict[str, Any]) -> Answer:
        status, content, headers = good(body)
        next(row for row in content["data"] if row["index"] == 1).update(change)
        return status, content, headers

    served.answer = answer
    with pytest.raises(UserError, match=message):
        encoder.encode(["a", "b", "c"], max_tokens=64)
    served.answer = lambda body: (200, {"data": [{"index": 0, "embedding": [1.0, 0.0]}]}, {})
    with pytest.raises(UserError, match="vectors of 2 numbers, of 3 before"):
        encoder.encode(["a"], max_tokens=64)


def by_tokens(limit: int, truncate: str = "refused") -> Callable[[dict[str, Any]], Answer]:
    """A server with a limit in tokens: letters are a quarter of one, Chinese is one; what it makes of `truncate`."""

    def cost(text: str) -> float:
        return sum(1 if ord(letter) > 0x2E80 else 0.25 for letter in text)

    def answer(body: dict[str, Any]) -> Answer:
        if "truncate" in body and truncate == "refused":
            return refused(422, "unknown field")
        if not any(cost(text) > limit for text in body["input"]):
            return good(body)
        if not body.get("truncate"):
            return refused(400, "too many tokens")
        cut = [next(t[:n] for n in range(len(t), -1, -1) if cost(t[:n]) <= limit) for t in body["input"]]
        return good(body | {"input": cut})

    return answer


def kept(text: str, found: np.ndarray) -> int:
    return next(n for n in range(len(text), 0, -1) if np.allclose(found, unit([text[:n]])[0], atol=1e-6))


def test_the_cut_of_a_text_does_not_depend_on_the_texts_before_it(served: Served) -> None:
    served.answer = by_tokens(128)
    long, dense = "english words " * 200, "灯给光" * 100
    others: list[list[str]] = [
        [],
        [dense],
        [long[:700]],
        [" " * 400, dense],
        ["x" * 513],
        ["short"],
        TEXTS,
        [dense] * 4,
    ]
    cuts = set()
    for before in others:
        encoder = EndpointEncoder(served.address)
        for text in before:
            encoder.encode([text], max_tokens=128)
        found = encoder.encode([long, dense], max_tokens=128)
        cuts.add((kept(long, found[0]), kept(dense, found[1])))
        served.requests.clear()
        for _ in range(3):
            encoder.encode([long], max_tokens=128)
        assert len(served.requests) <= 12
    assert len(cuts) == 1, cuts
    [(of_long, of_dense)] = cuts
    assert 460 <= of_long <= 512 and 115 <= of_dense <= 128


def test_texts_that_a_server_cuts_without_saying_which_are_counted(served: Served) -> None:
    served.answer = by_tokens(128, "silent")
    encoder = EndpointEncoder(served.address)
    texts = [*TEXTS[:5], "english words " * 200, "灯给光" * 100, *TEXTS[5:9], "other words " * 99]
    for _ in range(2):
        found = encoder.encode(texts, max_tokens=128)
    assert encoder.notes["cut"] == 6
    assert [kept(texts[i], found[i]) for i in (5, 6, 11)] == [512, 128, 512]


@pytest.mark.parametrize(
    "short", ["BAD word", "a BAD word in the middle of some other words, all of them harmless " * 3]
)
@pytest.mark.parametrize("field", ["known", "unknown"])
def test_a_short_text_that_is_refused_for_its_content_is_not_cut(served: Served, short: str, field: str) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if "truncate" in body and field == "unknown":
            return refused(422, "unknown field")
        return refused(400, "bad words") if any("BAD" in text for text in body["input"]) else good(body)

    served.answer = answer
    encoder = EndpointEncoder(served.address)
    encoder.encode(["fine words " * 40], max_tokens=64)
    with pytest.raises(UserError, match=rf"refuses a text.*\(4..\).*'{short[:8]}") as caught:
        encoder.encode([*TEXTS, short], max_tokens=64)
    assert "bad words" in str(caught.value) and encoder.notes["cut"] == 0


@pytest.mark.parametrize("said", [True, False, 3, 0, "yes", None, 1.5, {}, {"0": 1}, [0], "01", float("nan")])
def test_any_form_of_truncated_is_understood_or_ignored(served: Served, said: Any) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        status, content, headers = good(body)
        return status, content | {"truncated": said}, headers

    served.answer = answer
    found = EndpointEncoder(served.address).encode(["a", "b", "c"], max_tokens=64)
    np.testing.assert_allclose(found, unit(["a", "b", "c"]), atol=1e-6)


def test_an_answer_that_breaks_off_is_asked_for_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_requests, "_BACK_OFF", wait_none())
    encoder = EndpointEncoder(served.address)
    served.broken = 3
    np.testing.assert_allclose(encoder.encode(["a"], max_tokens=64), unit(["a"]), atol=1e-6)
    assert len(served.requests) == 5
    served.broken = 99
    with pytest.raises(StageFailure, match="does not answer") as caught:
        encoder.encode(["a"], max_tokens=64)
    assert len(served.requests) == 5 + 6
    said = str(caught.value)
    assert "does not answer in full" in said and "\n" not in said
    served.server.shutdown()
    served.server.server_close()
    with pytest.raises(StageFailure, match="Connection refused") as caught:
        encoder.encode(["a"], max_tokens=64)
    assert str(caught.value).count("127.0.0.1") <= 2


@pytest.mark.parametrize("together", [1, 64])
def test_a_refusal_that_passes_changes_nothing(served: Served, together: int) -> None:
    once = iter([refused(400, "a hiccup")])
    encoder = EndpointEncoder(served.address)
    served.answer = lambda body: next(once, None) or good(body)
    for _ in range(2):
        found = encoder.encode(TEXTS[:together], max_tokens=64)
        np.testing.assert_allclose(found, unit(TEXTS[:together]), atol=1e-6)
    assert encoder.notes == {"empty": 0, "cut": 0, "most": 0}
