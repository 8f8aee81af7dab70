"""The paper's Table 5 on a run's own data: the run, then each variant of it; finished stages are reused."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout

from rich.console import Console

from jobs.entry import command_line, guarded, say
from jobs.pipeline import parse, run_pipeline
from qwen3emb.config import load_config
from qwen3emb.evaluate.ablation import ablation_table, variants, with_figures, write_ablation
from qwen3emb.pipeline import borrow


def _pipeline(arguments: argparse.Namespace, changes: list[str]) -> None:
    """Run what is not done; the report goes to standard error, which leaves standard output to the table."""
    sets = [word for change in [*arguments.set, *changes] for word in ("--set", change)]
    flags = ["--replace"] * arguments.replace + ["--debug"] * arguments.debug
    with redirect_stdout(sys.stderr):
        run_pipeline(parse(["--config", arguments.config, *sets, *flags, "--until", "evaluate"]))


def _ablate(arguments: argparse.Namespace) -> None:
    cfg = load_config(arguments.config, arguments.set)
    wanted = variants(cfg)
    _pipeline(arguments, [])
    runs = {}
    for name, changes in wanted.items():
        runs[name] = load_config(arguments.config, [*arguments.set, *changes])
        borrowed = borrow(runs[name], cfg)
        say(f"ablate: {name}: from the full run: {', '.join(borrowed) or 'nothing'}")
        _pipeline(arguments, changes)
    lines = with_figures(cfg, runs)
    say(f"ablate: written to {write_ablation(cfg, lines)}")
    if arguments.json:
        print(json.dumps(lines, indent=2))
    else:
        Console().print(ablation_table(lines))


if __name__ == "__main__":
    parser = command_line(__doc__ or "")
    parser.epilog = "example: python -m jobs.ablate --config examples/demo.yaml"
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args()
    sys.exit(guarded(lambda: _ablate(given), given.debug))
