from __future__ import annotations

import bz2
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.core.rejects import Passage, Reject
from qwen3emb.text.files import file_prefixes
from qwen3emb.text.readers import check_language, list_files, read_file


def read(
    path: Path | str,
    kind: str,
    text_field: str = "text",
    title_field: str | None = None,
    id_field: str | None = None,
    language: str | None = None,
    language_field: str | None = None,
) -> list[Passage | Reject]:
    return list(
        read_file(
            str(path),
            kind,
            text_field=text_field,
            title_field=title_field,
            id_field=id_field,
            language=language,
            language_field=language_field,
        )
    )


def texts(rows: list[Passage | Reject]) -> list[str]:
    return [row.text for row in rows if isinstance(row, Passage)]


def rejects(rows: list[Passage | Reject]) -> list[tuple[int, str]]:
    return [(row.row, row.code) for row in rows if isinstance(row, Reject)]


def test_beir_corpus_reads_with_its_ids_and_titles(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [{"_id": "d1", "title": "T", "text": "One.", "metadata": {}}, {"_id": 7, "text": "Two."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert read(path, "jsonl", title_field="title", id_field="_id", language="en") == [
        Passage("d1", "One.", "T", "en", str(path)),
        Passage("7", "Two.", "", "en", str(path)),
    ]


def test_a_row_may_have_a_language_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": "Eins.", "lang": "DE"}, {"text": "One."}, {"text": "?!", "lang": "qq"}, {"text": "x", "lang": 5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = read(path, "jsonl", language="en", language_field="lang")
    assert [row.language for row in found if isinstance(row, Passage)] == ["de", "en"]
    assert rejects(found) == [(3, "unknown_language"), (4, "not_a_string")]


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_compressed_jsonl_of_several_members_and_default_ids(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"part.jsonl{suffix}"
    pack = gzip.compress if suffix == ".gz" else bz2.compress
    path.write_bytes(pack(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n\n') + pack(b'{"text": "c"}'))
    assert read(path, "jsonl") == [
        Passage("part:1", "a\nb", "", "und", str(path)),
        Passage("part:3", "c", "", "und", str(path)),
    ]


def test_each_bad_json_row_is_rejected_and_the_others_go_on(tmp_path: Path) -> None:
    cases: list[tuple[bytes, str | None]] = [
        (b'{"text": "good 1"}', None),
        (b'{"text": "caf\xe9"}', "invalid_utf8"),
        (b'{"text": "open', "invalid_json"),
        (b"[1, 2]", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"text": ' + b"1" * 5000 + b"}", "invalid_json"),
        (b'{"body": "x"}', "missing_field"),
        (b'{"text": null}', "missing_field"),
        (b'{"text": " \\n"}', "empty_field"),
        (b'{"text": 5}', "not_a_string"),
        (b'{"text": ["x"]}', "not_a_string"),
        (b'{"text": "a\\ud800b"}', "lone_surrogate"),
        (b'{"text": "a\\u0000b"}', "control_character"),
        (b'{"text": "a\\u0085b"}', "control_character"),
        (b'{"text": "ok", "title": [3]}', "not_a_string"),
        (b'{"text": "tab\\tand\\nline \\ud83d\\ude00", "title": null}', None),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in cases) + b"\n")
    rows = read(path, "jsonl", title_field="title")
    assert rejects(rows) == [(i, code) for i, (_, code) in enumerate(cases, start=1) if code]
    assert texts(rows) == ["good 1", "tab\tand\nline \U0001f600"]
    for row in rows:
        if isinstance(row, Reject):
            assert (row.id, row.stage, row.source) == (f"rows:{row.row}", "corpus", str(path))
            (row.reason + row.payload).encode("utf-8")
            assert 0 < len(row.payload) <= 10_000
    surrogate = next(row for row in rows if isinstance(row, Reject) and row.code == "lone_surrogate")
    assert "'text'" in surrogate.reason and "D800" in surrogate.reason


def test_titles_and_ids_that_are_numbers_are_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": 1984, "i": 1.0, "text": "a"}\n{"t": NaN, "i": 2, "text": "b"}\n{"i": NaN, "text": "c"}\n')
    rows = read(path, "jsonl", title_field="t", id_field="i")
    assert [(r.id, r.title) for r in rows if isinstance(r, Passage)] == [("1", "1984"), ("2", "")]
    assert rejects(rows) == [(3, "missing_field")]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_blank_lines_before_the_header_and_repeated_columns(tmp_path: Path, kind: str) -> None:
    sep = {"csv": ",", "tsv": "\t"}[kind]
    path = tmp_path / f"a.{kind}"
    path.write_text(f"\n  \nid{sep} text \n1{sep}one\n  \n2{sep}two\n")
    assert texts(read(path, kind)) == ["one", "two"]
    path.write_text(f"text{sep}text\n1{sep}one\n")
    with pytest.raises(UserError, match="'text' twice"):
        read(path, kind)


def test_ids_must_be_there_and_be_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "id": true}\n{"text": "c", "id": ""}\n', "utf-8")
    assert rejects(read(path, "jsonl", id_field="id")) == [
        (1, "missing_field"),
        (2, "not_a_string"),
        (3, "empty_field"),
    ]


@pytest.mark.parametrize("column_type", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_rows_across_batches(tmp_path: Path, column_type: pa.DataType) -> None:
    path = tmp_path / "p.parquet"
    values = [f"text {i}" for i in range(3000)]
    values[7], values[2999] = None, "last"  # type: ignore[call-overload]
    table = pa.table({"n": list(range(3000)), "body": pa.array(values, pa.string()).cast(column_type)})
    pq.write_table(table, path, row_group_size=1000)
    rows = read(path, "parquet", text_field="body", id_field="n")
    assert rejects(rows) == [(8, "missing_field")]
    assert texts(rows) == [value for value in values if value]
    assert [row.id for row in rows if isinstance(row, Passage)][-1] == "2999"


def test_parquet_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    raw = pa.array([b"fine", b"caf\xe9"], pa.binary())
    pq.write_table(pa.table({"text": raw.view(pa.string())}), path)
    rows = read(path, "parquet")
    assert texts(rows) == ["fine"] and rejects(rows) == [(2, "invalid_utf8")]


def test_csv_with_quotes_newlines_and_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\r\nc"\r\n\r\n2,caf\xe9\r\n3\r\n4,x,y\r\n5,\r\n6,"\x00"\r\n'
        b"7," + b"long " * 50_000 + b'\r\n8,"never closed\r\n'
    )
    rows = read(path, "csv", id_field="id")
    assert texts(rows) == ['a, "b"\nc', "long " * 50_000]
    assert [code for _, code in rejects(rows)] == [
        "invalid_utf8",
        "invalid_csv",
        "invalid_csv",
        "empty_field",
        "control_character",
        "invalid_csv",
    ]
    assert [row for row, _ in rejects(rows)] == [2, 3, 4, 5, 6, 8]


def test_tsv_keeps_quotes_as_text(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress('pid\ttext\n1\t"The" cat, a\n2\t"open é\n'.encode()))
    assert texts(read(path, "tsv", id_field="pid")) == ['"The" cat, a', '"open é']


def test_markdown_is_a_passage_a_section(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_bytes(
        b"---\ntitle: Guide\n---\nIntro.\n```\n# code\n```\n## Real *title* ##\n\nBody.\n### Control\n\x07\n# Empty\n"
    )
    found = read(path, "markdown", text_field="body", title_field=None, id_field="id", language="en")
    assert [row for row in found if isinstance(row, Passage)] == [
        Passage("page:1", "Intro.\n```\n# code\n```", "Guide", "en", str(path)),
        Passage("page:8", "Body.", "Guide > Real title", "en", str(path)),
    ]
    assert rejects(found) == [(11, "control_character"), (13, "empty_field")]
    path.write_bytes(b"# One\n\ntwo \xff\n")
    (row,) = read(path, "markdown")
    assert isinstance(row, Reject) and row.reason == "invalid_utf8: line 3"


def test_text_file_is_one_passage_or_pieces_that_cover_it(tmp_path: Path) -> None:
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_bytes(b"\xef\xbb\xbf# no title\r\n\r\nsecond\r\n")
    assert read(small, "text") == [Passage("small:1", "# no title\n\nsecond", "", "und", str(small))]
    paragraphs = [f"paragraph {i} " + "x" * 300 for i in range(9000)]
    paragraphs[8000] = "bad \x00 piece"
    large.write_text("\n\n".join(paragraphs), "utf-8")
    rows = read(large, "text")
    assert len(rows) == 3 and rejects(rows)[0][1] == "control_character"
    kept = "\n\n".join(texts(rows)).split("\n\n")
    assert kept == paragraphs[: len(kept)] and len(kept) > 6000
    assert all(
        row.id == f"large:{line}" for row, line in zip(rows, [1, len(texts(rows)[:1][0].split("\n")) + 1], strict=False)
    )


def test_text_that_is_not_utf8_or_is_empty_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"one\ntwo \xff\n")
    (row,) = read(path, "text")
    assert isinstance(row, Reject) and row.reason == "invalid_utf8: line 2"
    path.write_bytes(b"")
    assert rejects(read(path, "text")) == [(1, "empty_field")]


def test_unreadable_files_are_the_users_to_mend(tmp_path: Path) -> None:
    broken = tmp_path / "not.parquet"
    broken.write_bytes(b"this is not parquet at all")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"text": "a"}\n' * 50_000)[:-200])
    fake = tmp_path / "fake.jsonl.gz"
    fake.write_bytes(b'{"text": "a"}\n')
    cases = [(tmp_path / "gone.jsonl", "jsonl"), (broken, "parquet"), (cut, "jsonl"), (fake, "jsonl")]
    for path, kind in [*cases, (tmp_path, "text"), (tmp_path / "gone.parquet", "parquet")]:
        with pytest.raises(UserError, match=str(path)):
            read(path, kind)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "secret.jsonl"
    path.write_text('{"text": "a"}\n', "utf-8")
    path.chmod(0)
    with pytest.raises(UserError, match="secret"):
        read(path, "jsonl")


def test_missing_columns_name_what_there_is(tmp_path: Path) -> None:
    table, sheet = tmp_path / "p.parquet", tmp_path / "t.csv"
    pq.write_table(pa.table({"texts": ["a"], "n": [1]}), table)
    sheet.write_text("body,n\na,1\n", "utf-8")
    with pytest.raises(UserError, match="'text'; the nearest is 'texts'"):
        read(table, "parquet")
    with pytest.raises(UserError, match=r"'text'.*body, n"):
        read(sheet, "csv")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_columns_that_a_row_may_lack_need_not_be_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text('{"id": "1", "text": "a"}\n{"id": "2", "text": "b"}\n')
    elif kind == "parquet":
        pq.write_table(pa.table({"id": ["1", "2"], "text": ["a", "b"]}), path)
    else:
        path.write_text("id{0}text\n1{0}a\n2{0}b\n".format("," if kind == "csv" else "\t"))
    found = read(path, kind, title_field="title", id_field="id", language="en", language_field="lang")
    assert found == [Passage(i, text, "", "en", str(path)) for i, text in (("1", "a"), ("2", "b"))]


def test_unknown_kind_and_language_fail_before_reading(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown kind 'xml'"):
        read(tmp_path / "x", "xml")
    with pytest.raises(UserError, match="unknown language 'englsh'"):
        read(tmp_path / "x", "jsonl", language="englsh")


def test_large_jsonl_streams(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(80):
            stream.write(b'{"text": "' + b"word " * 50_000 + b'"}\n')  # 20 MB in all
    before, total = pa.total_allocated_bytes(), 0
    rows = read_file(str(path), "jsonl", text_field="text", title_field=None, id_field=None, language=None)
    for row in rows:
        assert isinstance(row, Passage)
        total += len(row.text)
        assert pa.total_allocated_bytes() - before < 4 * 2**20
    assert total == 80 * 250_000


def test_list_files_of_a_file_a_directory_a_glob_and_a_uri(tmp_path: Path) -> None:
    for name in ["b.jsonl", "a/x.jsonl.gz", "a/y.csv", ".git/z.jsonl", "a/b/w.NDJSON", "a b/[1].jsonl"]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("", "utf-8")
    root = str(tmp_path)
    everything = ["a b/[1].jsonl", "a/b/w.NDJSON", "a/x.jsonl.gz", "b.jsonl"]
    assert list_files(root, "jsonl") == [f"{root}/{name}" for name in everything]
    assert list_files(f"{root}/a/y.csv", "text") == [f"{root}/a/y.csv"]
    assert list_files(f"{root}/*.jsonl", "jsonl") == [f"{root}/b.jsonl"]
    assert list_files(f"{root}/**/*.jsonl*", "jsonl") == [
        f"{root}/{name}" for name in ["a b/[1].jsonl", "a/x.jsonl.gz", "b.jsonl"]
    ]
    assert list_files(f"{root}/a/[xy].*", "jsonl") == [f"{root}/a/x.jsonl.gz", f"{root}/a/y.csv"]
    assert list_files(f"{root}/**/[^a-x].*", "jsonl") == [f"{root}/a/y.csv"]
    assert list_files(f"{root}/**", "text") == [f"{root}/{name}" for name in sorted([*everything, "a/y.csv"])]
    assert list_files(f"{root}/.g*/*", "jsonl") == [f"{root}/.git/z.jsonl"]
    for nothing in ("**/a[!x]y.csv", "[!]", "**/git/*"):
        with pytest.raises(UserError, match="holds no matching files"):
            list_files(f"{root}/{nothing}", "jsonl")
    assert list_files(f"{root}/a b/[1].jsonl", "jsonl") == [f"{root}/a b/[1].jsonl"]
    uris = list_files(f"file://{root}", "jsonl")
    assert uris[0] == f"file://{root}/a%20b/%5B1%5D.jsonl" and len(uris) == 4
    assert list_files(f"file://{root}/*.jsonl", "jsonl") == [f"file://{root}/b.jsonl"]
    (tmp_path / "a b/[1].jsonl").write_text('{"text": "t"}\n', "utf-8")
    assert texts(read(uris[0], "jsonl")) == ["t"]


def test_list_files_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("x", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert list_files("docs", "markdown") == list_files("*/*.md", "markdown") == ["docs/a.md"]
    assert texts(read("docs/a.md", "markdown")) == ["x"]


def test_list_files_and_read_file_take_a_filesystem(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a.txt").write_text("hello", "utf-8")
    system = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    assert list_files("bucket", "text", system) == ["bucket/a.txt"]
    rows = read_file(
        "bucket/a.txt",
        "text",
        text_field="text",
        title_field=None,
        id_field=None,
        language="fr",
        filesystem=system,
        id_prefix="given",
    )
    assert list(rows) == [Passage("given:1", "hello", "", "fr", "bucket/a.txt")]


def test_nothing_to_read_is_the_users_to_mend(tmp_path: Path) -> None:
    for uri in [
        str(tmp_path),
        f"{tmp_path}/gone",
        f"{tmp_path}/*.jsonl",
        "weird://x/y",
        f"file://{tmp_path}/x",
    ]:
        with pytest.raises(UserError):
            list_files(uri, "jsonl")
    with pytest.raises(UserError, match="unknown kind"):
        list_files(str(tmp_path), "xml")


def test_file_prefixes_are_distinct() -> None:
    assert file_prefixes(["/d/corpus.jsonl.gz"]) == {"/d/corpus.jsonl.gz": "corpus"}
    assert list(file_prefixes(["s3://b/d/x.jsonl?region=eu/1"]).values()) == ["x"]
    files = ["/d/README.md", "/d/a/README.md", "/d/a/x.md", "/d/a/x.markdown"]
    assert list(file_prefixes(files).values()) == ["README", "a/README", "a/x.md", "a/x.markdown"]


@pytest.mark.parametrize(
    ("code", "canonical"),
    [
        (None, "und"),
        ("und", "und"),
        ("en", "en"),
        ("EN", "en"),
        ("zh-hans", "zh-Hans"),
        ("pt-br", "pt-BR"),
        ("zh-Hant-TW", "zh-Hant-TW"),
        ("es-419", "es-419"),
        ("yue", "yue"),
        ("swh", "swh"),
    ],
)
def test_languages_in_canonical_form(code: str | None, canonical: str) -> None:
    assert check_language(code) == canonical


@pytest.mark.parametrize(
    ("code", "nearest"),
    [("english", '"en"'), ("Chinees", '"zh"'), ("pt_BR", '"pt-BR"'), ("xx", "unknown"), ("", "unknown")],
)
def test_unknown_languages_name_the_nearest(code: str, nearest: str) -> None:
    with pytest.raises(UserError, match="unknown language") as caught:
        check_language(code)
    assert nearest in str(caught.value)
