// The op adapter for TensorFlow 2, on its C kernel API (tf2_api.h). Contract of the two ops: calls.h.
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "tf2_api.h"

namespace ftbert_op {
namespace {

const Tf2Api* tf = nullptr;

// ---- Owning handles -----------------------------------------------------------------------------------------------

struct StatusDeleter {
  void operator()(TF_Status* status) const { tf->TF_DeleteStatus(status); }
};
struct TensorDeleter {
  void operator()(TF_Tensor* tensor) const { tf->TF_DeleteTensor(tensor); }
};
struct ShapeDeleter {
  void operator()(TF_ShapeHandle* shape) const { tf->TF_DeleteShapeHandle(shape); }
};
using StatusPtr = std::unique_ptr<TF_Status, StatusDeleter>;
using TensorPtr = std::unique_ptr<TF_Tensor, TensorDeleter>;
using ShapePtr = std::unique_ptr<TF_ShapeHandle, ShapeDeleter>;

StatusPtr NewStatus() { return StatusPtr(tf->TF_NewStatus()); }
bool Ok(const StatusPtr& status) { return tf->TF_GetCode(status.get()) == 0; }

// ---- Kernel helpers -----------------------------------------------------------------------------------------------

void Fail(TF_OpKernelContext* context, const Result& result) {
  const StatusPtr status = NewStatus();
  tf->TF_SetStatus(status.get(), TensorFlowCode(result.code), result.message.c_str());
  tf->TF_OpKernelContext_Failure(context, status.get());
}

// This and NewOutput report their failure to TensorFlow themselves.
bool GetInput(TF_OpKernelContext* context, int index, TensorPtr* owner, Tensor* view) {
  const StatusPtr status = NewStatus();
  TF_Tensor* tensor = nullptr;
  tf->TF_GetInput(context, index, &tensor, status.get());
  if (!Ok(status)) {
    tf->TF_OpKernelContext_Failure(context, status.get());
    return false;
  }
  owner->reset(tensor);
  view->data = tf->TF_TensorData(tensor);
  view->shape.resize(tf->TF_NumDims(tensor));
  for (size_t i = 0; i < view->shape.size(); ++i) view->shape[i] = tf->TF_Dim(tensor, static_cast<int>(i));
  return true;
}

// A float output; an unwanted one is there too, empty, because an op's outputs must all be set.
bool NewOutput(TF_OpKernelContext* context, int index, bool wanted, std::vector<int64_t> shape, TensorPtr* owner,
               float** data) {
  if (!wanted) shape.assign(shape.size(), 0);
  size_t bytes = sizeof(float);
  for (int64_t size : shape) bytes *= static_cast<size_t>(size);
  const StatusPtr status = NewStatus();
  owner->reset(tf->TF_AllocateOutput(context, index, kTfFloat, shape.data(), static_cast<int>(shape.size()), bytes,
                                     status.get()));
  if (!Ok(status)) {
    tf->TF_OpKernelContext_Failure(context, status.get());
    return false;
  }
  *data = wanted ? static_cast<float*>(tf->TF_TensorData(owner->get())) : nullptr;
  return true;
}

// TensorFlow is called through C, which no exception may cross.
template <typename Body>
void Guarded(TF_OpKernelContext* context, const Body& body) {
  try {
    const Result result = body();
    if (!result.ok()) Fail(context, result);
  } catch (const std::bad_alloc&) {
    Fail(context, Result(3, "Out of memory on the host. Use a smaller batch."));
  }
}

// Reads attributes until one fails; the failure is reported to TensorFlow once.
class Attributes {
 public:
  explicit Attributes(TF_OpKernelConstruction* construction) : construction_(construction), status_(NewStatus()) {}

