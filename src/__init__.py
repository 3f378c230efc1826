"""Fine-tune language models on many tasks or instructions, and find out which help each other."""

DEFAULT_TASK_DIR = "data/tasks"
DEFAULT_DATA_DIR = "data/splits/default"
DEFAULT_CACHE_DIR = "./cache/"
