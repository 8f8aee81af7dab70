"""The errors that this project raises on purpose, drawn once:

```
Exception
├── UserError      the user's mistake: one sentence that says what, where, and what to do   exit code 2
│   └── NotThere   a file, folder or dataset that is not there or cannot be reached
└── StageFailure   the run itself failed (an engine died for good, a loss stayed NaN)       exit code 1
```

Everything else propagates as it is and ends with exit code 1; `--debug` shows the stack trace.
"""

from __future__ import annotations

__all__ = ["NotThere", "StageFailure", "UserError"]


class UserError(ValueError):
    """A mistake in the user's configuration, files or arguments; the message is shown as it is."""

    exit_code = 2


class NotThere(UserError):
    """An input that does not exist or cannot be reached."""


class StageFailure(RuntimeError):
    """A stage that could not finish although its input was valid; the message is shown as it is."""

    exit_code = 1
