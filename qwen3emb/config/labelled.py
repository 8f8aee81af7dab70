"""Configuration of labelled datasets. Imports no torch, ray or vllm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from qwen3emb.config.data import Section

__all__ = ["ColumnNames", "LabelledConfig", "LabelledDatasetConfig"]


class ColumnNames(Section):
    """Fields of a set's records where they have other names than usual (anchor, query, positive, pos, score, ...)."""

    query: str = ""
    """Field of the query or first sentence."""
    positive: str = ""
    """Field of the document that answers it, or of a list of them."""
    negatives: list[str] = Field(default_factory=list)
    """Fields of hard negatives, each a text or a list of texts."""
    grade: str = ""
    """Field of a human score or label of the pair; no other field then decides whether the pair is a positive."""
    label: str = ""
    """Field of a text's class."""


class LabelledDatasetConfig(Section):
    """One labelled dataset."""

    path: str
    """File, folder, glob or URI, e.g. `data/train.jsonl.gz`, `hf://datasets/ORG/NAME/data/*.parquet`."""
    format: Literal["auto", "columns", "flagembedding", "tevatron", "swift", "classification", "beir"] = "auto"
    """How records are written; `auto` decides by the fields of the first one."""
    kind: Literal["jsonl", "parquet", "csv", "tsv"] | None = None
    """Kind of file; default by its suffix. It must be given for a folder."""
    split: str = "train"
    """Judgments of a BEIR folder: qrels/SPLIT.tsv."""
    columns: ColumnNames = ColumnNames()
    """Fields with other names than usual."""
    task: Literal["retrieval", "bitext", "classification", "sts"] = "retrieval"
    """`classification`: only a row's own negatives count; `sts`: graded pairs, CoSENT."""
    instruction: str | None = None
    """Instruction of its queries; default `models.instruction`."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the set in the mixture; its share of the batches also grows with its number of rows."""
    languages: list[str] = Field(default_factory=list)
    """Codes of the languages of its texts, for the data card."""
    licence: str = ""
    """For the data card."""
    homepage: str = ""
    """Where it comes from, for the data card."""
    max_rows: int | None = Field(default=None, ge=1)
    """Keep at most this many rows, chosen by a hash of their ids."""
    max_positives: int = Field(default=4, ge=1)
    """At most this many rows from one record with several positives."""
    max_negatives: int = Field(default=16, ge=0)
    """Keep at most this many of the set's own negatives per row."""
    min_grade: float | None = None
    """Pairs with a lower score are no positives; needed where pairs have different scores or labels and the format does
    not say what they mean (docs/data.md)."""
    heldout_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the queries, drawn by a hash, that are never trained on and become a held-out set of the run (task
    `retrieval` only). All documents of the set are searched."""
    dev_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the queries that become a dev set in the same way."""
    max_heldout_queries: int = Field(default=200, ge=1)
    """At most this many held-out queries; the others stay in training."""
    max_dev_queries: int = Field(default=50, ge=1)
    """At most this many dev queries; the others stay in training."""
    mine: bool = True
    """Rows with fewer negatives than `mine.negatives` get mined ones from the documents of their set."""

    @model_validator(mode="after")
    def _consistent(self) -> LabelledDatasetConfig:
        if self.format == "classification" and self.task != "classification":
            raise ValueError("format classification goes with task classification")
        if self.heldout_share + self.dev_share and self.task != "retrieval":
            raise ValueError(f"heldout_share and dev_share go with task retrieval, not {self.task}")
        if self.heldout_share + self.dev_share >= 1:
            raise ValueError("dev_share + heldout_share must be below 1, or nothing is left to train on")
        return self


class LabelledConfig(Section):
    """`labelled`: datasets with human labels into training rows (paper section 4)."""

    sets: dict[str, LabelledDatasetConfig] = Field(default_factory=dict)
    """Datasets by name; their rows have the name in the column `dataset`."""
    catalogue: str | None = None
    """YAML file with further sets by name, e.g. `examples/datasets.yaml`."""
    use: list[str] = Field(default_factory=list)
    """Names of sets of the catalogue."""
    skip_missing: bool = False
    """Go on without a set that is not there or that its file system cannot reach."""
    decontaminate: float = Field(default=0.8, gt=0, le=1)
    """Rows with a text this similar (MinHash Jaccard) to a query or document of the held-out or dev set are left
    out."""
    decontaminate_ngrams: float = Field(default=0.5, gt=0, le=1)
    """Rows with a text that contains this share of such a query's or document's runs of eight words are left out."""
