"""What a plan has to assume: every number in it that follows neither from the configuration nor from a model's shape.

Each has a name, a source in docs/plan.md, and may be given otherwise: `qwen3emb plan FILE --assume NAME=VALUE`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from qwen3emb.core.errors import UserError

__all__ = ["Assumptions", "assumptions"]


@dataclass(frozen=True)
class Assumptions:
    """The numbers; shares are between 0 and 1."""

    # How fast: shares of a GPU's peak.
    training_utilisation: float = 0.30
    """Share of the peak bf16 FLOP/s in a training step, recomputation counted as work."""
    encoding_utilisation: float = 0.32
    """Share of the peak bf16 FLOP/s while texts are encoded or judged."""
    prefill_utilisation: float = 0.32
    """Share of the peak bf16 FLOP/s while a generator reads prompts."""
    prefill_utilisation_fp8: float = 0.21
    """The same of the peak fp8 FLOP/s, for a generator with fp8 weights."""
    decode_bandwidth: float = 0.70
    """Share of the memory bandwidth while a generator writes."""
    cpu_gflops: float = 100.0
    """GFLOP/s of one core that reads texts with a model of 16 bits."""
    cpu_training_gflops: float = 70.0
    """GFLOP/s of one core that trains such a model."""
    search_gflops: float = 35.0
    """GFLOP/s of one core in float32, as the search of `mine` has."""
    cores_per_gpu: float = 8.0
    """CPU cores beside each GPU that a stage uses, for what runs on CPUs there."""
    start_seconds: float = 15.0
    """Until a stage's first worker is ready, without the loading of weights."""
    engine_start_seconds: float = 60.0
    """The same of an engine of the generator, which measures its memory and captures graphs."""
    load_gb_per_second: float = 1.0
    """GB/s at which a worker reads a model's weights."""
    merge_gb_per_second: float = 0.2
    """GB/s of checkpoints that one merging task reads, merges and writes."""
    read_rows_per_second: float = 400.0
    """Rows that one reading task of `corpus` cuts and compares per second."""
    # How much memory is there to be used.
    usable_memory: float = 0.92
    """Share of a GPU's memory that a worker can fill: the CUDA context and fragmentation take the rest."""
    engine_memory: float = 0.92
    """Share of a GPU's memory that the engine takes (vLLM's `gpu_memory_utilization`)."""
    engine_working_gb: float = 2.0
    """GB of it that are neither weights nor KV cache."""
    # How long texts are.
    characters_per_token: float = 4.0
    """Of prompts and instructions, which are English."""
    tokens_per_word: float = 1.2
    """Of written queries and answers."""
    function_tokens: float = 78.0
    """Median length of a Python function (log-normal)."""
    function_spread: float = 1.24
    """Standard deviation of the logarithm of that length."""
    docstring_tokens: float = 13.0
    """Median length of a function's summary, the query of a docstring pair (log-normal)."""
    docstring_spread: float = 0.79
    """Standard deviation of the logarithm of that length."""
    persona_tokens: float = 22.5
    """Mean length of a persona."""
    labelled_query_tokens: float = 20.0
    """Mean length of a labelled query."""
    labelled_document_tokens: float = 150.0
    """Mean length of a labelled document."""
    # How many rows there are, where the configuration has no limit.
    passages: int = 0
    """Training passages of the corpus; 0 = `corpus.max_passages`, else `synthesize.max_passages`."""
    pairs: int = 0
    """Docstring pairs of the corpus; 0 = `corpus.max_pairs`."""
    labelled_rows: int = 100_000
    """Rows of a labelled dataset without `max_rows`."""
    evaluation_queries: int = 1_000
    """Queries of a BEIR folder."""
    evaluation_documents: int = 100_000
    """Documents of a BEIR folder."""
    # What share of them goes on.
    synthesis_yield: float = 0.86
    """Share of the asked rows that pass all gates."""
    asked_again: float = 0.15
    """Share of calls of the generator that repeat one with a bad answer."""
    filter_kept: float = 0.87
    """Share of the scored pairs that `filter.threshold` keeps."""
    negatives_found: float = 1.0
    """Share of the hard negatives asked for that mining finds and a batch has not already."""

    def replaced(self, **values: float) -> Assumptions:
        """A copy with other values."""
        return replace(self, **values)  # type: ignore[arg-type]  # all fields are numbers


def assumptions(given: Sequence[str] = ()) -> Assumptions:
    """The assumptions, some of them given as `name=value`.

    Raises:
        UserError: no such name, or a value that is no number of at least 0.
    """
    known = {field.name: field.type for field in fields(Assumptions)}
    values: dict[str, float] = {}
    for word in given:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            raise UserError(f"--assume {word!r}: expected NAME=VALUE, e.g. --assume training_utilisation=0.4")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise UserError(f"--assume {word!r}: no assumption is called {name!r}{hint}")
        values[name] = _number(word, value, whole=known[name] == "int")
    return Assumptions().replaced(**values)


def _number(word: str, value: str, whole: bool) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise UserError(f"--assume {word!r}: {value!r} is no number") from error
    if not math.isfinite(number) or number < 0:
        raise UserError(f"--assume {word!r}: it must be a number of at least 0")
    return int(number) if whole else number
