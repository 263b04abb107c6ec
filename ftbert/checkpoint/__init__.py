"""Checkpoints and model folders: read and written without TensorFlow."""

from ftbert.checkpoint.model_folder import ModelFolder, load_model_folder
from ftbert.checkpoint.readers import CheckpointReader, as_float32, find_checkpoint, open_checkpoint
from ftbert.checkpoint.saving import save_model_folder
from ftbert.checkpoint.tf_bundle import CheckpointWriter

__all__ = [
    "CheckpointReader",
    "CheckpointWriter",
    "ModelFolder",
    "as_float32",
    "find_checkpoint",
    "load_model_folder",
    "open_checkpoint",
    "save_model_folder",
]
