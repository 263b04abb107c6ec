// int8 matrix products with AVX2 alone, exact.
//
// vpmaddubsw multiplies u8 inputs by s8 weights and adds pairs of products in 16 bits, where 2 x 255 x 127 does not
// fit. The quantizer keeps the pairs small instead (LinearOps::bounds_pairs): weights of one sign that meet in a pair
// add up to 128 at most, so that a pair is at most 255 x 128 = 32,640. That costs the weights of a trained or random
// matrix about a third of a bit.
//
// Widening each 16-bit sum to 32 bits would cost more than the products themselves, so the four pairs that fall into
// one 16-bit lane over 16 inputs (a chunk) are added first. 16-bit addition wraps around, which does no harm while the
// true sum fits. It would not: inputs lie around some center c far from 0. But
//
//   sum of (x - c) w = (sum of x w) - c (sum of w)   (mod 2^16)
//
// and by Cauchy and Schwarz the left side is at most |x - c| |w|, the Euclidean norms over the lane's 8 inputs.
// Prepare notes the center of each row and |x - c| of each chunk, packing notes sum of w and 32,767 / |w|; a chunk
// whose norms allow it is added up in 16 bits, another pair by pair in 32. Both are exact, so no result depends on the
// choice. c (sum of w over all inputs) is added back at the end, in 32 bits.
#include "cpu/vec_avx2.h"

#include "cpu/vec.h"

#include "cpu/tile_int8_avx2.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kChunk = 16;                            // inputs: 4 groups of 4 bytes
constexpr int kChunksPerLine = kLineBytes / kChunk;
constexpr int kBlockChunks = 64;                      // a block of a panel is 20 KiB: it stays in the first level
constexpr int kTilesAtATime = 64;
constexpr float kRootOfLane = 2.8285f;                // of the 8 inputs of a lane, rounded up

// Keeps the compiler from reordering the sums that a value is made by, which would cost more registers than there are.
#define FTBERT_KEEP(value) asm volatile("" : "+x"(value))

alignas(32) constexpr int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

struct Int8Avx2 : Int8OfAvx2 {
  using Columns = Int8Columns;
  // 6 sums of 32 bits, 6 of 16, 2 weights, an input and a product: all 16 registers.
  static constexpr int kRowTile = 3;
};

// What follows the weights of a panel: for each chunk the sums of each lane's 8 weights, then for each chunk the
// largest |x - c| that it may be added up with, then the sum of each column.
struct PanelTail {
  const int16_t* sums;      // chunks x 2 kColumns
  const uint16_t* limits;   // chunks
  const int32_t* columns;   // kColumns
  static size_t LimitsAt(int32_t lines) { return static_cast<size_t>(lines) * kChunksPerLine * 4 * kColumns; }
  static size_t ColumnsAt(int32_t lines) {
    return LimitsAt(lines) + (lines * kChunksPerLine * sizeof(uint16_t) + kLineBytes - 1) / kLineBytes * kLineBytes;
  }
  PanelTail(const uint8_t* panel, int32_t lines) {
    const uint8_t* tail = panel + static_cast<size_t>(lines) * kLineBytes * kColumns;
    sums = reinterpret_cast<const int16_t*>(tail);
    limits = reinterpret_cast<const uint16_t*>(tail + LimitsAt(lines));
    columns = reinterpret_cast<const int32_t*>(tail + ColumnsAt(lines));
  }
};

size_t PanelTailBytes(int32_t lines) { return PanelTail::ColumnsAt(lines) + kColumns * sizeof(int32_t); }

inline __m256i LoadInts(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }

// At least the square root of `square`, a whole number.
inline int RootUp(int square) { return static_cast<int>(__builtin_sqrtf(static_cast<float>(square))) + 1; }

