"""Turns the benchmark's Hugging Face folder into what each peer reads. Runs in the peers' environment."""

import os
import sys

import numpy as np


def export(model):
    folder = os.path.join(model, "onnx")
    os.makedirs(folder, exist_ok=True)
    plain = os.path.join(folder, "model.onnx")
    if not os.path.exists(plain):
        export_onnx(model, plain)
    optimized = os.path.join(folder, "optimized_fp32.onnx")
    if not os.path.exists(optimized):
        optimize(model, plain, optimized)
    quantized = os.path.join(folder, "optimized_int8.onnx")
    if not os.path.exists(quantized):
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            optimized,
            quantized + ".tmp",
            weight_type=QuantType.QInt8,
            per_channel=True,
            # The fused operators of ONNX Runtime's own domain are unknown to onnx's shape inference.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        os.replace(quantized + ".tmp", quantized)
    if not os.path.exists(os.path.join(folder, "openvino_int8.xml")):
        quantize_openvino(plain, os.path.join(folder, "openvino_int8.xml"))
    target = os.path.join(model, "ctranslate2")
    if not os.path.exists(os.path.join(target, "model.bin")):
        convert_ctranslate2(model, target)


def export_onnx(model, path):
    import torch
    from transformers import BertForSequenceClassification

    net = BertForSequenceClassification.from_pretrained(model, attn_implementation="eager").eval()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.net(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits

    ids = torch.randint(5, 1000, (2, 16))
    axes = {0: "rows", 1: "length"}
    torch.onnx.export(
        Logits(),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        path + ".tmp",
        input_names=["input_ids", "attention_mask", "token_type_ids"],
        output_names=["logits"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "token_type_ids": axes, "logits": {0: "rows"}},
        opset_version=17,
        dynamo=False,
    )
    os.replace(path + ".tmp", path)


def optimize(model, plain, path):
    import json

    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    fused = optimizer.optimize_model(
        plain,
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        optimization_options=FusionOptions("bert"),
    )
    print("fused operators:", fused.get_fused_operator_statistics())
    fused.save_model_to_file(path + ".tmp")
    os.replace(path + ".tmp", path)


def convert_ctranslate2(model, target):
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        print("CTranslate2 left out:", error)
        return
    TransformersConverter(model, load_as_float16=False).convert(target, force=True)


def quantize_openvino(plain, path):
    try:
        import nncf
        import openvino as ov
    except ImportError as error:
        print("OpenVINO int8 left out:", error)
        return
    random = np.random.RandomState(0)

    def sample(length):
        ids = random.randint(5, 1000, (1, length)).astype(np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}

    data = nncf.Dataset([sample(int(length)) for length in random.randint(8, 128, 64)])
    network = nncf.quantize(
        ov.Core().read_model(plain),
        data,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=64,
        fast_bias_correction=True,
    )
    ov.save_model(network, path, compress_to_fp16=False)


if __name__ == "__main__":
    export(sys.argv[1])
