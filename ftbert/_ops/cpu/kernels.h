// The table of functions that exist once per instruction set (kernels_portable.cc, kernels_avx2.cc, kernels_avx512.cc),
// and their arguments. Plain data only: these structs are all that files compiled for different machines share.
#ifndef FTBERT_CPU_KERNELS_H_
#define FTBERT_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace ftbert {
namespace cpu {

// A group of columns that are packed, and computed, together.
struct Panel {
  int32_t column = 0;  // of `out`: the panel's first column
  int32_t width = 0;   // columns that exist, <= panel_columns
};

// rows x panels of  out = activation(in W + bias), over inputs [k_begin, k_end) of `inputs`.
struct GemmTask {
  const float* in;       // row 0, input k_begin
  ptrdiff_t in_stride;   // floats
  int32_t rows;
  const float* weights;  // first panel, input 0: weights[k * panel_columns + column]
  size_t panel_floats;   // from one panel to the next
  const float* bias;     // of the first panel; panel_columns per panel
  const Panel* panels;
  int32_t num_panels;
  int32_t inputs;        // K
  int32_t k_begin;
  int32_t k_end;
  int32_t activation;    // Epilogue as int
  float* out;            // row 0, column first_column
  ptrdiff_t out_stride;  // floats
  int32_t first_column;
  const float* then;     // weights that are read next; null: not known
};

// Pairs of rows as gemm_pairs reads them: pair_floats(inputs) floats for each.
struct PreparePairsTask {
  const float* in;        // pair 0's first row; up to a vector past a row's end may be read
  ptrdiff_t in_stride;
  int32_t pairs;
  int32_t inputs;         // even
  float* prepared;
  ptrdiff_t pair_stride;  // floats
};

// GemmTask for pairs of rows, by seven products of halves instead of eight (gemm_strassen.h).
struct PairsTask {
  const float* in;        // as prepare_pairs left it: pair 0, its inputs from k_begin on
  ptrdiff_t pair_stride;  // floats
  int32_t pairs;
  const float* weights;   // this and the following as in GemmTask
  size_t panel_floats;
  const float* bias;
  const Panel* panels;
  int32_t num_panels;     // even
  int32_t inputs;         // even
  int32_t k_begin;        // a multiple of pair_inputs
  int32_t k_end;          // another, or `inputs`
  int32_t activation;
  float* out;             // pair 0's first row, column first_column; its second row is out_stride behind
  ptrdiff_t out_stride;
  int32_t first_column;
};

// softmax(scale q K^T) V for `queries` query rows of one head of one row of text.
struct AttentionTask {
  const void* query;     // (queries, D); floats, or bf16 if the kernel takes them so
  const void* key;       // (keys, D), likewise value
  const void* value;
  ptrdiff_t stride;      // of all three, in elements; even
  float* out;            // (queries, D) at out_stride
  ptrdiff_t out_stride;
  // Instead of `out`, if not null, from a kernel that takes bf16: this head's first line of the first row of all that
  // are prepared in bf16 (linear_int8_bf16.h, tile form), and which of those rows query 0 is.
  void* prepared_out = nullptr;
  size_t prepared_stride = 0;
  int32_t prepared_row = 0;
  int32_t queries;
  int32_t keys;
  int32_t head_size;     // D, at most 128
  float scale;
  float* scratch;        // attention_scratch_floats(keys, D), 64-byte aligned
  bool fetch_next;       // D floats behind each query, key and value are wanted next: the following head
};

// For some heads of one row of text, out = softmax(scale u X^T) X: what each head's first query finds among the row's
// states themselves. A head's u and out are H floats, `stride` apart from the next head's; out may be u.
struct AttendStatesTask {
  const float* u;        // (heads, H)
  float* out;            // (heads, H)
  ptrdiff_t stride;
  int32_t heads;
  const float* states;   // X (tokens, H) at states_stride; a vector past a row's end may be read
  ptrdiff_t states_stride;
  int32_t tokens;
  int32_t hidden;        // H
  float scale;
  float* scratch;        // attend_states_scratch_floats(H), 64-byte aligned
};

// out = norm(word + position + segment) for `rows` tokens of one row of text.
struct EmbedTask {
  const void* words;       // (V, H), rows table_stride elements apart, padded to whole vectors; likewise the other two
  const void* positions;   // (P, H)
  const void* segments;    // (type_vocab, H)
  ptrdiff_t table_stride;
  int32_t type;            // DataType of all three, as int
  const int32_t* token_ids;
  const int32_t* segment_ids;  // null: all 0
  int32_t first_position;
  int32_t rows;
  int32_t hidden;
  const float* gamma;
  const float* beta;
  float epsilon;
  float* out;
  ptrdiff_t out_stride;
};

// residual = norm(residual + in), row by row.
struct AddNormTask {
  const float* in;
  ptrdiff_t in_stride;
  float* residual;
  ptrdiff_t residual_stride;
  int32_t rows;
  int32_t hidden;
  const float* gamma;
  const float* beta;
  float epsilon;
};

struct Kernels {
  int32_t row_tile;       // of the fp32 product
  int32_t panel_columns;
  int32_t lanes;
  int32_t query_tile;     // queries that attention takes at a time
  bool attends_bf16;      // it takes queries, keys and values in bf16
  int32_t pair_inputs;    // inputs that gemm_pairs takes at a time
  void (*gemm)(const GemmTask& task);
  size_t (*pair_floats)(int32_t inputs);
  void (*prepare_pairs)(const PreparePairsTask& task);
  void (*gemm_pairs)(const PairsTask& task);
  size_t (*attention_scratch_floats)(int32_t keys, int32_t head_size);
  void (*attention)(const AttentionTask& task);
  size_t (*attend_states_scratch_floats)(int32_t hidden);
  void (*attend_states)(const AttendStatesTask& task);
  void (*embed)(const EmbedTask& task);
  void (*add_norm)(const AddNormTask& task);
  // out[i] = activation(in[i]), activation an Epilogue as int; for tests and for products without an epilogue of their
  // own
  void (*activate)(int32_t activation, const float* in, int64_t count, float* out);
  // `rounds` times peak_chains register-only multiply-adds of `lanes` floats, for benchmarks; the value depends on all.
  int32_t peak_chains;
  float (*peak)(int64_t rounds);
};

const Kernels* KernelsPortable();
const Kernels* KernelsAvx2();
const Kernels* KernelsAvx512();

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_KERNELS_H_
