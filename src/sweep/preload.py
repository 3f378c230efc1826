"""What a training child needs before its first tensor. Imported by the forkserver (forkserver.py) and nobody else.

Without it everything works, a child only imports by itself what is missing here: tests/bench_sweep.py measures it.
"""
# ruff: noqa: F401

import accelerate
import evaluate
import peft.utils.transformers_weight_conversion
import pyarrow.parquet
import torch.profiler._cupti_monitor
import transformers.models.t5.modeling_t5
import transformers.pipelines
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import src.training.run

get_checkpoint_conversion_mapping("t5")  # compiles a thousand patterns, once in a process
