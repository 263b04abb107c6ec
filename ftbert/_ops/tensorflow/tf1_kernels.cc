// The op adapter for TensorFlow 1.x, on its C++ API, compiled against the very TensorFlow that is installed. Contract
// of the two ops: calls.h.
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/public/version.h"

namespace ftbert_op {
namespace {

namespace tf = ::tensorflow;
using tf::shape_inference::InferenceContext;
using tf::shape_inference::ShapeHandle;

tf::Status ToStatus(const Result& result) {
  if (result.ok()) return tf::Status();
  return tf::Status(static_cast<tf::error::Code>(TensorFlowCode(result.code)), result.message);
}

Tensor View(const tf::Tensor& tensor) {
  Tensor view;
  view.data = tensor.tensor_data().data();
  for (int i = 0; i < tensor.dims(); ++i) view.shape.push_back(tensor.dim_size(i));
  return view;
}

// A float output; an unwanted one is there too, empty, because an op's outputs must all be set.
tf::Status NewOutput(tf::OpKernelContext* context, int index, bool wanted, const std::vector<int64_t>& shape,
                     float** data) {
  tf::TensorShape tensor_shape;
  for (int64_t size : shape) tensor_shape.AddDim(wanted ? size : 0);
  tf::Tensor* tensor = nullptr;
  const tf::Status status = context->allocate_output(index, tensor_shape, &tensor);
  *data = status.ok() && wanted ? tensor->flat<float>().data() : nullptr;
  return status;
}

class RunKernel : public tf::OpKernel {
 public:
  explicit RunKernel(tf::OpKernelConstruction* construction) : tf::OpKernel(construction) {
    tf::int64 engine = 0;
    OP_REQUIRES_OK(construction, construction->GetAttr("engine", &engine));
    OP_REQUIRES_OK(construction, construction->GetAttr("want_logits", &want_logits_));
    OP_REQUIRES_OK(construction, construction->GetAttr("want_pooled", &want_pooled_));
    OP_REQUIRES_OK(construction, construction->GetAttr("want_first_states", &want_first_states_));
    OP_REQUIRES_OK(construction, construction->GetAttr("want_token_states", &want_token_states_));
    engine_ = engine;
  }

  void Compute(tf::OpKernelContext* context) override {
    RunRequest request;
    RunSizes sizes;
    request.engine = engine_;
    request.token_ids = View(context->input(0));
    request.segment_ids = View(context->input(1));
    request.row_splits = View(context->input(2));
    OP_REQUIRES_OK(context, ToStatus(PrepareRun(request, &sizes)));
    ftbert_outputs out = ftbert_outputs();
    OP_REQUIRES_OK(context, NewOutput(context, 0, want_logits_, {sizes.rows, sizes.num_labels}, &out.logits));
    OP_REQUIRES_OK(context, NewOutput(context, 1, want_pooled_, {sizes.rows, sizes.hidden_size}, &out.pooled));
    OP_REQUIRES_OK(context,
                   NewOutput(context, 2, want_first_states_, {sizes.rows, sizes.hidden_size}, &out.first_states));
    OP_REQUIRES_OK(context,
                   NewOutput(context, 3, want_token_states_, {sizes.tokens, sizes.hidden_size}, &out.token_states));
    OP_REQUIRES_OK(context, ToStatus(Run(request, sizes, out)));
  }

 private:
  int64_t engine_ = 0;
  bool want_logits_ = true, want_pooled_ = false, want_first_states_ = false, want_token_states_ = false;
};

EncoderOptions ReadOptions(tf::OpKernelConstruction* construction) {
  EncoderOptions options;
  tf::int32 num_heads = 0, activation = 0, precision = 0, threads = 0;
  tf::Status status = construction->GetAttr("weight_names", &options.names);
  if (status.ok()) status = construction->GetAttr("num_heads", &num_heads);
  if (status.ok()) status = construction->GetAttr("activation", &activation);
  if (status.ok()) status = construction->GetAttr("norm_epsilon", &options.norm_epsilon);
  if (status.ok()) status = construction->GetAttr("device", &options.device);
  if (status.ok()) status = construction->GetAttr("precision", &precision);
  if (status.ok()) status = construction->GetAttr("threads", &threads);
  if (!status.ok()) construction->CtxFailure(status);
  options.num_heads = num_heads;
  options.activation = activation;
  options.precision = precision;
  options.threads = threads;
  return options;
}

class EncoderKernel : public tf::OpKernel {
 public:
  explicit EncoderKernel(tf::OpKernelConstruction* construction)
      : tf::OpKernel(construction), encoder_(ReadOptions(construction)) {
    OP_REQUIRES_OK(construction, construction->GetAttr("want_sequence", &want_sequence_));
    OP_REQUIRES_OK(construction, construction->GetAttr("want_pooled", &want_pooled_));
  }

