"""The command `qwen3emb`: one file per group of commands, which load what they need when they run."""
