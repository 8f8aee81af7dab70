import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.personas import index_name, nearest_personas, parse_personas, persona_vectors, read_personas


def lines(*rows: object) -> bytes:
    return b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)


def test_personas_keep_the_order_of_the_file_and_extra_fields_are_ignored() -> None:
    content = lines({"persona": "a nurse", "synthesized text": "x"}, {"id": 3, "persona": " a\n ferry  captain "})
    personas, rejects = parse_personas(content, "p.jsonl")
    assert personas == ["a nurse", "a ferry captain"]
    assert rejects == []


def test_every_bad_row_becomes_a_reject_with_its_row_number() -> None:
    bad = {
        2: (b'{"persona": "caf\xe9"}', "invalid_utf8"),
        3: (b'{"persona": ', "invalid_json"),
        5: (b'["a nurse"]', "missing_persona"),
        6: (lines({"name": "a nurse"}), "missing_persona"),
        7: (lines({"persona": 7}), "missing_persona"),
        8: (lines({"persona": " \t"}), "empty_persona"),
        9: (lines({"persona": "bell \x07 ringer"}), "control_character"),
        10: (lines({"persona": "half \ud800"}), "lone_surrogate"),
        11: (lines({"persona": "a  nurse"}), "duplicate_persona"),
    }
    rows = [lines({"persona": "a nurse"}), bad[2][0], bad[3][0], b"   ", *(bad[n][0] for n in range(5, 12))]
    personas, rejects = parse_personas(b"\r\n".join(rows), "p.jsonl")
    assert personas == ["a nurse"]
    assert {r.row: r.code for r in rejects} == {number: code for number, (_, code) in bad.items()}
    assert all(r.stage == "synthesize" and r.source == "p.jsonl" and r.payload for r in rejects)
    for reject in rejects:
        (reject.reason + reject.payload).encode()  # can be stored


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": "no persona here"}\n', b"\xff\xfe\x00"])
def test_a_file_without_a_persona_is_the_users_mistake(tmp_path, content) -> None:
    path = tmp_path / "personas.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"personas\.jsonl: no row has a persona"):
        read_personas(str(path))


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        read_personas(str(tmp_path / "nowhere.jsonl"))


def test_parquet_and_compressed_files_are_read_too(tmp_path) -> None:
    people = ["a nurse", " ", None, "a ferry captain"]
    pq.write_table(pa.table({"persona": people, "more": [1, 2, 3, 4]}), tmp_path / "p.parquet")
    personas, rejects = read_personas(str(tmp_path / "p.parquet"))
    assert personas == ["a nurse", "a ferry captain"]
    assert {r.row: r.code for r in rejects} == {2: "empty_persona", 3: "missing_persona"}
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(lines({"persona": "a nurse"})))
    assert read_personas(str(tmp_path / "p.jsonl.gz")) == (["a nurse"], [])
    pq.write_table(pa.table({"text": people}), tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name in ("other", "broken"):
        with pytest.raises(UserError, match=rf"{name}\.parquet: cannot be read"):
            read_personas(str(tmp_path / f"{name}.parquet"))


def test_vectors_of_personas_are_made_once(tmp_path) -> None:
    calls = []

    def encode() -> np.ndarray:
        calls.append(1)
        return np.eye(2, dtype=np.float32)

    name = index_name(["a nurse", "a poet"], "model")
    for _ in range(2):
        assert np.array_equal(persona_vectors(Storage(str(tmp_path)), name, encode), np.eye(2))
    assert len(calls) == 1
    assert len({name, index_name(["a nurse a poet"], "model"), index_name(["a nurse", "a poet"], "other")}) == 3


def test_a_relative_path_is_found_from_the_working_directory(tmp_path, monkeypatch) -> None:
    (tmp_path / "p.jsonl").write_bytes(lines({"persona": "a nurse"}))
    monkeypatch.chdir(tmp_path)
    assert read_personas("p.jsonl") == (["a nurse"], [])


def test_the_candidates_are_those_of_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    passages, personas = (rng.normal(size=(n, 8)).astype(np.float32) for n in (20, 50))
    found = nearest_personas(passages, personas, 5)
    for row, passage in zip(found, passages, strict=True):
        cosines = [p @ passage / np.linalg.norm(p) / np.linalg.norm(passage) for p in personas]
        assert row.tolist() == sorted(range(50), key=lambda i: -cosines[i])[:5]


def test_the_length_of_a_vector_changes_nothing_and_ties_go_to_the_first() -> None:
    personas = np.array([[1, 0], [0, 2], [50, 50], [0, 1]], np.float32)
    assert nearest_personas(np.array([[0, 9], [0, 0]], np.float32), personas, 3).tolist() == [
        [1, 3, 2],
        [0, 1, 2],
    ]


def test_a_small_library_gives_fewer_candidates() -> None:
    assert nearest_personas(np.ones((3, 2), np.float32), np.ones((2, 2), np.float32), 5).shape == (3, 2)
