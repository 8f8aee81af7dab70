"""Exit codes and sentences of everything that can end a command."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.exits import guarded, sentence


class WorkerError(Exception):
    """Wraps what was raised elsewhere in `cause`, as Ray's task errors do."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a long remote traceback")
        self.cause = cause


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("row 3: no text"), 2, "error: row 3: no text\n"),
        (StageFailure("the loss is NaN"), 1, "error: the loss is NaN\n"),
        (chained(UserError("no such file: x"), FileNotFoundError("x")), 2, "error: no such file: x\n"),
        (WorkerError(UserError("no personas")), 2, "error: no personas\n"),
        (
            chained(RuntimeError("job failed"), WorkerError(StageFailure("dead engine"))),
            1,
            "error: dead engine\n",
        ),
        (WorkerError(chained(UserError("bad model"), KeyError("w"))), 2, "error: bad model\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the disk is full"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 2, "Address already in use"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 2, "Permission denied"),
        (KeyError("x"), 1, "KeyError: 'x' (run again with --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_ending_has_its_code_and_one_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error), debug=False) == code
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_success_is_0_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: None, debug=False) == 0
    assert capsys.readouterr().err == ""


def test_debug_shows_the_stack_trace(capsys: pytest.CaptureFixture[str]) -> None:
    guarded(raising(UserError("row 3")), debug=True)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WorkerError(UserError("s3://me:word@bucket/x: no rows")), "s3://***@bucket/x: no rows"),
        (KeyboardInterrupt(), "interrupted; run the same command again to go on from here"),
        (SystemExit(15), "ended from outside (exit code 15); run the same command again to go on from here"),
    ],
)
def test_an_ending_can_be_kept_as_a_sentence(error: BaseException, said: str) -> None:
    assert sentence(error) == said
