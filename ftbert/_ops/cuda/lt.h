// cuBLASLt, opened at run time when a product wants it: neither the build nor a CPU-only install needs it.
#ifndef FTBERT_CUDA_LT_H_
#define FTBERT_CUDA_LT_H_

#include <string>

#include "cuda/gemm.h"

namespace ftbert {
namespace cuda {

constexpr int64_t kLtScratchBytes = 32 << 20;  // what a product may use beside its operands
constexpr int64_t kLtCounterBytes = 256;       // what one uses that only counts its tiles, and its alignment
constexpr int kLtCounters = 256;               // of a recording; products beyond them do without
constexpr int64_t kLtAllBytes = kLtScratchBytes + kLtCounters * kLtCounterBytes;

// Opens the library at the first call: FTBERT_CUBLAS_DIR, the loader's path, /usr/local/cuda.
bool LtAvailable();
// "130100" or "none"; opens it.
std::string LtVersion();
// Whether cuBLASLt has this product's type and epilogue (it knows GELU by tanh only).
bool LtFits(const Gemm& gemm);
// How many of its algorithms are offered for this product, best first by its own estimate.
int LtChoices(const Machine& machine, const Gemm& gemm);
// cudaErrorNotSupported: nothing was launched.
cudaError_t RunLt(const Machine& machine, int choice, const Gemm& gemm, cudaStream_t stream);

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_LT_H_
