"""URIs: options stay where names are joined, odd names come back, and secrets are nowhere shown or recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from qwen3emb.config.run import load_config
from qwen3emb.core.artifact import start
from qwen3emb.core.errors import UserError
from qwen3emb.core.exits import guarded
from qwen3emb.core.location import joined, parent_and_name, redacted, with_secrets_of
from qwen3emb.core.storage import Storage, external_fingerprint
from qwen3emb.pipeline.ablation import variants
from qwen3emb.pipeline.stages import identity
from qwen3emb.text.files import resolve

HOME = "s3://bucket/run?region=eu-central-1"
SECRET = "s3://AKIA:hunter2@bucket/run?region=eu-central-1&session_token=hunter3"


@pytest.mark.parametrize(
    ("uri", "name", "path"),
    [
        (HOME, "corpus", "bucket/run/corpus"),
        ("s3://bucket/run/?region=eu-central-1", "corpus", "bucket/run/corpus"),
        (HOME, "checkpoints/step_1", "bucket/run/checkpoints/step_1"),
        (HOME, "a b", "bucket/run/a b"),
        (HOME, "50% off?", "bucket/run/50% off?"),
        (HOME, "c#", "bucket/run/c#"),
        (HOME, "日本語", "bucket/run/日本語"),
        (HOME, "", "bucket/run"),
        ("s3://bucket?region=eu-central-1", "corpus", "bucket/corpus"),
        ("s3://bucket/a%20b?region=eu-central-1", "c", "bucket/a b/c"),
        ("s3://bucket/a b?region=eu-central-1", "c", "bucket/a b/c"),
        ("s3://bucket/ä?region=eu-central-1&scheme=http", "c", "bucket/ä/c"),
    ],
)
def test_a_name_is_joined_to_the_path_and_the_options_stay(uri: str, name: str, path: str) -> None:
    below = Storage(uri) / name
    assert below.path() == path
    # Another process opens it by its URI alone.
    filesystem, again = pafs.FileSystem.from_uri(below.uri)
    assert again == path
    assert filesystem.region == "eu-central-1"
    assert Storage(below.uri).path("x") == f"{path}/x"


def test_every_stage_of_a_run_with_options_has_a_folder_of_its_own() -> None:
    folders = {(Storage(HOME) / name).path() for name in ("corpus", "weak", "merge")}
    assert folders == {"bucket/run/corpus", "bucket/run/weak", "bucket/run/merge"}


def test_local_names_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("a b", "50% off?", "c#", "日本語", "%20"):
        (Storage(str(tmp_path)) / name).write_bytes("f", b"x")
        assert (tmp_path / name / "f").is_file()
        assert Storage((Storage(str(tmp_path)) / name).uri).exists("f")
    assert Storage(f"file://{tmp_path}/a%20b").exists("f")
    assert Storage(f"file://{tmp_path}/a b").exists("f")
    assert (Storage(f"file://{tmp_path}") / "%20").exists("f")
    assert Storage("/").path("etc") == "/etc"


@pytest.mark.parametrize("name", ["..", "../other", "a/../../b", "/etc"])
@pytest.mark.parametrize("place", [HOME, "/runs/demo"])
def test_a_name_that_leads_out_of_the_folder_is_refused(place: str, name: str) -> None:
    for action in (lambda: Storage(place) / name, lambda: Storage(place).path(name), lambda: joined(place, name)):
        with pytest.raises(UserError, match="leads out"):
            action()


def test_a_hash_sign_in_a_uri_would_be_dropped_and_is_refused() -> None:
    with pytest.raises(UserError, match="%23"):
        Storage("s3://bucket/run#1?region=eu-central-1")
    assert Storage("s3://bucket/run%231?region=eu-central-1").path() == "bucket/run#1"


def test_a_place_that_cannot_be_opened_is_the_users_mistake() -> None:
    for uri in ("nowhere://u:hunter2@x/y", "s3://u:hunter2@b/x?no_such_option=1"):
        with pytest.raises(UserError, match="not a place") as caught:
            Storage(uri)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "folder", "name"),
    [
        ("s3://b/x/p.jsonl?region=r", "s3://b/x?region=r", "p.jsonl"),
        ("s3://b/p%20q.jsonl?region=r&scheme=http", "s3://b?region=r&scheme=http", "p q.jsonl"),
        ("s3://b/p.jsonl", "s3://b", "p.jsonl"),
        ("/data/what?.jsonl", "/data", "what?.jsonl"),
        ("/p.jsonl", "/", "p.jsonl"),
    ],
)
def test_the_folder_of_a_file_keeps_the_options(place: str, folder: str, name: str) -> None:
    assert parent_and_name(place) == (folder, name)


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        "s3://b/run?region=x&access_key=hunter2&secret_key=hunter3",
        "gs://b/run?access_token=hunter2",
        "abfss://c@account/run?account_key=hunter2&sas_token=hunter3",
        "http://user:hunter2@host:8000/v1?model=m&api_key=hunter3",
        "cannot open s3://AKIA:hunter2@bucket/run?secret_key=hunter3: no such bucket",
    ],
)
def test_secrets_are_hidden_and_the_rest_is_shown(text: str) -> None:
    shown = redacted(text)
    assert "hunter" not in shown
    for part in ("bucket", "region=x", "model=m", "account", "host:8000", "no such bucket"):
        assert (part in shown) == (part in text)


def test_what_has_no_secret_is_shown_as_it_is() -> None:
    for text in (HOME, "/runs/key=1", "hf://datasets/ORG/NAME/data/*.parquet", "monkey=1", 7, None):
        assert redacted(text) == text
    assert redacted({"a": [SECRET], "b": (HOME, 1)}) == {"a": [redacted(SECRET)], "b": [HOME, 1]}


def test_a_folder_shows_no_secret_but_hands_it_on() -> None:
    folder = Storage("s3://AKIA:hunter2@bucket/run?region=eu-central-1") / "corpus"
    assert f"{folder}" == "s3://***@bucket/run/corpus?region=eu-central-1"
    assert folder.uri == "s3://AKIA:hunter2@bucket/run/corpus?region=eu-central-1"


def test_a_recorded_place_gets_the_credentials_of_the_run_back() -> None:
    other = "s3://AKIA:hunter2@bucket/other/corpus?region=eu-central-1&session_token=hunter3"
    assert with_secrets_of(SECRET, redacted(other)) == other
    assert with_secrets_of(SECRET, HOME) == HOME
    with pytest.raises(UserError, match="credentials"):
        with_secrets_of("s3://AKIA:hunter2@elsewhere/run", redacted(other))


def test_no_message_and_no_record_holds_a_password(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise UserError(f"{SECRET}: not there")

    assert guarded(fail, debug=True) == 2
    assert "hunter" not in capsys.readouterr().err
    scoring = "filter.model=http://u:hunter2@host/v1?model=m&api_key=hunter3"
    what = identity(load_config(run_file, [scoring]), "filter")
    rotated = identity(load_config(run_file, [scoring.replace("hunter2", "hunter9")]), "filter")
    start(Storage(str(tmp_path / "stage")), what)
    assert "hunter" not in (tmp_path / "stage" / "started.json").read_text()
    assert what.fingerprint == rotated.fingerprint  # who may read it is no part of what it is


def test_runs_below_a_run_keep_its_options(run_file: Path) -> None:
    found = variants(load_config(run_file, [f"storage={HOME}"]))
    assert found["no-synthetic"][0] == "storage=s3://bucket/run/ablation/no-synthetic?region=eu-central-1"


@pytest.mark.parametrize("uri", ["file:///tmp/a?b", "FILE:///tmp/a?b.jsonl", "file://localhost/a/b?"])
def test_a_question_mark_in_a_file_uri_would_be_dropped_and_is_refused(uri: str) -> None:
    for opened in (Storage, Storage.of_file, resolve, external_fingerprint):
        with pytest.raises(UserError, match="%3F"):
            opened(uri)
    assert Storage("file:///tmp/a%3Fb").path() == resolve("file:///tmp/a%3Fb")[1] == "/tmp/a?b"


@pytest.mark.parametrize(
    "uri", ["s3:/b/x", "file:/tmp/x", "S3:b/x", "gs:/b", "hdfs:/x", "abfs:/c@a/x", "https:/h/x", "s3:"]
)
def test_a_uri_that_lacks_a_slash_is_no_local_folder(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for opened in (Storage, Storage.of_file, resolve, external_fingerprint):
        with pytest.raises(UserError, match="://") as caught:
            opened(uri)
        assert "\n" not in str(caught.value)
    assert Storage("./" + uri).path() == str(tmp_path / uri).rstrip("/") and Storage("/s3:/x").path() == "/s3:/x"
    assert Storage("run:1/x").path() == str(tmp_path / "run:1/x")


@pytest.mark.parametrize("secret", ["wJalr/K7MDENG", "wJ alr", "w@Jalr/K7@", "8000/x", "a:b/c", "+/=", "ü/ö"])
def test_a_secret_with_any_letters_is_hidden(secret: str) -> None:
    for uri in (f"s3://AKIAX:{secret}@b/run", f"s3://AKIAX:{secret}@b/run?region=r"):
        for text in (uri, f"cannot open '{uri}': no", f'{{"a": "{uri}"}}', f"{uri} is not s3://other:x@place/y"):
            assert redacted(text) == text.replace(f"AKIAX:{secret}", "***").replace("other:x", "***")
        with pytest.raises(UserError, match="percent-encode the secret, or give it by the environment") as caught:
            Storage(uri + ("&" if "?" in uri else "?") + "no_such_option=1")
        assert secret not in str(caught.value) and "AKIAX" not in str(caught.value)


@pytest.mark.parametrize("option", ["pwd", "pass", "auth", "password", "db_pwd", "Auth", "passphrase"])
def test_options_that_name_a_secret_are_hidden(option: str) -> None:
    assert redacted(f"http://h/v1?model=m&{option}=hunter2") == f"http://h/v1?model=m&{option}=***"


def test_an_at_sign_in_a_path_is_shown() -> None:
    for text in (
        "s3://b/run@2",
        "hf://datasets/O/N@rev:2/x",
        "http://host:8000/v1/models@x?model=m",
        "s3://b/x?a=k:v@w",
    ):
        assert redacted(text) == text
    assert redacted("s3://a:k@b/x@y") in {"s3://***@b/x@y", "s3://***@y"}