void FinishPanel(uint8_t* panel, int32_t lines) {
  const PanelTail tail(panel, lines);
  auto* sums = const_cast<int16_t*>(tail.sums);
  auto* limits = const_cast<uint16_t*>(tail.limits);
  auto* columns = const_cast<int32_t*>(tail.columns);
  const __m256i ones = _mm256_set1_epi16(1), byte_ones = _mm256_set1_epi8(1);
  __m256i of_column[kVectors] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int32_t chunk = 0; chunk < lines * kChunksPerLine; ++chunk, panel += kChunk * kColumns) {
    alignas(32) int32_t squares[2 * kLanes];
    __m256i even = _mm256_setzero_si256(), odd = even;  // the larger square of both vectors' lanes
    for (int v = 0; v < kVectors; ++v) {
      __m256i sum = _mm256_setzero_si256(), first = sum, second = sum;
      for (int group = 0; group < kChunk / 4; ++group) {
        const __m256i w = LoadInts(panel + (group * kVectors + v) * 4 * kLanes);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(byte_ones, w));
        const __m256i w01 = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), w1 = _mm256_srai_epi16(w, 8);
        // Lanes of 32 bits hold bytes 0 .. 3; squares of bytes 0 and 1, then of 2 and 3.
        const __m256i square = _mm256_add_epi16(_mm256_mullo_epi16(w01, w01), _mm256_mullo_epi16(w1, w1));
        first = _mm256_add_epi32(first, _mm256_and_si256(square, _mm256_set1_epi32(0xffff)));
        second = _mm256_add_epi32(second, _mm256_srli_epi32(square, 16));
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums + v * 2 * kLanes), sum);
      of_column[v] = _mm256_add_epi32(of_column[v], _mm256_madd_epi16(sum, ones));
      even = _mm256_max_epi32(even, first);
      odd = _mm256_max_epi32(odd, second);
    }
    sums += 2 * kColumns;
    _mm256_store_si256(reinterpret_cast<__m256i*>(squares), _mm256_max_epi32(even, odd));
    int largest = 0;
    for (int i = 0; i < kLanes; ++i) largest = squares[i] > largest ? squares[i] : largest;
    limits[chunk] = static_cast<uint16_t>(32767 / RootUp(largest));
  }
  for (int v = 0; v < kVectors; ++v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(columns + v * kLanes), of_column[v]);
  }
}

// ---- Rows

// The center and the norms of a row follow its scale: [RowScale, center, in a line] [norms of the chunks].
struct RowTail {
  float scale, low;
  int32_t center;
};

size_t RowTailBytes(int32_t lines) {
  const size_t norms = lines * kChunksPerLine * sizeof(uint16_t);
  return kLineBytes + (norms + kLineBytes - 1) / kLineBytes * kLineBytes;
}

void PrepareCentered(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, uint8_t* prepared,
                     size_t stride) {
  PrepareInt8<1>(in, in_stride, rows, inputs, prepared, stride);
  const int32_t bytes = Lines(inputs, 1) * kLineBytes;
  for (int32_t r = 0; r < rows; ++r, prepared += stride) {
    __m256i total = _mm256_setzero_si256();
    for (int32_t k = 0; k < bytes; k += 32) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(prepared + k));
      total = _mm256_add_epi64(total, _mm256_sad_epu8(x, _mm256_setzero_si256()));
    }
    alignas(32) int64_t parts[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(parts), total);
    const int32_t center = static_cast<int32_t>((parts[0] + parts[1] + parts[2] + parts[3] + inputs / 2) / inputs);
    RowTail tail;
    std::memcpy(&tail, prepared + bytes, sizeof(RowScale));
    tail.center = center;
    std::memcpy(prepared + bytes, &tail, sizeof(tail));
    auto* norms = reinterpret_cast<uint16_t*>(prepared + bytes + kLineBytes);
    const __m256i middle = _mm256_set1_epi16(static_cast<int16_t>(center));
    for (int32_t k = 0; k < bytes; k += kLineBytes, norms += kChunksPerLine) {
      __m128i of_lanes[kChunksPerLine];  // the square of the even pairs, which meet in a lane, and that of the odd ones
#pragma GCC unroll 4
      for (int chunk = 0; chunk < kChunksPerLine; ++chunk) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(prepared + k + chunk * kChunk));
        const __m256i away = _mm256_sub_epi16(_mm256_cvtepu8_epi16(x), middle);
        const __m256i squares = _mm256_madd_epi16(away, away);
        const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(squares), _mm256_extracti128_si256(squares, 1));
        of_lanes[chunk] = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x0e));
      }
      const __m128i front = _mm_unpacklo_epi32(of_lanes[0], of_lanes[1]);
      const __m128i back = _mm_unpacklo_epi32(of_lanes[2], of_lanes[3]);
      const __m128i larger = _mm_max_epi32(_mm_unpacklo_epi64(front, back), _mm_unpackhi_epi64(front, back));
      const __m128i roots = _mm_cvttps_epi32(_mm_sqrt_ps(_mm_cvtepi32_ps(larger)));  // as RootUp
      const __m128i up = _mm_add_epi32(roots, _mm_set1_epi32(1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(norms), _mm_packus_epi32(up, up));
    }
  }
}

