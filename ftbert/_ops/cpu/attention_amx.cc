// softmax(scale q K^T) V for one head of one row of text with AMX, for the lower precisions: queries, keys, values and
// weights of the sum in bf16, scores, softmax and sums in fp32. Queries, keys and values come in bf16 already: the
// product that makes them would write, and this read, twice as many lines in fp32, most of them from beyond the
// second-level cache.
//
// Keys become tiles [16 keys][32 of D] turned round, values tiles [32 keys][16 of D], once per head; queries go 16 at a
// time, a tile, where they lie, keys in blocks of kKeyBlock, between which the softmax is rescaled as in attention.h.
// As few tiles are in use as in linear_amx.cc. Keys and queries that there are not are zeros; such keys weigh nothing.
// A query's result depends on its row of text alone: blocks begin at the row's first key, and a tile's rows do not
// meet.
//
// The context goes out as floats or, rounded, into prepared rows of the next product (AttentionTask::prepared_out).
//
// A NaN in q, k or v reaches the output. Head sizes are multiples of 32, up to 128.
#include "cpu/vec_avx512.h"

#include "cpu/vec.h"

#include "cpu/amx_tiles.h"
#include "cpu/attention_amx.h"
#include "cpu/attention_fetch.h"
#include "cpu/tile_bf16.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kStepKeys = 32;    // of a tile's line in bf16
constexpr int kKeyBlock = 128;   // whose scores, weights, keys and values the first-level cache holds
constexpr int kMostHeadSize = 128;
constexpr size_t kScoreStride = kKeyBlock * sizeof(float);
constexpr size_t kSumStride = kMostHeadSize * sizeof(float);

inline int Steps(int keys) { return (keys + kStepKeys - 1) / kStepKeys; }

// Where a task's scratch has what, in bytes.
struct Places {
  Places(int keys, int head_size)
      : values(static_cast<size_t>(Steps(keys)) * kStepKeys * head_size * 2),
        queries(2 * values),  // the last, fewer than a tile
        weights(queries + kTileRows * head_size * 2),
        scores(weights + kTileRows * kKeyBlock * 2),
        sums(scores + kTileRows * kScoreStride),
        end(sums + kTileRows * kSumStride) {}
  size_t values, queries, weights, scores, sums, end;  // keys come first
};

// Row `row` of those that begin at `rows`.
inline const uint8_t* RowAt(const AttentionTask& task, const void* rows, ptrdiff_t row) {
  return static_cast<const uint8_t*>(rows) + row * task.stride * 2;
}

// The first `count` of 16 rows as a tile for every 32 of D; the others are zeros.
inline void CopyRows(const AttentionTask& task, const uint8_t* in, int count, int lines, uint8_t* tiles) {
  for (int r = 0; r < kTileRows; ++r) {
    for (int line = 0; line < lines; ++line) {
      uint8_t* const to = tiles + line * kTileBytes + r * kLineBytes;
      if (r < count) {
        std::memcpy(to, RowAt(task, in, r) + line * kLineBytes, kLineBytes);
      } else {
        std::memset(to, 0, kLineBytes);
      }
    }
  }
}

// keys[16 keys][line of 32]: a tile holds the pair d, d + 1 of all its keys in line d / 2.
void PackKeys(const AttentionTask& task, uint8_t* keys) {
  alignas(64) uint8_t rows[kMostHeadSize / 32 * kTileBytes];
  const int lines = task.head_size / 32, count = Steps(task.keys) * kStepKeys;
  for (int first = 0; first < count; first += kTileRows) {
    const uint8_t* in = RowAt(task, task.key, first);
    size_t stride = task.stride * 2, next = kLineBytes;
    if (task.keys - first < kTileRows) {
      CopyRows(task, in, task.keys - first, lines, rows);
      in = rows, stride = kLineBytes, next = kTileBytes;
    }
    for (int line = 0; line < lines; ++line, keys += kTileBytes, in += next) {
      Transpose(reinterpret_cast<const float*>(in), stride / sizeof(float), reinterpret_cast<float*>(keys), kLanes);
    }
  }
}

