#include "cuda/device.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace ftbert {
namespace cuda {
namespace {

constexpr int kLeastCapability = 80;

std::string VersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Why no card can be used at all, or empty.
std::string Problem(int* count) {
  *count = 0;
  const cudaError_t error = cudaGetDeviceCount(count);
  if (error == cudaSuccess && *count > 0) return "";
  cudaGetLastError();
  const std::string driver = DriverVersion();
  switch (error) {
    case cudaErrorInsufficientDriver:
      if (driver.empty()) return "No NVIDIA driver was found. Install the driver of your card, or use device=\"cpu\".";
      return "The NVIDIA driver runs CUDA up to " + driver + " and this build needs " + RuntimeVersion() +
             ". Update the driver, or build ftbert with a CUDA toolkit of at most " + driver + ".";
    case cudaErrorSystemDriverMismatch:
      return "The NVIDIA driver's kernel module and its libraries are of different versions. Restart the machine, or "
             "install the driver again.";
    case cudaSuccess:
    case cudaErrorNoDevice:
      return "The NVIDIA driver finds no card. Check nvidia-smi and CUDA_VISIBLE_DEVICES, or use device=\"cpu\".";
    default:
      return std::string("CUDA does not start: ") + cudaGetErrorString(error) +
             ". Check nvidia-smi, or use device=\"cpu\".";
  }
}

}  // namespace

std::string DriverRelease() {
  std::string release;
  if (std::FILE* file = std::fopen("/sys/module/nvidia/version", "r")) {
    char text[64] = "";
    if (std::fgets(text, sizeof text, file) != nullptr) release = text;
    std::fclose(file);
    while (!release.empty() && std::isspace(static_cast<unsigned char>(release.back()))) release.pop_back();
  }
  return release.empty() ? DriverVersion() : release;
}

std::string DriverVersion() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "";
  return VersionText(version);
}

std::string RuntimeVersion() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return VersionText(version);
}

