"""What is done to texts: templates, identity, chunking, languages, reading files, near duplicates, decontamination."""
