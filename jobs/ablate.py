"""The paper's Table 5 on a run's own data: the run, then each variant of it; finished stages are reused."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from contextlib import redirect_stdout

from jobs.entry import command_line, guarded, say, table_console
from jobs.pipeline import parse, run_pipeline
from qwen3emb.config.run import load_config
from qwen3emb.core.errors import StageFailure, UserError
from qwen3emb.metrics.verdict import reaches
from qwen3emb.pipeline.ablation import (
    ablation_table,
    on_another_set,
    table_verdict,
    variants,
    with_figures,
    write_ablation,
)
from qwen3emb.pipeline.stages import reuse_stages


def _pipeline(arguments: argparse.Namespace, changes: list[str]) -> None:
    """Run the stages that are not done; the report goes to standard error, since the table goes to standard output."""
    sets = [word for change in [*arguments.set, *changes] for word in ("--set", change)]
    flags = ["--replace"] * arguments.replace + ["--debug"] * arguments.debug
    with redirect_stdout(sys.stderr):
        run_pipeline(parse(["--config", arguments.config, *sets, *flags, "--until", "evaluate"]))


def _ablate(arguments: argparse.Namespace) -> None:
    """Run all variants and print the table of those that succeed; then raise the error of the first that failed.

    Raises:
        SystemExit: with 1, where the verdict is less than `--at-least`.
    """
    cfg = load_config(arguments.config, arguments.set)
    overrides = variants(cfg, arguments.extra)
    runs = {name: load_config(arguments.config, [*arguments.set, *changes]) for name, changes in overrides.items()}
    _pipeline(arguments, [])
    failed: dict[str, UserError | StageFailure] = {}
    for name, changes in overrides.items():
        try:
            say(f"ablate: {name}: from the full run: {', '.join(reuse_stages(runs[name], cfg)) or 'nothing'}")
            _pipeline(arguments, changes)
        except (UserError, StageFailure) as error:
            failed[name] = error
            del runs[name]
            say(f"ablate: {name} is left out: {error}")
    left_out = on_another_set(cfg, runs)
    for name, reason in left_out.items():
        say(f"ablate: {name} is left out: {reason}")
    lines, left_out = with_figures(cfg, runs), left_out | {name: str(error) for name, error in failed.items()}
    say(f"ablate: written to {write_ablation(cfg, lines, left_out)}")
    verdict = table_verdict(lines)
    if arguments.json:
        print(json.dumps(lines, indent=2))
    else:
        table_console().print(ablation_table(lines))
    if verdict:  # beside JSON it goes to standard error, which a program does not parse
        print(verdict.line(), file=sys.stderr if arguments.json else sys.stdout, flush=True)
    for name, failure in failed.items():
        raise type(failure)(f"variant {name} is not in the table: {failure}")
    if arguments.at_least and not (verdict and reaches(verdict.word, arguments.at_least)):
        raise SystemExit(1)


if __name__ == "__main__":
    parser = command_line(__doc__ or "")
    parser.epilog = "example: python -m jobs.ablate --config examples/demo.yaml"
    parser.add_argument(
        "--with", dest="extra", action="append", default=[], metavar="ROW", help="costs a training: distill"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--at-least", choices=["even", "win"], help="exit with 1 where the verdict is less")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a private head is ended as well
    sys.exit(guarded(lambda: _ablate(arguments), arguments.debug))
