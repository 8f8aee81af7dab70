"""Configuration of the data stages: corpus, synthesize, filter, mine. Imports no torch, ray or vllm."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "CorpusConfig",
    "FilterConfig",
    "GatesConfig",
    "MineConfig",
    "Section",
    "SourceConfig",
    "SynthesizeConfig",
    "WrittenQueriesConfig",
]


class Section(BaseModel):
    """Base of every section: frozen, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SourceConfig(Section):
    """One place that passages are read from."""

    kind: Literal["python", "jsonl", "parquet", "csv", "tsv", "markdown", "text"]
    """Format of the files."""
    path: str
    """File, folder, glob or URI; for `python` also the words `stdlib` and `site-packages`."""
    language: str = "en"
    """Language of the texts, e.g. `en`, `zh-Hans`; `und` where it is not known."""
    language_field: str | None = None
    """Field of a row's own language code; a row without it is in `language`."""
    text_field: str = "text"
    """Field or column of the text (JSONL, Parquet, CSV, TSV)."""
    title_field: str | None = "title"
    """Field of the title; a row without it has an empty title."""
    id_field: str | None = None
    """Field of the id; without it ids are `file:row`."""
    max_files: int | None = Field(default=None, ge=1)
    """Read at most this many files, chosen by a hash of their names."""


class CorpusConfig(Section):
    """`corpus`: files into passages, docstring pairs and held-out retrieval sets."""

    sources: list[SourceConfig] = Field(min_length=1)
    """What to read."""
    tokenizer: str | None = None
    """Model whose tokenizer counts chunk tokens; default `models.base`."""
    max_tokens: int = Field(default=512, ge=16)
    """Longest passage; longer ones are chunked."""
    overlap_tokens: int = Field(default=0, ge=0)
    """Tokens that neighbouring chunks share."""
    min_words: int = Field(default=40, ge=0)
    """Docstrings with fewer words of natural language are no passages (Python sources only)."""
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """MinHash Jaccard similarity from which the later text is dropped as near duplicate."""
    max_passages: int | None = Field(default=None, ge=1)
    """Keep at most this many passages, chosen by a hash of their ids."""
    max_pairs: int | None = Field(default=None, ge=1)
    """Keep at most this many pairs of docstring and function, chosen by a hash of their ids."""
    dev_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of Python modules whose pairs become the dev set for validation while training; of other sources the share
    of documents (a file of Markdown or text, a row of a table) that `synthesize.evaluation` writes dev queries for."""
    heldout_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of Python modules, and of other documents, that no training ever sees: the evaluation set."""
    max_dev_queries: int = Field(default=50, ge=1)
    """At most this many dev queries."""
    max_dev_documents: int = Field(default=300, ge=1)
    """At most this many dev functions to search in; of written dev queries, at most this many passages."""
    max_heldout_queries: int = Field(default=200, ge=1)
    """At most this many held-out queries."""
    max_heldout_documents: int = Field(default=600, ge=1)
    """At most this many held-out functions to search in; queries always have theirs among them."""
    workers: int = Field(default=2, ge=1)
    """Parallel reading tasks."""

    @model_validator(mode="after")
    def _consistent(self) -> CorpusConfig:
        if self.dev_share + self.heldout_share >= 1:
            raise ValueError("dev_share + heldout_share must be below 1, or nothing is left to train on")
        if self.overlap_tokens >= self.max_tokens:
            raise ValueError("overlap_tokens must be smaller than max_tokens")
        return self


class GatesConfig(Section):
    """Quality gates on written queries; a row that fails one is written again, then rejected with the gate's name."""

    language: bool = True
    """Refuse a query that is identified with confidence as another language than was asked for."""
    language_confidence: float = Field(default=0.9, gt=0, le=1)
    """Least probability with which the other language is identified; languages that it does not know pass."""
    length_tolerance: float | None = Field(default=0.5, ge=0)
    """A query of `low-high` words may have low x (1 - this) to high x (1 + this); null = any length."""
    copied_share: float | None = Field(default=0.8, ge=0, le=1)
    """Refuse a query when more than this share of its runs of three words also occurs in the passage; null = off."""
    refusals: bool = True
    """Refuse apologies ("I cannot ...", "As an AI ...")."""
    placeholders: bool = True
    """Refuse gaps that were left to be filled ("[topic]", "lorem ipsum")."""
    question_type: bool = True
    """Refuse a query whose form is not that of its type: keywords that are a question, a yes-or-no question that asks
    how; what the form does not tell passes, and so do languages that are not known."""
    near_duplicate_query: float | None = Field(default=0.9, gt=0, le=1)
    """MinHash similarity from which the later of two queries is refused, over the whole stage; 1 = equal texts only;
    null = off."""
    heldout_share: float | None = Field(default=0.5, gt=0, le=1)
    """Refuse a pair with a text that contains this share of the runs of eight words of a query or document of the dev
    or held-out set; null = off."""