// values[32 keys][16 of D]: line i of a tile holds keys 2 i and 2 i + 1, side by side.
void PackValues(const AttentionTask& task, uint8_t* values) {
  alignas(64) static const uint16_t kFirst[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                  8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  alignas(64) static const uint16_t kSecond[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                                   24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const __m512i low = _mm512_load_si512(kFirst), high = _mm512_load_si512(kSecond);
  const int tiles = task.head_size / kLanes, count = Steps(task.keys) * kStepKeys;
  for (int key = 0; key < count; key += 2) {
    const uint8_t* const even_row = RowAt(task, task.value, key);
    const uint8_t* const odd_row = RowAt(task, task.value, key + 1);
    uint8_t* to = values + key / kStepKeys * tiles * kTileBytes + key % kStepKeys / 2 * kLineBytes;
    for (int tile = 0; tile < tiles; tile += 2, to += 2 * kTileBytes) {
      const size_t at = tile / 2 * kLineBytes;
      const __m512i even = key < task.keys ? _mm512_loadu_si512(even_row + at) : _mm512_setzero_si512();
      const __m512i odd = key + 1 < task.keys ? _mm512_loadu_si512(odd_row + at) : _mm512_setzero_si512();
      _mm512_store_si512(to, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_store_si512(to + kTileBytes, _mm512_permutex2var_epi16(even, high, odd));
    }
  }
}

// C += A B over `steps`: a tile of A, its rows a_stride apart, by two of B, b_next apart; a step later they lie a_step
// and b_step behind. C is in tiles 0 and 1.
inline void Multiply(const uint8_t* a, size_t a_stride, size_t a_step, const uint8_t* b, size_t b_next, size_t b_step,
                     int steps) {
  for (int step = 0; step < steps; ++step, a += a_step, b += b_step) {
    AMX_LOAD(4, a, a_stride);
    AMX_LOAD(6, b, kLineBytes);
    AMX_DOT_BF16(0, 4, 6);
    AMX_ZERO(6);
    AMX_LOAD(7, b + b_next, kLineBytes);
    AMX_DOT_BF16(1, 4, 7);
    AMX_ZERO(4);
    AMX_ZERO(7);
  }
}

// Tiles 0 and 1 to two columns of tiles at `at`.
inline void StoreSums(uint8_t* at, size_t stride) {
  AMX_STORE(0, at, stride);
  AMX_STORE(1, at + kLineBytes, stride);
}

// 2^x for x <= 0. Least-maximum polynomial of degree 3 on [-1/2, 1/2]: 7.5e-5, where bf16 keeps 2e-3; its value at 0
// cancels, as it is in the sum of all weights, too. Below -126 it goes to 0.
inline __attribute__((always_inline)) Vec Weight(Vec x) {
  const Vec n = Round(x);
  const Vec f = Sub(x, n);
  Vec p = Fma(Set1(0.0551716685295105f), f, Set1(0.2426111251115799f));
  p = Fma(p, f, Set1(0.6932609677314758f));
  p = Fma(p, f, Set1(0.9999280571937561f));
  return ScaleByPowerOf2(p, n);
}

// Of one query: weights = 2^(factor (scores - maximum)) in bf16, a line every 32 keys, zeros behind the last key;
// returns their sum, in fp32. `maximum` is raised to the block's own first, or set to it where this is the first block.
inline float WeighBlock(const float* scores, int keys, float factor, bool first, float* maximum, uint8_t* weights) {
  Vec largest = Set1(first ? scores[0] : *maximum);
  for (int i = 0; i < keys; i += kLanes) {
    const Vec score = Load(scores + i);
    largest = Max(largest, keys - i < kLanes ? SelectFirst(keys - i, score, largest) : score);
  }
  *maximum = Largest(largest);
  const Vec scale = Set1(factor);
  const Vec top = Set1(*maximum);  // subtracted before scaling: the largest score gives the same, however large it is
  Vec sum = Zero();
  const auto weigh = [&](int at) {
    const int there = keys - at;
    if (there <= 0) return Zero();
    const Vec all = Weight(Mul(Sub(Load(scores + at), top), scale));
    const Vec weight = there < kLanes ? SelectFirst(there, all, Zero()) : all;
    sum = Add(sum, weight);
    return weight;
  };
  for (int i = 0; i < keys; i += kStepKeys, weights += kTileBytes) {
    const Vec even = weigh(i), odd = weigh(i + kLanes);
    StoreBf16Line(weights, even, odd);
  }
  return Sum(sum);
}

// `rows` queries from `query` on, a tile of them.
void AttendTile(const AttentionTask& task, const Places& places, int query, int rows) {
  auto* const scratch = reinterpret_cast<uint8_t*>(task.scratch);
  auto* const scores = reinterpret_cast<float*>(scratch + places.scores);
  uint8_t *const weights = scratch + places.weights, *const sums = scratch + places.sums;
  const int depth = task.head_size, lines = depth / 32;
  const float factor = task.scale * 1.44269504f;  // log2(e)
  const uint8_t* queries = RowAt(task, task.query, query);
  size_t stride = task.stride * 2, next = kLineBytes;
  if (rows < kTileRows) {  // what comes behind them may not be there
    CopyRows(task, queries, rows, lines, scratch + places.queries);
    queries = scratch + places.queries, stride = kLineBytes, next = kTileBytes;
  }
  float maximum[kTileRows], total[kTileRows];
  for (int block = 0; block < task.keys; block += kKeyBlock) {
    const int keys = task.keys - block < kKeyBlock ? task.keys - block : kKeyBlock, steps = Steps(keys);
    const uint8_t* const block_keys = scratch + static_cast<size_t>(block) * depth * 2;
    for (int step = 0; step < steps; ++step) {
      AMX_ZERO(0);
      AMX_ZERO(1);
      const uint8_t* const of_step = block_keys + step * 2 * lines * kTileBytes;
      Multiply(queries, stride, next, of_step, lines * kTileBytes, kTileBytes, lines);
      StoreSums(reinterpret_cast<uint8_t*>(scores + step * kStepKeys), kScoreStride);
    }
    for (int m = 0; m < rows; ++m) {
      const float before = maximum[m];
      const float sum =
          WeighBlock(scores + m * kKeyBlock, keys, factor, block == 0, &maximum[m], weights + m * kLineBytes);
      if (block == 0) {
        if (task.fetch_next) FetchNextHead<uint16_t>(task, query + m);
        total[m] = sum;
        continue;
      }
      const Vec correction = Weight(Set1((before - maximum[m]) * factor));
      total[m] = total[m] * FirstLane(correction) + sum;
      auto* const so_far = reinterpret_cast<float*>(sums + m * kSumStride);
      for (int d = 0; d < depth; d += kLanes) Store(so_far + d, Mul(Load(so_far + d), correction));
    }
    const uint8_t* const block_values = scratch + places.values + static_cast<size_t>(block) * depth * 2;
    for (int d = 0; d < depth / kLanes; d += 2) {
      uint8_t* const at = sums + d * kLineBytes;
      if (block == 0) {
        AMX_ZERO(0);
        AMX_ZERO(1);
      } else {
        AMX_LOAD(0, at, kSumStride);
        AMX_LOAD(1, at + kLineBytes, kSumStride);
      }
      Multiply(weights, kLineBytes, kTileBytes, block_values + d * kTileBytes, kTileBytes,
               depth / kLanes * kTileBytes, steps);
      StoreSums(at, kSumStride);
    }
  }
  for (int m = 0; m < rows; ++m) {
    const Vec inverse = Set1(1.f / total[m]);
    const auto* const row = reinterpret_cast<const float*>(sums + m * kSumStride);
    if (task.prepared_out != nullptr) {
      uint8_t* to = PreparedRow<kTileRows>(static_cast<uint8_t*>(task.prepared_out), task.prepared_stride,
                                           task.prepared_row + query + m);
      for (int d = 0; d < depth; d += 2 * kLanes, to += kTileBytes) {
        StoreBf16Line(to, Mul(Load(row + d), inverse), Mul(Load(row + d + kLanes), inverse));
      }
      continue;
    }
    float* const out = task.out + (query + m) * task.out_stride;
    for (int d = 0; d < depth; d += kLanes) Store(out + d, Mul(Load(row + d), inverse));
  }
}

size_t ScratchFloats(int32_t keys, int32_t head_size) { return Places(keys, head_size).end / sizeof(float); }

void Attend(const AttentionTask& task) {
  const Places places(task.keys, task.head_size);
  auto* const scratch = reinterpret_cast<uint8_t*>(task.scratch);
  PackKeys(task, scratch);
  PackValues(task, scratch + places.values);
  const TileShapes shapes;
  AMX_CONFIGURE(&shapes);
  for (int query = 0; query < task.queries; query += kTileRows) {
    AttendTile(task, places, query, task.queries - query < kTileRows ? task.queries - query : kTileRows);
  }
  AMX_RELEASE();
}

}  // namespace

void UseAmxAttention(Kernels* table) {
  table->query_tile = 2 * kTileRows;
  table->attends_bf16 = true;
  table->attention_scratch_floats = ScratchFloats;
  table->attention = Attend;
}

}  // namespace cpu
}  // namespace ftbert