  int64_t Int(const char* name) {
    int64_t value = 0;
    if (Ok(status_)) tf->TF_OpKernelConstruction_GetAttrInt64(construction_, name, &value, status_.get());
    return value;
  }
  float Float(const char* name) {
    float value = 0;
    if (Ok(status_)) tf->TF_OpKernelConstruction_GetAttrFloat(construction_, name, &value, status_.get());
    return value;
  }
  bool Bool(const char* name) {
    TF_Bool value = 0;
    if (Ok(status_)) tf->TF_OpKernelConstruction_GetAttrBool(construction_, name, &value, status_.get());
    return value != 0;
  }
  std::string String(const char* name) {
    int32_t count = 0, size = 0;
    Size(name, &count, &size);
    std::string value(static_cast<size_t>(size), '\0');
    if (Ok(status_) && size > 0) {
      tf->TF_OpKernelConstruction_GetAttrString(construction_, name, &value[0], value.size(), status_.get());
    }
    return value;
  }
  std::vector<std::string> Strings(const char* name) {
    int32_t count = 0, size = 0;
    Size(name, &count, &size);
    std::vector<char*> starts(static_cast<size_t>(count));
    std::vector<size_t> lengths(starts.size());
    std::vector<char> storage(static_cast<size_t>(size));
    std::vector<std::string> values;
    if (Ok(status_) && count > 0) {
      tf->TF_OpKernelConstruction_GetAttrStringList(construction_, name, starts.data(), lengths.data(), count,
                                                    storage.data(), storage.size(), status_.get());
    }
    for (size_t i = 0; Ok(status_) && i < starts.size(); ++i) values.emplace_back(starts[i], lengths[i]);
    return values;
  }

  bool Finish() {
    if (Ok(status_)) return true;
    tf->TF_OpKernelConstruction_Failure(construction_, status_.get());
    return false;
  }

 private:
  void Size(const char* name, int32_t* count, int32_t* size) {
    if (Ok(status_)) tf->TF_OpKernelConstruction_GetAttrSize(construction_, name, count, size, status_.get());
    if (!Ok(status_)) *count = *size = 0;
    if (*count < 0) *count = 0;  // -1 for what is not a list
    if (*size < 0) *size = 0;
  }

  TF_OpKernelConstruction* construction_;
  StatusPtr status_;
};

// ---- FtbertRun ----------------------------------------------------------------------------------------------------

struct RunKernel {
  int64_t engine = 0;
  bool want_logits = true, want_pooled = false, want_first_states = false, want_token_states = false;

  static void* Create(TF_OpKernelConstruction* construction) {
    Attributes attributes(construction);
    std::unique_ptr<RunKernel> kernel(new RunKernel);
    kernel->engine = attributes.Int("engine");
    kernel->want_logits = attributes.Bool("want_logits");
    kernel->want_pooled = attributes.Bool("want_pooled");
    kernel->want_first_states = attributes.Bool("want_first_states");
    kernel->want_token_states = attributes.Bool("want_token_states");
    return attributes.Finish() ? kernel.release() : nullptr;
  }

  static void Compute(void* self, TF_OpKernelContext* context) {
    Guarded(context, [&] { return static_cast<RunKernel*>(self)->Compute(context); });
  }

  Result Compute(TF_OpKernelContext* context) const {
    RunRequest request;
    RunSizes sizes;
    request.engine = engine;
    TensorPtr inputs[3], outputs[4];
    if (!GetInput(context, 0, &inputs[0], &request.token_ids) ||
        !GetInput(context, 1, &inputs[1], &request.segment_ids) ||
        !GetInput(context, 2, &inputs[2], &request.row_splits)) {
      return Result();
    }
    const Result result = PrepareRun(request, &sizes);
    if (!result.ok()) return result;
    ftbert_outputs out = ftbert_outputs();
    if (!NewOutput(context, 0, want_logits, {sizes.rows, sizes.num_labels}, &outputs[0], &out.logits) ||
        !NewOutput(context, 1, want_pooled, {sizes.rows, sizes.hidden_size}, &outputs[1], &out.pooled) ||
        !NewOutput(context, 2, want_first_states, {sizes.rows, sizes.hidden_size}, &outputs[2], &out.first_states) ||
        !NewOutput(context, 3, want_token_states, {sizes.tokens, sizes.hidden_size}, &outputs[3], &out.token_states)) {
      return Result();
    }
    return Run(request, sizes, out);
  }