class WrittenQueriesConfig(Section):
    """Queries that the generator writes for dev and held-out documents, so that a run without labels can be judged."""

    dev_queries: int = Field(default=50, ge=0)
    """At most this many dev queries."""
    heldout_queries: int = Field(default=200, ge=0)
    """At most this many held-out queries."""
    passages_per_query: float = Field(default=1.5, ge=1)
    """Passages that are asked about for each query wanted, drawn by a hash; some of them give no usable query."""
    drafts: int = Field(default=4, ge=1)
    """Queries written for each passage, of which one is chosen: it finds the passage, with the fewest of its words."""
    copied_share: float = Field(default=0.4, ge=0, le=1)
    """As in `gates`, and stricter: refuse a draft when more than this share of its runs of three words also occurs in
    the passage."""
    found_within: int = Field(default=20, ge=1)
    """A draft counts only where `models.retrieval` has its passage among this many best of all passages."""


class SynthesizeConfig(Section):
    """`synthesize`: an LLM reads a passage as one of five personas and writes a query for it (paper section 3)."""

    personas: str
    """JSONL (also .gz, .zst) or Parquet file with a `persona` field (Persona Hub's format)."""
    max_passages: int | None = Field(default=None, ge=1)
    """Use at most this many passages to train on, chosen by a hash of their ids."""
    candidates: int = Field(default=5, ge=1)
    """Candidate personas per query, by cosine with the passage."""
    queries_per_passage: int = Field(default=1, ge=1)
    """Rows for each passage, each with `candidates` other personas and a task drawn for it."""
    tasks: dict[Literal["retrieval", "bitext", "sts", "classification"], float] = Field(default={"retrieval": 1.0})
    """What is written, and the weights: a query that finds the passage (two calls); a sentence of the passage in
    another of the `languages`; a sentence with three rewrites, graded 0 to 5; a text with its class."""
    label_sets: dict[str, list[str]] = Field(default_factory=dict)
    """For classification: what is classified, and the labels, e.g. `{"tone of the text": [formal, casual]}`."""
    label_sets_share: float = Field(default=1.0, ge=0, le=1)
    """Share of classification rows that put a passage into one of `label_sets`; the generator invents task and text
    of the others, and of all without label sets."""
    prompt_order: Literal["passage_first", "passage_last"] = "passage_first"
    """`passage_first`: both calls and all queries of a passage share the prompt up to its end, which the engine reads
    once. `passage_last`: a prompt of its own per call, which the demo's generator of 135M parameters needs."""
    languages: dict[str, float] = Field(default={"English": 1.0})
    """Query languages and their weights."""
    words: dict[str, float] = Field(default={"5-10": 0.5, "10-20": 0.4, "20-40": 0.1})
    """Query lengths in words, `low-high`, and their weights."""
    max_passage_tokens: int = Field(default=512, ge=16)
    """Passages are shown to the generator up to this many tokens."""
    max_model_len: int = Field(default=2048, ge=256)
    """Context of the generator engine, tokens; a prompt that does not fit is rejected with that reason."""
    max_query_tokens: int = Field(default=96, ge=8)
    """Longest generated answer."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature of both calls."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus of both calls."""
    gates: GatesConfig = GatesConfig()
    """Which written queries are refused."""
    evaluation: WrittenQueriesConfig | None = WrittenQueriesConfig()
    """Queries for dev and held-out documents, where the corpus has other sources than Python; null = none."""
    max_retries: int = Field(default=1, ge=0)
    """How often a row with a bad answer is asked again with another seed before it is rejected."""
    engines: int = Field(default=1, ge=1)
    """vLLM engine replicas."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs per engine."""
    reader_gpus: int = Field(default=0, ge=0)
    """GPUs of each of the actors that find candidate personas, one for four engines; 0 = one CPU core, which is enough
    for a small `models.retrieval` and far too slow for one of 0.6B parameters (`qwen3emb plan` says so)."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Engine weights."""
    kv_cache_gb: float = Field(default=1.0, gt=0)
    """KV cache on CPU machines, GiB per engine."""
    threads: int = Field(default=1, ge=1)
    """CPU threads per engine on CPU machines."""
    max_num_seqs: int = Field(default=16, ge=1)
    """Sequences an engine decodes at once."""
    batch_size: int = Field(default=16, ge=1)
    """Rows handed to an engine at a time."""
    rows_per_block: int = Field(default=64, ge=1)
    """Rows per written file: what a killed run may have to do again."""

    @model_validator(mode="after")
    def _consistent(self) -> SynthesizeConfig:
        if any(w < 0 for w in self.tasks.values()) or not sum(self.tasks.values()) > 0:
            raise ValueError("tasks needs weights of at least 0, one of them above 0")
        if self.tasks.get("bitext", 0) > 0 and sum(w > 0 for w in self.languages.values()) < 2:
            raise ValueError("the task bitext translates into another language; name two or more languages")
        for name, labels in self.label_sets.items():
            if len(set(labels)) < max(2, len(labels)):
                raise ValueError(f"label_sets: {name!r} needs two or more different labels")
        return self


