// The border between libftbert and libftbert_cuda, which is opened when a CUDA device is first asked for.
#ifndef FTBERT_CORE_CUDA_LOADER_H_
#define FTBERT_CORE_CUDA_LOADER_H_

#include <cstddef>
#include <cstdint>

#include "core/backend.h"

extern "C" {
// Both are exported by libftbert_cuda. Returns a ftbert::Code; the caller owns *backend.
using ftbert_cuda_backend_create_fn = int (*)(const ftbert::Config* config, const ftbert::Options* options,
                                              ftbert::Backend** backend, char* error, size_t error_size);
// JSON object: {"devices": [{"index", "name", "compute_capability", "memory_bytes"}], "driver": "580.159.04" or null,
// "runtime": "13.0", "problem": null or why no device can be used}. As snprintf.
using ftbert_cuda_describe_fn = int64_t (*)(char* json, size_t size);
}

namespace ftbert {

// The JSON of ftbert_cuda_describe, or {"devices": [], "problem": "..."} where the library is not there.
std::string DescribeCuda();

}  // namespace ftbert

#endif  // FTBERT_CORE_CUDA_LOADER_H_
