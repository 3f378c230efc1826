"""Metrics: predicted and gold strings in, numbers out."""

METRICS = ("exact_match", "accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman",
           "rouge1", "rouge2", "rougeL")  # what a task file may name