// ---- Tiles

// One center serves all rows of a tile: |x - c| of a row is at most |x - its center| + |its center - c| sqrt(8).
struct TileRows {
  const uint8_t* in = nullptr;  // row 0
  int32_t center = 0;
  uint16_t apart[Int8Avx2::kRowTile] = {};
  TileRows() = default;
  TileRows(const LinearJob& job, int32_t row, int rows) : in(job.in + row * job.in_stride) {
    int32_t centers[Int8Avx2::kRowTile] = {};
    for (int r = 0; r < rows; ++r) {
      RowTail tail;
      std::memcpy(&tail, in + r * job.in_stride + job.scale_offset, sizeof(tail));
      centers[r] = tail.center;
      center += tail.center;
    }
    center /= rows;
    for (int r = 0; r < rows; ++r) {
      const int32_t between = centers[r] > center ? centers[r] - center : center - centers[r];
      apart[r] = between == 0 ? 0 : static_cast<uint16_t>(static_cast<float>(between) * kRootOfLane + 1);
    }
  }
};

// A block of one panel's inputs.
struct PanelBlock {
  const uint8_t* weights;
  const int16_t* sums;
  const uint16_t* limits;
  const int32_t* columns;  // sums over all inputs, where this is the last block; null elsewhere
  int32_t first_chunk;
  int32_t chunks;
};

// Sums of kRows rows by a block of a panel, added to `sums` unless it is the first.
template <int kRows>
__attribute__((noinline)) void CenteredTile(const TileRows& tile, size_t stride, size_t norms_offset,
                                            const PanelBlock& block, FetchAhead* ahead, int32_t* sums) {
  alignas(64) uint8_t narrow[kBlockChunks + 16];  // not 0: the chunk is added up in 16 bits
  for (int32_t chunk = 0; chunk < block.chunks; chunk += 16) {
    __m256i largest = _mm256_setzero_si256();
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
      const uint8_t* norms = tile.in + r * stride + norms_offset + 2 * (block.first_chunk + chunk);
      const __m256i norm = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(norms));
      const __m256i apart = _mm256_set1_epi16(static_cast<int16_t>(tile.apart[r]));
      largest = _mm256_max_epu16(largest, _mm256_adds_epu16(norm, apart));
    }
    const __m256i limit = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.limits + chunk));
    const __m256i within = _mm256_cmpeq_epi16(_mm256_min_epu16(largest, limit), largest);
    const __m128i flags = _mm_packs_epi16(_mm256_castsi256_si128(within), _mm256_extracti128_si256(within, 1));
    _mm_store_si128(reinterpret_cast<__m128i*>(narrow + chunk), flags);
  }

  __m256i sum[kRows][kVectors];
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = block.first_chunk == 0 ? _mm256_setzero_si256() : LoadInts(sums + r * kColumns + v * kLanes);
    }
  }
  const uint8_t* in = tile.in + block.first_chunk * kChunk;
  const uint8_t* weights = block.weights;
  const int16_t* of_chunk = block.sums;
  const __m256i minus_center = _mm256_set1_epi16(static_cast<int16_t>(-tile.center));
  const int16_t* ones = kOnes;
  asm("" : "+r"(ones));
  for (int32_t chunk = 0; chunk < block.chunks; ++chunk) {
    ahead->Advance();
    if (narrow[chunk] != 0) {
      __m256i lane[kRows][kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        lane[0][v] = _mm256_mullo_epi16(LoadInts(of_chunk + v * 2 * kLanes), minus_center);
#pragma GCC unroll 3
        for (int r = 1; r < kRows; ++r) lane[r][v] = lane[0][v];
      }
#pragma GCC unroll 4
      for (int group = 0; group < kChunk / 4; ++group) {
        const __m256i w0 = LoadInts(weights + group * 8 * kLanes), w1 = LoadInts(weights + group * 8 * kLanes + 32);
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) {
          const __m256i x = BroadcastGroup(in + r * stride + 4 * group);
          lane[r][0] = _mm256_add_epi16(lane[r][0], _mm256_maddubs_epi16(x, w0));
          FTBERT_KEEP(lane[r][0]);
          lane[r][1] = _mm256_add_epi16(lane[r][1], _mm256_maddubs_epi16(x, w1));
          FTBERT_KEEP(lane[r][1]);
        }
      }
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) {
        sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(lane[r][0], LoadInts(ones)));
        sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(lane[r][1], LoadInts(ones)));
      }
    } else {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const __m256i shift = _mm256_madd_epi16(LoadInts(of_chunk + v * 2 * kLanes), minus_center);
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) sum[r][v] = _mm256_add_epi32(sum[r][v], shift);
      }
      for (int group = 0; group < kChunk / 4; ++group) {
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) {
          const __m256i x = BroadcastGroup(in + r * stride + 4 * group);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            const __m256i pairs = _mm256_maddubs_epi16(x, LoadInts(weights + (group * kVectors + v) * 4 * kLanes));
            sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(pairs, LoadInts(ones)));
            FTBERT_KEEP(sum[r][v]);
          }
        }
      }
    }
    in += kChunk;
    weights += kChunk * kColumns;
    of_chunk += 2 * kColumns;
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    __m256i back = _mm256_setzero_si256();
    if (block.columns != nullptr) {
      back = _mm256_mullo_epi32(LoadInts(block.columns + v * kLanes), _mm256_set1_epi32(tile.center));
    }
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
      Int8Avx2::Store(sums + r * kColumns + v * kLanes, _mm256_add_epi32(sum[r][v], back));
    }
  }
}