std::string Quote(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

Status FromCuda(cudaError_t error, const std::string& doing) {
  if (error == cudaSuccess) return Status();
  if (error == cudaErrorMemoryAllocation) {
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    cudaGetLastError();
    return Status(Code::kOutOfMemory, "Out of GPU memory " + doing + ": " + std::to_string(free >> 20) + " of " +
                                          std::to_string(total >> 20) +
                                          " MiB are free. Use a smaller batch, or free memory on the card.");
  }
  return Status(Code::kInternal, std::string("CUDA failed ") + doing + ": " + cudaGetErrorString(error) + ".");
}

namespace {

// What may be switched off (docs/roofline.md) to find out what a fault comes from.
struct Switch {
  const char* name;
  bool Machine::*member;
};
constexpr Switch kSwitches[] = {{"early-start", &Machine::dependent_launch}, {"graphs", &Machine::graphs},
                                {"watching", &Machine::watching},            {"clusters", &Machine::clusters},
                                {"prefetch", &Machine::prefetch},            {"cublaslt", &Machine::lt},
                                {"tiles", &Machine::tiles}};

// FTBERT_CUDA_DISABLE: names with commas between.
Status ReadSwitches(Machine* machine) {
  const char* given = std::getenv("FTBERT_CUDA_DISABLE");
  std::string names;
  for (const Switch& s : kSwitches) names += std::string(names.empty() ? "" : ", ") + s.name;
  std::istringstream words(given != nullptr ? given : "");
  for (std::string word; std::getline(words, word, ',');) {
    const Switch* found = nullptr;
    for (const Switch& s : kSwitches) found = word == s.name ? &s : found;
    if (found == nullptr && !word.empty()) {
      return Status(Code::kInvalidArgument,
                    "FTBERT_CUDA_DISABLE: expected names out of " + names + " with commas between, got \"" + word +
                        "\".");
    }
    if (found != nullptr) machine->*found->member = false, machine->switches += std::string(" no ") + found->name;
  }
  return Status();
}

}  // namespace

Status OpenDevice(const std::string& device, Precision precision, Machine* machine) {
  int index = 0;
  if (device != "cuda") {
    char* end = nullptr;
    const std::string number = device.compare(0, 5, "cuda:") == 0 ? device.substr(5) : "";
    const long value = std::strtol(number.c_str(), &end, 10);
    if (number.empty() || !std::isdigit(static_cast<unsigned char>(number[0])) || *end != '\0' || value > 1023) {
      return Status(Code::kInvalidArgument,
                    "Expected the device \"cuda\" or \"cuda:<index>\", got \"" + device + "\".");
    }
    index = static_cast<int>(value);
  }
  int count = 0;
  const std::string problem = Problem(&count);
  if (!problem.empty()) return Status(Code::kUnavailable, problem);
  if (index >= count) {
    return Status(Code::kUnavailable, "Expected a card of index 0 to " + std::to_string(count - 1) + ", got \"" +
                                          device + "\". Check CUDA_VISIBLE_DEVICES.");
  }
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) return Status(Code::kUnavailable, FromCuda(error, "looking at the card").message());
  machine->device = index;
  machine->sms = properties.multiProcessorCount;
  machine->sm_shared = static_cast<int>(properties.sharedMemPerMultiprocessor);
  machine->shared_reserved = static_cast<int>(properties.reservedSharedMemPerBlock);
  machine->cta_shared = static_cast<int>(properties.sharedMemPerBlockOptin);
  machine->capability = properties.major * 10 + properties.minor;
  machine->name = properties.name;
  machine->memory = properties.totalGlobalMem;
  if (machine->capability < kLeastCapability) {
    return Status(Code::kUnavailable,
                  "Expected a card of compute capability 8.0 (Ampere) or newer, got " + machine->name + " with " +
                      std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                      ". Use device=\"cpu\" on this machine.");
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  bool waits = false;
  if (machine->capability >= 90) {
    DeviceGuard guard(index);
    const cudaError_t started = FindCode(&machine->hopper, &waits);
    if (started != cudaSuccess) {
      return Status(Code::kUnavailable, FromCuda(started, "starting " + machine->name).message() +
                                            " Build ftbert with this card's architecture in FTBERT_CUDA_ARCHS.");
    }
    if (machine->hopper && FindNormClusters(machine->norm_clusters) != cudaSuccess) {
      cudaGetLastError();
      for (int& clusters : machine->norm_clusters) clusters = 0;
    }
  }
  // In graphs since 12.3. Code for older cards, compiled for this one by its driver, would start early and not wait.
  machine->dependent_launch = waits && driver >= 12030;
  const Status switched = ReadSwitches(machine);
  if (!switched.ok()) return switched;
  if (precision == Precision::kInt8) {
    return Status(Code::kUnavailable, "int8 does not run on a GPU. Use precision=\"fp16\", or \"fp8\" on Hopper.");
  }
  if (precision == Precision::kFloat8 && !machine->hopper) {
    const std::string remedy = machine->capability == 90 ? ". Build ftbert with 90a in FTBERT_CUDA_ARCHS, or use"
                                                         : ". Use";
    return Status(Code::kUnavailable, "fp8 needs a Hopper card (compute capability 9.0) and code built for it, got " +
                                          machine->name + remedy + " precision=\"fp16\".");
  }
  return Status();
}

std::string DescribeDevices() {
  int count = 0;
  const std::string problem = Problem(&count);
  std::string devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
    devices += std::string(devices.empty() ? "" : ", ") + "{\"index\": " + std::to_string(i) +
               ", \"name\": " + Quote(p.name) + ", \"compute_capability\": \"" + std::to_string(p.major) + "." +
               std::to_string(p.minor) + "\", \"memory_bytes\": " + std::to_string(p.totalGlobalMem) +
               ", \"usable\": " + (p.major * 10 + p.minor >= kLeastCapability ? "true" : "false") + "}";
  }
  const std::string driver = DriverRelease();
  return "{\"devices\": [" + devices + "], \"driver\": " + (driver.empty() ? "null" : Quote(driver)) +
         ", \"runtime\": " + Quote(RuntimeVersion()) + ", \"problem\": " + (problem.empty() ? "null" : Quote(problem)) +
         "}";
}

}  // namespace cuda
}  // namespace ftbert
