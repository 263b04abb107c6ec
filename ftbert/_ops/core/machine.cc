#include "core/backend.h"
#include "core/cuda_loader.h"

namespace ftbert {

std::string DescribeMachine() {
  return "{\"cpu\": {" + DescribeCpuFields() + "}, \"cuda\": " + DescribeCuda() + "}";
}

}  // namespace ftbert
