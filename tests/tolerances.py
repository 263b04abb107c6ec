"""How far results may differ from an oracle, in one place. Checks read `difference <= tolerance`, so that NaN fails."""

__all__ = ["RUNTIME_TOLERANCE", "TRANSFORMERS_TOLERANCE"]

# Largest absolute difference between an fp32 runtime and the fp64 oracle, on models with a hidden size below 100. The
# engine and TensorFlow add in different orders; 1e-5 is some 50 units in the last place of a state near 2.
RUNTIME_TOLERANCE = {"direct": 1e-5, "session": 1e-5, "tensorflow": 1e-5}

# A pretrained encoder of 6 layers against Hugging Face transformers on torch, fp32 both.
TRANSFORMERS_TOLERANCE = 1e-4
