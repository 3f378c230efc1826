"""Tasks, their templates and their rows: from a task file to (input, target) texts."""
