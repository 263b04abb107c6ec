"""A model for other programs: a plain TensorFlow SavedModel and an ONNX file, neither of which needs ftbert to run."""

from ftbert.export.onnx_model import export_onnx
from ftbert.export.saved_model import export_saved_model

__all__ = ["export_onnx", "export_saved_model"]
