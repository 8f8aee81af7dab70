"""What each part of the recipe buys: `make bench-quality ARGS="PART ... --seed N --minutes M"` (docs/benchmarks.md).

Every training and measurement is a line of benchmarks/results/quality.jsonl; what stands there with the same settings,
seed and version is not run again. A part takes at most an hour and goes on with the next call.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.quality import data, measures, parts, runs, table
from benchmarks.quality.plan import Job, Options, carry_out, said
from benchmarks.quality.results import FILE, ROOT, Results
from benchmarks.quality.side import finished
from qwen3emb.metrics.verdict import Least, reaches

PARTS: dict[str, Callable[[Options, Results], Sequence[Job]]] = {
    "demo": measures.demo,
    "scifact": parts.scifact,
    "rerank": parts.rerank,
    "merged": measures.merged,
    "low-label": measures.low_label,
    "distilled": measures.distilled,
    "small-vectors": measures.small_vectors,
}
PAIRS = "pairs"
SMALL_PASSAGES = 64


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench-quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; {PAIRS}; default all but {PAIRS}"
    )
    parser.add_argument("--seed", type=int, action="append", help="of the trainings that are compared; default 0 1 2")
    parser.add_argument("--minutes", type=float, default=10, help="of each training; 1 for trying it out")
    parser.add_argument("--trials", type=int, default=100, help="most trials of each side; 0 = the first settings")
    parser.add_argument("--small", action="store_true", help="a few queries and documents; for trying it out")
    parser.add_argument("--again", action="store_true", help="do once more what the results have")
    parser.add_argument("--table", action="store_true", help="only the table")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.add_argument("--at-least", choices=["even", "win"], help="exit with 1 where the verdict is less")
    parser.add_argument("--results", type=Path, default=FILE, help="file of the results")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo", help="finished run for the part demo")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-quality", help="folder of models")
    parser.add_argument("--pairs", type=Path, help="folder of synthetic pairs; default WORK/pairs")
    found = parser.parse_args()
    unknown = [name for name in found.parts if name not in (*PARTS, PAIRS)]
    if unknown:
        parser.error(f"no part {unknown[0]}; there are {', '.join((*PARTS, PAIRS))}")
    if not 0 < found.minutes <= 10:
        parser.error(f"--minutes {found.minutes:g}: a training takes more than 0 and at most 10")
    return found


def main() -> int:
    """Do what is missing, then print the table and the verdict."""
    asked = arguments()
    work = asked.work.resolve()
    pairs = (asked.pairs or work / "pairs").resolve()
    seeds = asked.seed or [0, 1, 2]
    options = Options(asked.minutes, seeds, asked.trials, work, asked.run.resolve(), pairs, asked.small)
    results, chosen = Results(asked.results), asked.parts or list(PARTS)
    failed = [] if asked.table else [name for name in chosen if not _done(name, options, results, asked.again)]
    rows = table.compared(results, [name for name in chosen if name != PAIRS])
    return max(_shown(rows, asked.json, asked.at_least), int(bool(failed)))


def _done(name: str, options: Options, results: Results, again: bool) -> bool:
    """Do the jobs of a part; False where it cannot be done, which leaves the other parts alone."""
    if name != "demo" and not data.DATA.is_dir():
        said(f"{name}: {data.DATA} is not there; this part needs the project's shared data")
        return False
    try:
        if name == PAIRS:
            passages = SMALL_PASSAGES if options.small else runs.SYNTHETIC_PASSAGES
            command = [sys.executable, *runs.pairs_run(options.pairs, passages)]
            finished(command, PAIRS)
            return True
        left = carry_out(lambda: PARTS[name](options, results), results, again)
    except SystemExit as error:
        said(str(error).removeprefix("quality, "))
        return False
    if left:
        said(f"{name}: the hour is over with {len(left)} or more to do; the same command goes on from here")
    return True


def _shown(rows: Sequence[tuple[table.Comparison, table.Found | None]], as_json: bool, least: Least | None) -> int:
    """Print the comparisons, and last the verdict; 1 where a must does not hold or the verdict is less than `least`."""
    verdict, known = table.headline(rows), [found for _, found in rows if found is not None]
    if as_json:
        content = {"comparisons": [one.as_json() for one in known], "verdict": verdict and verdict.as_json()}
        print(json.dumps(content, indent=1))
    else:
        Console(width=170).print(table.printed(rows))
        held, settled = sum(one.held is True for one in known), sum(one.held is not None for one in known)
        print(f"held {held}/{settled}, {len(rows) - settled} not measured with enough seeds")
        if verdict:
            print(verdict.line(), flush=True)
    less = least is not None and not (verdict and reaches(verdict.word, least))
    return int(less or any(one.held is False for one in known))


if __name__ == "__main__":
    sys.exit(main())