class FilterConfig(Section):
    """`filter`: keep pairs whose query-document cosine is above a threshold (paper section 3)."""

    model: str = "weak"
    """Embedding model that scores: `weak`, the name or directory of a model (of ours, of sentence-transformers), or an
    OpenAI-compatible server, `http://HOST:PORT/v1?model=NAME`."""
    threshold: float = Field(default=0.7, ge=-1, le=1)
    """Pairs at or below this cosine are dropped."""
    keep_share: float | None = Field(default=None, gt=0, le=1)
    """Instead of the threshold: keep this share of the scored pairs, those with the highest cosines."""
    round_trip: int | None = Field(default=None, ge=1)
    """Also drop a retrieval or bitext pair whose document is not among this many best of all scored documents for its
    query; null = off."""
    sample: int | None = Field(default=None, ge=1)
    """Score only this many pairs, drawn at random; the rest is left out of stage 2."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest query or document while scoring."""
    workers: int = Field(default=2, ge=1)
    """Encoding workers."""
    bins: int = Field(default=40, ge=2)
    """Bins of the histogram over [-1, 1]."""


class VetoConfig(Section):
    """A reranker that judges mined candidates: one that it takes for an answer is no negative."""

    model: str
    """Reranker, a model name or directory."""
    above: float = Field(default=0.5, ge=0, le=1)
    """A candidate with a higher probability of "yes" is left out."""
    candidates: int = Field(default=2, ge=1)
    """It judges this x `mine.negatives` candidates of each query."""
    max_tokens: int = Field(default=512, ge=64)
    """Longest query and document together, with the template."""


class MineConfig(Section):
    """`mine`: hard negatives from the corpus with positive-aware rules (follow-up report)."""

    model: str = "weak"
    """Embedding model that scores: `weak`, the name or directory of a model (of ours, of sentence-transformers), or an
    OpenAI-compatible server, `http://HOST:PORT/v1?model=NAME`."""
    negatives: int = Field(default=8, ge=0)
    """Hard negatives per query (the released advice for rerankers); a query with fewer candidates keeps what there is,
    and it is counted."""
    top_k: int = Field(default=50, ge=1)
    """Candidates retrieved per query."""
    skip_top: int = Field(default=0, ge=0)
    """Ranks left out at the top of the candidates, where unlabelled positives sit."""
    min_positive: float = Field(default=-1.0, ge=-1, le=1)
    """t+: a query is kept only if its positive scores above this."""
    margin: float = Field(default=0.0, ge=-2, le=2)
    """delta: a candidate is a negative only if its score < mean positive score + delta."""
    relative_margin: float | None = Field(default=None, ge=0, lt=1)
    """A candidate is a negative only if, also, its score < (1 - this) x mean positive score; 0.05 is a common choice
    for well-trained models."""
    veto: VetoConfig | None = None
    """A reranker that removes candidates which answer the query, e.g. `{model: qwen3-reranker-8b}`; null = none."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest query or document while scoring."""
    workers: int = Field(default=2, ge=1)
    """Encoding workers."""
    shard_rows: int = Field(default=50_000, ge=1)
    """Documents that one search task holds in memory: about this x dimensions x 4 bytes. The others stay on storage."""

    @model_validator(mode="after")
    def _consistent(self) -> MineConfig:
        judged = self.negatives * (self.veto.candidates if self.veto else 1)
        if self.skip_top + judged > self.top_k:
            raise ValueError("top_k must be at least skip_top + negatives (x veto.candidates)")
        return self
