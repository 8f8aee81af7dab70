"""Models as other libraries open them: files, prompts, tokenizers, model cards."""
