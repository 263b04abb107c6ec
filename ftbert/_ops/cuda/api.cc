// The two functions that libftbert looks up here, and the backend's description of itself.
#include <cstdio>
#include <cstring>
#include <exception>

#include "core/cuda_loader.h"
#include "cuda/backend.h"
#include "cuda/lt.h"

namespace ftbert {
namespace cuda {
namespace {

const char* PrecisionName(Precision precision) {
  switch (precision) {
    case Precision::kFloat32:
      return "fp32";
    case Precision::kBFloat16:
      return "bf16";
    case Precision::kFloat16:
      return "fp16";
    case Precision::kInt8:
      return "int8";
    case Precision::kFloat8:
      return "fp8";
  }
  return "";
}

Element ElementOf(Precision precision) {
  if (precision == Precision::kFloat32) return Element::kFloat;
  return precision == Precision::kBFloat16 ? Element::kBFloat : Element::kHalf;
}

}  // namespace

int ActOf(Activation activation) {
  switch (activation) {
    case Activation::kGeluErf:
      return static_cast<int>(Act::kGeluErf);
    case Activation::kGeluTanh:
      return static_cast<int>(Act::kGeluTanh);
    case Activation::kRelu:
      return static_cast<int>(Act::kRelu);
  }
  return 0;
}

CudaBackend::CudaBackend(const Config& config, Precision precision, const Machine& machine)
    : config_(config),
      precision_(precision),
      machine_(machine),
      element_(ElementOf(precision)),
      pitch_(RoundUp(config.hidden_size, 16)),
      wide_(RoundUp(config.intermediate_size, 16)),
      plans_(machine) {}

std::string CudaBackend::Name() const {
  return "cuda:" + std::to_string(machine_.device) + " " + machine_.name + " " + PrecisionName(precision_);
}

std::string CudaBackend::DescribeFields() const {
  size_t scratch = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    scratch = workspace_bytes_;
  }
  Slots unused;
  const size_t per_token = (Arrange(nullptr, 1 << 16, 1, &unused) - Arrange(nullptr, 1 << 15, 1, &unused)) >> 15;
  const std::string capability =
      std::to_string(machine_.capability / 10) + "." + std::to_string(machine_.capability % 10);
  const std::string warning = plans_.warning();
  return "\"device\": " + Quote("cuda:" + std::to_string(machine_.device)) +
         ", \"precision\": " + Quote(PrecisionName(precision_)) +
         ", \"isa\": " + Quote("compute capability " + capability) +
         ", \"threads\": 0, \"card\": " + Quote(machine_.name) +
         ", \"memory_bytes\": " + std::to_string(machine_.memory) + ", \"driver\": " + Quote(DriverRelease()) +
         ", \"runtime\": " + Quote(RuntimeVersion()) + ", \"scratch_bytes\": " + std::to_string(scratch) +
         ", \"scratch_bytes_per_token\": " + std::to_string(per_token) +
         ", \"row_tile\": " + std::to_string(HasTiles() ? kRowsTile : 0) +
         ", \"tuned_products\": " + std::to_string(plans_.measured()) +
         (machine_.switches.empty() ? "" : ", \"switches\": " + Quote(machine_.switches.substr(1))) +
         ", \"warning\": " + (warning.empty() ? "null" : Quote(warning));
}

}  // namespace cuda
}  // namespace ftbert

extern "C" {

__attribute__((visibility("default"))) int ftbert_cuda_backend_create(const ftbert::Config* config,
                                                                      const ftbert::Options* options,
                                                                      ftbert::Backend** backend, char* error,
                                                                      size_t error_size) {
  ftbert::Status status;
  try {
    ftbert::cuda::Machine machine;
    status = ftbert::cuda::OpenDevice(options->device, options->precision, &machine);
    if (status.ok()) {
      ftbert::cuda::DeviceGuard guard(machine.device);
      status = ftbert::cuda::FromCuda(cudaFree(nullptr), "starting the card");  // makes the context
      if (status.ok()) *backend = new ftbert::cuda::CudaBackend(*config, options->precision, machine);
    }
  } catch (const std::exception& problem) {
    status = ftbert::Status(ftbert::Code::kInternal, std::string("Unexpected failure: ") + problem.what());
  }
  if (!status.ok() && error_size > 0) std::snprintf(error, error_size, "%s", status.message().c_str());
  return static_cast<int>(status.code());
}

__attribute__((visibility("default"))) int64_t ftbert_cuda_describe(char* json, size_t size) {
  const std::string text = ftbert::cuda::DescribeDevices();
  if (size > 0) std::snprintf(json, size, "%s", text.c_str());
  return static_cast<int64_t>(text.size());
}

}  // extern "C"
