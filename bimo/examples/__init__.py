"""Training examples: what a person has (texts, pairs, records, conversations, files) on its way to rows of ids."""
