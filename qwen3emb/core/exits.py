"""How a command ends: one sentence on standard error and an exit code (1 failure, 2 user's mistake)."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable

from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.core.location import redacted

__all__ = ["INTERRUPTED", "guarded", "sentence"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""

_AGAIN = "run the same command again to go on from here"
_INTERRUPTED = f"interrupted; {_AGAIN}"


def guarded(action: Callable[[], None], debug: bool) -> int:
    """Run `action`; 0, 2 for a user's mistake, 1 for a failure, each in one sentence on standard error.

    Passwords in URIs are not shown, whoever wrote the message.
    """
    try:
        action()
    except KeyboardInterrupt:
        print(f"error: {_INTERRUPTED}", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Exception as error:
        if debug:
            print(redacted(traceback.format_exc()), file=sys.stderr)
        message, code = _verdict(_root_cause(error))
        print(f"error: {redacted(message)}", file=sys.stderr, flush=True)
        return code
    return 0


def sentence(error: BaseException) -> str:
    """What ended a command, without passwords: for an error what `guarded` says of it."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, SystemExit):  # Ray's, where a job is stopped: the code is the signal's number
        return f"ended from outside (exit code {error.code}); {_AGAIN}"
    return str(redacted(_verdict(_root_cause(error))[0]))


def _verdict(error: BaseException) -> tuple[str, int]:
    """One sentence and the exit code for what ended a command."""
    if isinstance(error, UserError | StageFailure):
        return str(error), error.exit_code
    if isinstance(error, OSError) and _is_users(error):
        return _io_sentence(error), 2
    return f"{type(error).__name__}: {error} (run again with --debug for the stack trace)", 1


def _is_users(error: OSError) -> bool:
    """True for a full disk, a port in use, or a missing permission."""
    numbers = {errno.ENOSPC, errno.EDQUOT, errno.EADDRINUSE, errno.EACCES, errno.EROFS}
    return error.errno in numbers or "No space left" in str(error)


def _io_sentence(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        advice = "free space or set another storage, then run again: finished rows are kept"
        return f"the disk is full ({error}); {advice}"
    return str(error)


def _root_cause(error: BaseException) -> BaseException:
    """What was raised inside a Ray worker, under Ray's wrappers (`.cause`), or what a chain began with.

    An error of ours ends the search: it was raised `from` another one in order to say it better.
    """
    while True:
        inner = getattr(error, "cause", None)
        if not isinstance(inner, BaseException) and not isinstance(error, UserError | StageFailure):
            inner = error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner
