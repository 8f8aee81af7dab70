"""The stage `filter`: keeps the synthetic pairs whose cosine is above a threshold."""
