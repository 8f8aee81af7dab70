"""Rows before training: corpus, personas, synthesis, filtering, hard negatives."""
