"""Checkpoints and model folders: read and written without TensorFlow."""

from ftbert.checkpoint.cast import CastReport, to_bf16, to_fp16, to_fp32
from ftbert.checkpoint.convert import ConvertReport, convert
from ftbert.checkpoint.model_folder import ModelFolder, load_model_folder
from ftbert.checkpoint.readers import CheckpointReader, as_float32, find_checkpoint, open_checkpoint
from ftbert.checkpoint.saving import save_model_folder
from ftbert.checkpoint.tf_bundle import CheckpointWriter
from ftbert.checkpoint.tools import AverageReport, Inspection, StripReport, average, inspect, strip_optimizer

__all__ = [
    "AverageReport",
    "CastReport",
    "CheckpointReader",
    "CheckpointWriter",
    "ConvertReport",
    "Inspection",
    "ModelFolder",
    "StripReport",
    "as_float32",
    "average",
    "convert",
    "find_checkpoint",
    "inspect",
    "load_model_folder",
    "open_checkpoint",
    "save_model_folder",
    "strip_optimizer",
    "to_bf16",
    "to_fp16",
    "to_fp32",
]
