// The C ABI of libftbert: what ctypes and the TensorFlow adapters call. Same meaning and shapes as engine.h.
//
// Every function that can fail returns a ftbert::Code as int and, when it is not 0, writes a NUL-terminated message
// into `error` (at most error_size bytes, error_size > 0).
#ifndef FTBERT_C_API_H_
#define FTBERT_C_API_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define FTBERT_API __declspec(dllexport)
#else
#define FTBERT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Rises whenever a signature or struct below changes; the Python loader refuses a library of another number.
#define FTBERT_ABI_VERSION 1

typedef struct ftbert_config {
  int32_t vocab_size, hidden_size, num_layers, num_heads, intermediate_size, max_positions, type_vocab_size;
  int32_t num_labels, has_pooler;
  int32_t activation;  // 0 gelu (erf), 1 gelu (tanh), 2 relu
  float norm_epsilon;
} ftbert_config;

typedef struct ftbert_outputs {
  float* logits;        // (B, C)
  float* pooled;        // (B, H)
  float* first_states;  // (B, H)
  float* token_states;  // (T, H)
} ftbert_outputs;

typedef struct ftbert_builder ftbert_builder;

FTBERT_API int32_t ftbert_abi_version(void);

// precision: 0 fp32, 1 bf16, 2 fp16, 3 int8, 4 fp8. threads: 0 = what the process may use.
FTBERT_API int ftbert_builder_create(const ftbert_config* config, const char* device, int32_t precision,
                                     int32_t threads, ftbert_builder** builder, char* error, size_t error_size);
// type: 0 fp32, 1 fp16, 2 bf16. The array is copied or packed before the call returns.
FTBERT_API int ftbert_builder_add(ftbert_builder* builder, const char* name, int32_t type, int32_t rank,
                                  const int64_t* shape, const void* data, int32_t transposed, char* error,
                                  size_t error_size);
// Consumes the builder whether it succeeds or not. *engine is a positive id, valid in this process until released.
FTBERT_API int ftbert_builder_finish(ftbert_builder* builder, int64_t* engine, char* error, size_t error_size);
FTBERT_API void ftbert_builder_free(ftbert_builder* builder);

// An engine is freed when its last holder has released it; a Run in flight holds it.
FTBERT_API int ftbert_engine_release(int64_t engine, char* error, size_t error_size);

// The sizes that the engine was built with: what a caller needs to make room for the outputs.
FTBERT_API int ftbert_engine_config(int64_t engine, ftbert_config* config, char* error, size_t error_size);

FTBERT_API int ftbert_run(int64_t engine, const int32_t* token_ids, const int32_t* segment_ids,
                          const int32_t* row_splits, int32_t num_rows, const ftbert_outputs* outputs, char* error,
                          size_t error_size);
FTBERT_API int ftbert_tune(int64_t engine, const int32_t* token_counts, int32_t count, char* error, size_t error_size);
FTBERT_API int ftbert_warm(int64_t engine, int32_t most_tokens, int32_t at_once, char* error, size_t error_size);

// Both write at most `size` bytes of NUL-terminated JSON and return the length it wants (as snprintf), or -1 when the
// engine is unknown.
FTBERT_API int64_t ftbert_describe(int64_t engine, char* json, size_t size);
FTBERT_API int64_t ftbert_describe_machine(char* json, size_t size);

// Text to ids (ftbert/wordpiece.h); needs no engine. Null, and -1, when there is no memory. A tokenizer may be used by
// many threads.
typedef struct ftbert_wordpiece ftbert_wordpiece;
FTBERT_API ftbert_wordpiece* ftbert_wordpiece_create(const uint32_t* pieces, const int64_t* ends, int32_t count,
                                                     const uint32_t* table, int32_t table_size, int32_t unknown_id,
                                                     int32_t max_word_chars);
FTBERT_API int64_t ftbert_wordpiece_encode(const ftbert_wordpiece* tokenizer, const uint32_t* chars,
                                           const int64_t* ends, int32_t texts, int32_t threads, int32_t* ids,
                                           int32_t* lengths);
FTBERT_API void ftbert_wordpiece_free(ftbert_wordpiece* tokenizer);

#ifdef __cplusplus
}
#endif

#endif  // FTBERT_C_API_H_
