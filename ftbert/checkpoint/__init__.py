"""Checkpoints and model folders: read and written without TensorFlow."""

from ftbert.checkpoint.readers import CheckpointReader, as_float32, find_checkpoint, open_checkpoint
from ftbert.checkpoint.tf_bundle import CheckpointWriter

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "as_float32",
    "find_checkpoint",
    "open_checkpoint",
]