  static void Delete(void* self) { delete static_cast<RunKernel*>(self); }
};

// ---- FtbertEncoder ------------------------------------------------------------------------------------------------

struct EncoderKernel {
  explicit EncoderKernel(EncoderOptions options) : encoder(std::move(options)) {}
  Encoder encoder;
  bool want_sequence = true, want_pooled = true;

  static void* Create(TF_OpKernelConstruction* construction) {
    Attributes attributes(construction);
    EncoderOptions options;
    options.names = attributes.Strings("weight_names");
    options.num_heads = static_cast<int32_t>(attributes.Int("num_heads"));
    options.activation = static_cast<int32_t>(attributes.Int("activation"));
    options.norm_epsilon = attributes.Float("norm_epsilon");
    options.device = attributes.String("device");
    options.precision = static_cast<int32_t>(attributes.Int("precision"));
    options.threads = static_cast<int32_t>(attributes.Int("threads"));
    std::unique_ptr<EncoderKernel> kernel(new EncoderKernel(std::move(options)));
    kernel->want_sequence = attributes.Bool("want_sequence");
    kernel->want_pooled = attributes.Bool("want_pooled");
    return attributes.Finish() ? kernel.release() : nullptr;
  }

  static void Compute(void* self, TF_OpKernelContext* context) {
    Guarded(context, [&] { return static_cast<EncoderKernel*>(self)->Compute(context); });
  }

  Result Compute(TF_OpKernelContext* context) {
    std::vector<TensorPtr> owners(static_cast<size_t>(tf->TF_NumInputs(context)));
    std::vector<Tensor> views(owners.size());
    for (size_t i = 0; i < owners.size(); ++i) {
      if (!GetInput(context, static_cast<int>(i), &owners[i], &views[i])) return Result();
    }
    const std::vector<Tensor> weights(views.begin() + 3, views.end());
    PaddedCall call;
    const Result result = encoder.Prepare(weights, views[0], views[1], views[2], &call);
    if (!result.ok()) return result;
    TensorPtr outputs[2];
    float *sequence = nullptr, *pooled = nullptr;
    if (!NewOutput(context, 0, want_sequence, {call.rows, call.columns, call.hidden_size}, &outputs[0], &sequence) ||
        !NewOutput(context, 1, want_pooled, {call.rows, call.hidden_size}, &outputs[1], &pooled)) {
      return Result();
    }
    return Encoder::Run(call, sequence, pooled);
  }

  static void Delete(void* self) { delete static_cast<EncoderKernel*>(self); }
};

// ---- Shape inference ----------------------------------------------------------------------------------------------
// Ranks only: the C API gives a shape function no access to attributes, so it cannot know which outputs are wanted (an
// unwanted one is empty). The Python side, which knows, narrows the shapes with set_shape.

constexpr size_t kUnknownSize = static_cast<size_t>(-1);

bool CheckRank(TF_ShapeInferenceContext* context, int input, int64_t rank, TF_ShapeHandle* shape, TF_Status* status) {
  tf->TF_ShapeInferenceContextGetInput(context, input, shape, status);
  if (tf->TF_GetCode(status) != 0) return false;
  tf->TF_ShapeInferenceContextWithRank(context, shape, rank, shape, status);
  return tf->TF_GetCode(status) == 0;
}

void RunShapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  const ShapePtr shape(tf->TF_NewShapeHandle()), matrix(tf->TF_NewShapeHandle());
  for (int input = 0; input < 3; ++input) {
    if (!CheckRank(context, input, 1, shape.get(), status)) return;
  }
  const ShapePtr unknown(tf->TF_ShapeInferenceContextVectorFromSize(context, kUnknownSize));
  tf->TF_ShapeInferenceContextConcatenateShapes(context, unknown.get(), unknown.get(), matrix.get(), status);
  for (int output = 0; output < 4 && tf->TF_GetCode(status) == 0; ++output) {
    tf->TF_ShapeInferenceContextSetOutput(context, output, matrix.get(), status);
  }
}

void EncoderShapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  const ShapePtr shape(tf->TF_NewShapeHandle()), matrix(tf->TF_NewShapeHandle()), cube(tf->TF_NewShapeHandle());
  for (int input = 0; input < 3; ++input) {
    if (!CheckRank(context, input, 2, shape.get(), status)) return;
  }
  const ShapePtr unknown(tf->TF_ShapeInferenceContextVectorFromSize(context, kUnknownSize));
  tf->TF_ShapeInferenceContextConcatenateShapes(context, unknown.get(), unknown.get(), matrix.get(), status);
  if (tf->TF_GetCode(status) != 0) return;
  tf->TF_ShapeInferenceContextConcatenateShapes(context, matrix.get(), unknown.get(), cube.get(), status);
  if (tf->TF_GetCode(status) != 0) return;
  tf->TF_ShapeInferenceContextSetOutput(context, 0, cube.get(), status);
  tf->TF_ShapeInferenceContextSetOutput(context, 1, matrix.get(), status);
}

