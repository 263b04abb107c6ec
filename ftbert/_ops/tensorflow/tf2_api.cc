#include "tf2_api.h"

#include <dlfcn.h>

namespace ftbert_op {

const Tf2Api* LoadTf2Api(std::string* problem) {
  // RTLD_NOLOAD: only what `import tensorflow` has loaded. Opening another copy would give a second, empty op registry.
  void* framework = dlopen("libtensorflow_framework.so.2", RTLD_NOW | RTLD_NOLOAD);
  if (framework == nullptr) {
    *problem =
        "Expected TensorFlow 2 in this process, found no libtensorflow_framework.so.2. Open this library through "
        "ftbert (which imports TensorFlow first); under TensorFlow 1.x it is libftbert_tf1.so that serves.";
    return nullptr;
  }
  static Tf2Api api;  // lives as long as the process: kernels call through it until the very end
#define FTBERT_TF2_LOOK_UP(result, name, arguments)                                              \
  api.name = reinterpret_cast<result(*) arguments>(dlsym(framework, #name));                     \
  if (api.name == nullptr) {                                                                     \
    *problem = "The TensorFlow of this process lacks the C function " #name                      \
               ". Install TensorFlow 2.8 or newer: pip install -U tensorflow-cpu";               \
    return nullptr;                                                                              \
  }
  FTBERT_TF2_FUNCTIONS(FTBERT_TF2_LOOK_UP)
#undef FTBERT_TF2_LOOK_UP
  return &api;
}

}  // namespace ftbert_op
