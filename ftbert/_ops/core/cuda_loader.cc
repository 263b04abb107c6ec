#include "core/cuda_loader.h"

#include <dlfcn.h>

#include <mutex>
#include <string>

namespace ftbert {
namespace {

struct CudaLibrary {
  ftbert_cuda_backend_create_fn create = nullptr;
  ftbert_cuda_describe_fn describe = nullptr;
  std::string problem;
};

std::string FolderOfThisLibrary() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&FolderOfThisLibrary), &info) == 0 || info.dli_fname == nullptr) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

// Opened once and never closed: CUDA's own threads may outlive every engine.
const CudaLibrary& Library() {
  static std::once_flag once;
  static CudaLibrary* library = new CudaLibrary;
  std::call_once(once, [] {
    const std::string path = FolderOfThisLibrary() + "libftbert_cuda.so";
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* why = dlerror();
      library->problem = std::string("ftbert's CUDA library could not be opened (") + (why ? why : "no reason given") +
                         "). If ftbert was built without CUDA, install a CUDA toolkit with nvcc and build it again "
                         "with FTBERT_CUDA=1.";
      return;
    }
    library->create =
        reinterpret_cast<ftbert_cuda_backend_create_fn>(dlsym(handle, "ftbert_cuda_backend_create"));
    library->describe = reinterpret_cast<ftbert_cuda_describe_fn>(dlsym(handle, "ftbert_cuda_describe"));
    if (library->create == nullptr || library->describe == nullptr) {
      library->problem = path + " is of another version of ftbert. Install ftbert again.";
    }
  });
  return *library;
}

std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

}  // namespace

Status NewCudaBackend(const Config& config, const Options& options, std::unique_ptr<Backend>* backend) {
  const CudaLibrary& library = Library();
  if (!library.problem.empty()) return Status(Code::kUnavailable, library.problem);
  char error[2048] = "";
  Backend* made = nullptr;
  const int code = library.create(&config, &options, &made, error, sizeof error);
  backend->reset(made);
  return code == 0 ? Status() : Status(static_cast<Code>(code), error);
}

std::string DescribeCuda() {
  const CudaLibrary& library = Library();
  if (!library.problem.empty()) return "{\"devices\": [], \"problem\": " + Quoted(library.problem) + "}";
  std::string json(4096, '\0');
  int64_t length = library.describe(&json[0], json.size());
  if (length >= static_cast<int64_t>(json.size())) {
    json.resize(static_cast<size_t>(length) + 1);
    length = library.describe(&json[0], json.size());
  }
  json.resize(static_cast<size_t>(length));
  return json;
}

}  // namespace ftbert
