"""One training: flags, tokenised rows, model, trainer, record, experiment."""