// ---- Registration -------------------------------------------------------------------------------------------------

std::string* Problem() {
  static std::string* problem = new std::string;
  return problem;
}

template <typename Kernel>
bool Register(const char* op, const std::vector<const char*>& inputs, const std::vector<const char*>& outputs,
              const std::vector<const char*>& attributes, void (*shapes)(TF_ShapeInferenceContext*, TF_Status*)) {
  TF_OpDefinitionBuilder* builder = tf->TF_NewOpDefinitionBuilder(op);
  for (const char* attribute : attributes) tf->TF_OpDefinitionBuilderAddAttr(builder, attribute);
  for (const char* input : inputs) tf->TF_OpDefinitionBuilderAddInput(builder, input);
  for (const char* output : outputs) tf->TF_OpDefinitionBuilderAddOutput(builder, output);
  // Stateful: never folded into a constant or merged, and one kernel (one engine) for all runs of a session.
  tf->TF_OpDefinitionBuilderSetIsStateful(builder, true);
  tf->TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, shapes);
  const StatusPtr status = NewStatus();
  tf->TF_RegisterOpDefinition(builder, status.get());
  if (Ok(status)) {
    TF_KernelBuilder* kernel =
        tf->TF_NewKernelBuilder(op, "CPU", &Kernel::Create, &Kernel::Compute, &Kernel::Delete);
    tf->TF_RegisterKernelBuilder(op, kernel, status.get());
  }
  if (!Ok(status)) *Problem() = std::string("TensorFlow refused to register the op ") + op + ".";
  return Ok(status);
}

bool RegisterAll() {
  tf = LoadTf2Api(Problem());
  if (tf == nullptr) return false;
  return Register<RunKernel>("FtbertRun", {"token_ids: int32", "segment_ids: int32", "row_splits: int32"},
                             {"logits: float", "pooled: float", "first_states: float", "token_states: float"},
                             {"engine: int", "want_logits: bool = true", "want_pooled: bool = false",
                              "want_first_states: bool = false", "want_token_states: bool = false"},
                             RunShapes) &&
         Register<EncoderKernel>(
             "FtbertEncoder",
             {"input_ids: int32", "input_mask: int32", "token_type_ids: int32", "weights: num_weights * float"},
             {"sequence: float", "pooled: float"},
             {"num_weights: int >= 1", "weight_names: list(string)", "num_heads: int", "activation: int",
              "norm_epsilon: float", "device: string = 'cpu'", "precision: int = 0", "threads: int = 0",
              "want_sequence: bool = true", "want_pooled: bool = true"},
             EncoderShapes);
}

// When dlopen runs this, TensorFlow listens to what is registered and makes its Python functions from it.
const bool registered = RegisterAll();

}  // namespace
}  // namespace ftbert_op

extern "C" {
// "" when the ops are registered, else why they are not.
FTBERT_API const char* ftbert_tf_problem(void) { return ftbert_op::Problem()->c_str(); }
}