void ComputeCentered(const LinearJob& job) {
  alignas(64) int32_t sums[kTilesAtATime][Int8Avx2::kRowTile * kColumns];
  TileRows tiles[kTilesAtATime];
  int32_t rows_of[kTilesAtATime];
  const int32_t count = (job.rows + Int8Avx2::kRowTile - 1) / Int8Avx2::kRowTile;
  const int32_t small = job.rows / count, larger = job.rows % count;
  const int32_t chunks = job.lines * kChunksPerLine;
  const size_t norms_offset = job.scale_offset + kLineBytes;
  int32_t row = 0;
  for (int32_t first = 0; first < count; first += kTilesAtATime) {
    const int32_t some = count - first < kTilesAtATime ? count - first : kTilesAtATime;
    int32_t next = row;
    for (int32_t i = 0; i < some; ++i) {
      rows_of[i] = small + (first + i < larger);
      tiles[i] = TileRows(job, next, rows_of[i]);
      next += rows_of[i];
    }
    for (int32_t p = 0; p < job.panel_count; ++p) {
      const uint8_t* weights = job.weights + p * job.panel_bytes;
      const PanelTail tail(weights, job.lines);
      FetchAhead ahead(job, p, some * chunks);
      for (int32_t chunk = 0; chunk < chunks; chunk += kBlockChunks) {
        const bool last = chunk + kBlockChunks >= chunks;
        const PanelBlock block = {weights + chunk * kChunk * kColumns, tail.sums + chunk * 2 * kColumns,
                                  tail.limits + chunk, last ? tail.columns : nullptr, chunk,
                                  last ? chunks - chunk : kBlockChunks};
        int32_t at = row;
        for (int32_t i = 0; i < some; ++i) {
          switch (rows_of[i]) {
            case 1: CenteredTile<1>(tiles[i], job.in_stride, norms_offset, block, &ahead, sums[i]); break;
            case 2: CenteredTile<2>(tiles[i], job.in_stride, norms_offset, block, &ahead, sums[i]); break;
            default: CenteredTile<3>(tiles[i], job.in_stride, norms_offset, block, &ahead, sums[i]); break;
          }
          if (last) Finish<Int8Avx2>(job, p, at, rows_of[i], sums[i]);
          at += rows_of[i];
        }
      }
    }
    row = next;
  }
}

}  // namespace

const LinearOps kInt8Avx2 = {Isa::kAvx2,     Int8Avx2::kRowTile, kColumns,       false,       66, PrepareCentered,
                             ComputeCentered, true,              PanelTailBytes, FinishPanel, RowTailBytes};

}  // namespace cpu
}  // namespace ftbert
