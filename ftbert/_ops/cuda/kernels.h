// The kernels that are no matrix product: embedding, layer norm, attention, gathering, classifying, packing.
//
// Activations are row-major with a row pitch in elements, a multiple of 16; columns past the true width hold zeros.
// With fp8, a row that feeds a product is kept a second time as fp8 with its scale (Quantized).
#ifndef FTBERT_CUDA_KERNELS_H_
#define FTBERT_CUDA_KERNELS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/gemm.h"
#include "cuda/tiles.h"
#include "ftbert/engine.h"

namespace ftbert {
namespace cuda {

// One token as the host uploads it.
struct Token {
  int32_t id, segment;
  int32_t row_begin, row_end;  // of the row it belongs to
};

struct Quantized {
  uint8_t* values = nullptr;  // (rows, pitch) e4m3; null: not wanted
  float* scale = nullptr;     // (rows,)  value = stored * scale
  float* norm = nullptr;      // (rows,)  Euclidean length of the row: bounds what a product with it can give
};

struct Norm {
  const float* gamma = nullptr;  // (width,)
  const float* beta = nullptr;
  float epsilon = 0.f;
  int width = 0;
  int64_t pitch = 0;
  bool summed = false;  // delta already holds states + delta
  bool reversed = false;  // from the last rows to the first
};

struct Embedding {
  const void* words = nullptr;      // (V, pitch)
  const void* positions = nullptr;  // (P, pitch)
  const void* segments = nullptr;   // (S, pitch)
  const Token* tokens = nullptr;    // (T,), device memory or pinned host memory
  const int2* rows = nullptr;       // (B,), likewise
  int count = 0, row_count = 0;
  int2* ranges = nullptr;           // (T,) out, for attention
  int2* row_ranges = nullptr;       // (B,) out
};

// The kernels of attention: kChosen leaves it to the rule.
enum class AttentionKernel : int { kChosen = 0, kTiles = 1, kWgmma = 2 };

struct Attention {
  const void* qkv = nullptr;  // (T, ld): queries at 0, keys at `part`, values at 2 * part
  int64_t ld = 0;
  int part = 0;
  const void* first_queries = nullptr;  // (count, ld_first): queries of their own, one a range; null: those of qkv
  int64_t ld_first = 0;                 // 0: ld_context
  bool first_at_range = false;          // query i lies at row ranges[i].x, where its keys begin, not at row i
  const int2* ranges = nullptr;         // (count,) keys of each query
  int count = 0, heads = 0, head_size = 0;
  void* context = nullptr;    // (count, ld_context)
  int64_t ld_context = 0;
  bool float8_context = false;  // of every token's queries, in fp16: context is kept as e4m3, values as they are
  bool reversed = false;  // every token's queries: from the last to the first
  AttentionKernel kernel = AttentionKernel::kChosen;
};

// Queries, keys and values of every token, and the attention of each row's tokens to one another, for rows of at most
// kRowsTile tokens: context alone is written.
struct RowsAttention {
  Gemm product;                 // of queries, keys and values; neither out nor act nor residual
  const int2* ranges = nullptr;  // (T,) keys of each token
  // (slots + 1,) Consecutive tokens that are whole rows, at most kRowsTile each; the last holds how many of them there
  // are. `sure` are there in any case.
  const int2* tiles = nullptr;
  int slots = 0, sure = 0;
  int heads = 0;
  void* context = nullptr;      // (T, ld_context)
  int64_t ld_context = 0;
  bool float8_context = false;  // as in Attention; the product is fp8
};

// Of each row's first token: what its heads find among the row's states themselves.
struct StatesAttention {
  const void* states = nullptr;  // (T, pitch)
  int64_t pitch = 0;
  void* found = nullptr;         // (count, heads, hidden): queries taken to the states in, their finds out
  const int2* ranges = nullptr;  // (count,) the states of each row
  int count = 0, heads = 0, hidden = 0, head_size = 0;
  bool reversed = false;         // from the last row to the first
};

cudaError_t RunEmbed(const Machine& machine, Element element, const Embedding& embedding, const Norm& norm,
                     void* states, const Quantized& quantized, cudaStream_t stream);
// states = norm(states + delta), one pass, in fp32; norm(delta) where summed
cudaError_t RunAddNorm(const Machine& machine, Element element, const Norm& norm, int rows, void* states,
                       const void* delta, const Quantized& quantized, cudaStream_t stream);
// norm_few.cu: what both choose for few rows
bool FewNormFits(const Norm& norm);
cudaError_t RunFewEmbed(const Machine& machine, Element element, const Embedding& embedding, const Norm& norm,
                        void* states, const Quantized& quantized, cudaStream_t stream);
cudaError_t RunFewAddNorm(const Machine& machine, Element element, const Norm& norm, int rows, void* states,
                          const void* delta, const Quantized& quantized, cudaStream_t stream);
// states = norm(product + states), where `product` adds g.residual to g.out, both the states; in one kernel.
bool GemmNormFits(const Machine& machine, const Gemm& product, const Norm& norm, const Quantized& quantized);
cudaError_t RunGemmNorm(const Machine& machine, const Gemm& product, const Norm& norm, const Quantized& quantized,
                        cudaStream_t stream);
cudaError_t RunAttention(const Machine& machine, Element element, const Attention& attention, cudaStream_t stream);
// Whether every token's attention to heads of this size can leave its context as fp8.
inline bool Float8ContextFits(int head_size) { return head_size % 8 == 0 && head_size <= 128; }
// attention_first.cu, attention_wgmma.cu: what RunAttention chooses from besides its own
bool FirstAttentionFits(const Attention& attention);
cudaError_t RunFirstAttention(const Machine& machine, Element element, const Attention& attention, cudaStream_t stream);
bool WgmmaAttentionFits(const Machine& machine, Element element, const Attention& attention);
cudaError_t RunWgmmaAttention(const Machine& machine, Element element, const Attention& attention, cudaStream_t stream);
// attend_rows.cu: of products `in` and heads' queries, keys and values in `out`
bool RowsAttentionFits(const Machine& machine, Element in, Element out, int heads, int head_size);
cudaError_t RunRowsAttention(const Machine& machine, const RowsAttention& attention, cudaStream_t stream);
// attend_states.cu: found = softmax(found states^T / sqrt(head_size)) states
bool StatesAttentionFits(const Machine& machine, Element element, int heads, int hidden);
cudaError_t RunStatesAttention(const Machine& machine, Element element, const StatesAttention& attention,
                               cudaStream_t stream);
// first[b] = states[ranges[b].x], quantized where wanted
cudaError_t RunGather(const Machine& machine, Element element, const int2* ranges, int rows, int64_t pitch,
                      const void* states, void* first, const Quantized& quantized, cudaStream_t stream);
// out (rows, labels) fp32 = x w^T + bias; with ranges, rows that are empty there are left as they are
cudaError_t RunClassify(const Machine& machine, Element element, const void* x, int64_t pitch, int rows, const void* w,
                        const float* bias, int labels, float* out, cudaStream_t stream,
                        const int2* ranges = nullptr);
cudaError_t RunToFloat(const Machine& machine, Element element, const void* from, int64_t pitch, int rows, int width,
                       float* to, cudaStream_t stream);

// A source array on the device -> packed (cols, pitch), output by output. transposed: the source already is (cols,
// rows). row_scale: each row of the source counts so many times; null: once.
cudaError_t PackMatrix(const void* source, DataType type, int rows, int cols, bool transposed, Element element,
                       void* to, int64_t pitch, float* column_scale, cudaStream_t stream,
                       const float* row_scale = nullptr);
// For fp8 outputs w (cols, pitch) of x = norm(...), whose length is bounded: makes scale and bias (cols,) such that no
// output exceeds kFloat8Max, and says by what it divided them: divisor (cols,).
cudaError_t BoundOutputs(const void* w, int rows, int cols, int64_t pitch, const float* gamma, const float* beta,
                         float* scale, float* bias, float* divisor, cudaStream_t stream);
// The largest Euclidean length of an output's weights, to *length (device).
cudaError_t LongestColumn(const void* source, DataType type, int rows, int cols, bool transposed, float* length,
                          cudaStream_t stream);

// Uniform noise in (-1, 1), for timing.
cudaError_t FillNoise(Element element, void* to, int64_t count, cudaStream_t stream);

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_KERNELS_H_
