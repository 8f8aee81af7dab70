"""The stage `synthesize`: an LLM writes queries for passages, as one of many personas."""