  void Compute(tf::OpKernelContext* context) override {
    std::vector<Tensor> weights;
    for (int i = 3; i < context->num_inputs(); ++i) weights.push_back(View(context->input(i)));
    PaddedCall call;
    OP_REQUIRES_OK(context, ToStatus(encoder_.Prepare(weights, View(context->input(0)), View(context->input(1)),
                                                      View(context->input(2)), &call)));
    float *sequence = nullptr, *pooled = nullptr;
    OP_REQUIRES_OK(context,
                   NewOutput(context, 0, want_sequence_, {call.rows, call.columns, call.hidden_size}, &sequence));
    OP_REQUIRES_OK(context, NewOutput(context, 1, want_pooled_, {call.rows, call.hidden_size}, &pooled));
    OP_REQUIRES_OK(context, ToStatus(Encoder::Run(call, sequence, pooled)));
  }

 private:
  Encoder encoder_;
  bool want_sequence_ = true, want_pooled_ = true;
};

// Ranks only, as in TensorFlow 2's adapter: the Python side narrows the shapes.
tf::Status SetRanks(InferenceContext* context, int input_rank, const std::vector<int>& output_ranks) {
  ShapeHandle shape;
  for (int input = 0; input < 3; ++input) {
    TF_RETURN_IF_ERROR(context->WithRank(context->input(input), input_rank, &shape));
  }
  for (size_t output = 0; output < output_ranks.size(); ++output) {
    context->set_output(static_cast<int>(output), context->UnknownShapeOfRank(output_ranks[output]));
  }
  return tf::Status();
}

REGISTER_OP("FtbertRun")
    .Attr("engine: int")
    .Attr("want_logits: bool = true")
    .Attr("want_pooled: bool = false")
    .Attr("want_first_states: bool = false")
    .Attr("want_token_states: bool = false")
    .Input("token_ids: int32")
    .Input("segment_ids: int32")
    .Input("row_splits: int32")
    .Output("logits: float")
    .Output("pooled: float")
    .Output("first_states: float")
    .Output("token_states: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) { return SetRanks(context, 1, {2, 2, 2, 2}); });

REGISTER_OP("FtbertEncoder")
    .Attr("num_weights: int >= 1")
    .Attr("weight_names: list(string)")
    .Attr("num_heads: int")
    .Attr("activation: int")
    .Attr("norm_epsilon: float")
    .Attr("device: string = 'cpu'")
    .Attr("precision: int = 0")
    .Attr("threads: int = 0")
    .Attr("want_sequence: bool = true")
    .Attr("want_pooled: bool = true")
    .Input("input_ids: int32")
    .Input("input_mask: int32")
    .Input("token_type_ids: int32")
    .Input("weights: num_weights * float")
    .Output("sequence: float")
    .Output("pooled: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) { return SetRanks(context, 2, {3, 2}); });

REGISTER_KERNEL_BUILDER(Name("FtbertRun").Device(tf::DEVICE_CPU), RunKernel);
REGISTER_KERNEL_BUILDER(Name("FtbertEncoder").Device(tf::DEVICE_CPU), EncoderKernel);

}  // namespace
}  // namespace ftbert_op

extern "C" {
FTBERT_API const char* ftbert_tf_problem(void) { return ""; }
// The TensorFlow that this library was compiled against; its C++ classes fit no other release line.
FTBERT_API const char* ftbert_tf_version(void) { return TF_VERSION_STRING; }
}
