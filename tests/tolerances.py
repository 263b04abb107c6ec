"""How far results may differ from an oracle, in one place. Checks read `difference <= tolerance`, so that NaN fails."""

__all__ = ["CUDA_TOLERANCES", "RUNTIME_TOLERANCE", "TRANSFORMERS_TOLERANCE"]

# Largest absolute difference between an fp32 runtime and the fp64 oracle, on models with a hidden size below 100. The
# engine and TensorFlow add in different orders; 1e-5 is some 50 units in the last place of a state near 2.
RUNTIME_TOLERANCE = {"direct": 1e-5, "session": 1e-5, "tensorflow": 1e-5}

# A pretrained encoder of 6 layers against Hugging Face transformers on torch, fp32 both.
TRANSFORMERS_TOLERANCE = 1e-4

# Largest absolute error of logits and states of the CUDA engine on small models, by precision.
CUDA_TOLERANCES = {"fp32": 3e-5, "fp16": 2e-2, "bf16": 1.5e-1, "fp8": 1.0}
