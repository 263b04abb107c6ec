// A float in three bf16 parts, for linear_fp32_amx.cc: inputs as they are multiplied, weights as they are held, and how
// these are brought near.
//
// Prepared rows:  [ group of 16 rows ][ line of 32 inputs ][ part ][ row of the group ][ 32 x bf16 ]
// Packed panel:   [ line of 32 inputs ][ tile of 16 columns ][ pair of inputs ][ first parts ][ the rest of them ]
//                 either of the two: [ column ][ input of the pair, 16 bits ]
// Near:           [ line ][ tile of 16 columns ][ second parts, third parts ][ pair of inputs ][ column ][ input of the
//                 pair, bf16 ]
//
// Three parts of a weight would take half as much memory again as the float. They fit into its 32 bits because the
// second is made to be 2^-7 to 2^-6 of the first one's power of two, and the third 2^-14 to 2^-13: then sign and
// mantissa of either are a byte, their exponents follow from the first one's, and bringing them into tiles takes six
// instructions for 32 weights. So a weight is kept to 2^-21 of itself at worst, 2^-23 in the root mean square. First
// parts are read where they lie.
#ifndef FTBERT_CPU_FP32_PARTS_H_
#define FTBERT_CPU_FP32_PARTS_H_

#include "cpu/amx_rows.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int32_t kParts = 3;
constexpr int32_t kFetchedLines = 4;   // of weights, into the second level, before they are brought near
constexpr int32_t kPairs = kTileRows;  // of inputs in a line
constexpr size_t kLineOfRows = kParts * kTileBytes;
constexpr size_t kPairBytes = 2 * kLineBytes;  // of weights
constexpr size_t kLineOfWeights = 2 * kPairs * kPairBytes;
constexpr size_t kLineOfNear = 2 * (kParts - 1) * kTileBytes;

// ---- Inputs -------------------------------------------------------------------------------------------------------

// The upper halves of all floats of `x` and `y`, x's first.
inline __m512i UpperHalves(__m512i x, __m512i y) {
  alignas(64) static const uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                  33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(x, _mm512_load_si512(kUpper), y);
}

// 32 inputs of a row: one line of each part, the first two rounded to nearest.
inline void StoreParts(uint8_t* to, Vec x, Vec y) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
#pragma GCC unroll 3
  for (int part = 0; part < kParts; ++part, to += kTileBytes) {
    __m512i a = _mm512_castps_si512(x), b = _mm512_castps_si512(y);
    if (part < kParts - 1) {
      a = _mm512_add_epi32(a, half);
      b = _mm512_add_epi32(b, half);
      x = Sub(x, _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
      y = Sub(y, _mm512_castsi512_ps(_mm512_and_si512(b, upper)));
    }
    _mm512_storeu_si512(to, UpperHalves(a, b));
  }
}

void PrepareParts(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, uint8_t* prepared,
                  size_t stride) {
  const int32_t lines = Lines(inputs, 2), whole = inputs / kColumns;
  for (int32_t r = 0; r < rows; ++r, in += in_stride) {
    uint8_t* to = PreparedRow<kTileRows>(prepared, stride, r);
    for (int32_t line = 0; line < whole; ++line, to += kLineOfRows) {
      StoreParts(to, Load(in + kColumns * line), Load(in + kColumns * line + kLanes));
    }
    if (whole < lines) {
      const float* rest = in + kColumns * whole;
      const int32_t first = inputs - kColumns * whole, second = first - kLanes;
      StoreParts(to, first < kLanes ? LoadPartial(rest, first) : Load(rest),
                 second > 0 ? LoadPartial(rest + kLanes, second) : Zero());
    }
  }
}

// ---- Weights ------------------------------------------------------------------------------------------------------

constexpr int kSecondBelow = 7, kThirdBelow = 14;  // powers of two below the first part

inline __m512i All(int x) { return _mm512_set1_epi32(x); }

// A weight's parts. In units of its last place and without its sign: the first is the weight cut to bf16 less one step
// of that (65536), so that one to two steps are left; of these the second is the cut less one step of its own (512), so
// that one to two steps of it are left for the third. Where a part would leave its power of two so, it is two steps
// more instead, and the sign of what is left turns.
//   first   bf16
//   rest    bit 15 the second's sign, bits 6 .. 0 its mantissa; bit 7 and bits 14 .. 8 the third's
inline void Encode(__m512i weights, __m512i* first, __m512i* rest) {
  const __m512i sign = _mm512_srli_epi32(weights, 31), magnitude = _mm512_and_si512(weights, All(0x7fffffff));
  const __m512i cut = _mm512_srli_epi32(magnitude, 16), mantissa = _mm512_and_si512(cut, All(0x7f));
  __m512i left = _mm512_and_si512(magnitude, All(0xffff));
  // (Little is left of weights that were rounded to 16 bits: they are exact this way.)
  const __mmask16 more = _mm512_cmpeq_epi32_mask(mantissa, All(0)) |
                         (_mm512_cmplt_epi32_mask(left, All(512)) & _mm512_cmple_epi32_mask(mantissa, All(125)));
  __m512i one = _mm512_mask_add_epi32(_mm512_sub_epi32(cut, All(1)), more, cut, All(2));
  left = _mm512_mask_sub_epi32(left, more, All(65536), left);  // beyond one step
  const __m512i second_cut = _mm512_srli_epi32(left, 9);
  const __mmask16 more2 = _mm512_cmpeq_epi32_mask(second_cut, All(0));
  const __m512i two = _mm512_mask_mov_epi32(_mm512_sub_epi32(second_cut, All(1)), more2, All(2));
  left = _mm512_and_si512(left, All(511));
  left = _mm512_mask_sub_epi32(left, more2, All(512), left);
  const __m512i three = _mm512_min_epi32(_mm512_srli_epi32(_mm512_add_epi32(left, All(2)), 2), All(127));
  const __m512i sign2 = _mm512_mask_xor_epi32(sign, more, sign, All(1));
  const __m512i sign3 = _mm512_mask_xor_epi32(sign2, more2, sign2, All(1));
  *rest = _mm512_or_si512(_mm512_or_si512(_mm512_slli_epi32(sign2, 15), two),
                          _mm512_or_si512(_mm512_slli_epi32(three, 8), _mm512_slli_epi32(sign3, 7)));
  // Infinities stay what they are, and NaN.
  one = _mm512_mask_mov_epi32(one, _mm512_cmpge_epi32_mask(cut, All(0x7f80)), cut);
  one = _mm512_mask_mov_epi32(one, _mm512_cmpgt_epi32_mask(magnitude, All(0x7f800000)), All(0x7fc0));
  *first = _mm512_or_si512(_mm512_slli_epi32(sign, 15), one);
}

// A panel of floats, [ line ][ tile of 16 columns ][ input ][ column ], as it is to be.
void EncodePanel(uint8_t* panel, int32_t lines) {
  for (int32_t pair = 0; pair < 2 * kPairs * lines; ++pair, panel += kPairBytes) {
    __m512i first[2], rest[2];  // of either input of the pair
    for (int i = 0; i < 2; ++i) Encode(_mm512_loadu_si512(panel + i * kLineBytes), &first[i], &rest[i]);
    _mm512_storeu_si512(panel, _mm512_or_si512(first[0], _mm512_slli_epi32(first[1], 16)));
    _mm512_storeu_si512(panel + kLineBytes, _mm512_or_si512(rest[0], _mm512_slli_epi32(rest[1], 16)));
  }
}

// Brings second and third parts of weights near, and fetches the weights that come some lines later.
class Nearing {
 public:
  static constexpr int32_t kAtOnce = 4;  // pairs of inputs

  explicit Nearing(const LinearJob& job) : job_(job), at_(job.weights) { Fetch(0, kFetchedLines); }

  // The next `lines` of a panel, to `to`; none behind the last panel.
  void Begin(uint8_t* to, int32_t lines) {
    to_ = to;
    from_ = at_;
    pairs_ = near_panel_ < job_.panel_count ? 2 * kPairs * lines : 0;
    near_line_ += lines;
    at_ += lines * kLineOfWeights;
    if (near_line_ == job_.lines) {
      near_line_ = 0;
      at_ = job_.weights + ++near_panel_ * job_.panel_bytes;
    }
  }
  int32_t pairs() const { return pairs_; }

  // `count` pairs more, a multiple of kAtOnce.
  inline __attribute__((always_inline)) void Advance(int32_t count) {
    if (count > pairs_) count = pairs_;
    pairs_ -= count;
    for (; count > 0; count -= kAtOnce) Some();
  }

 private:
  // What is fetched next: from that line of a panel on; behind the last panel what this thread reads then.
  void Fetch(int32_t panel, int32_t line) {
    fetch_panel_ = panel;
    while (fetch_panel_ < job_.panel_count && line >= job_.lines) line -= job_.lines, ++fetch_panel_;
    const uint8_t* first = fetch_panel_ < job_.panel_count ? job_.weights + fetch_panel_ * job_.panel_bytes : job_.then;
    fetch_ = first == nullptr ? job_.weights : first + line * kLineOfWeights;
    fetch_end_ = fetch_panel_ < job_.panel_count ? first + job_.lines * kLineOfWeights : nullptr;
  }

  inline __attribute__((always_inline)) void Some() {
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kAtOnce; ++i) PrefetchSecondLevel(fetch_ + i * kLineBytes);
    fetch_ += kAtOnce * kPairBytes;
    if (fetch_ == fetch_end_) Fetch(fetch_panel_ + 1, 0);
    constexpr int kFirstAndSecondOrThird = 0xea, kExponents = 0x7f80;
    const __m512i signs = _mm512_set1_epi16(static_cast<int16_t>(0x807f));
    const __m512i second = _mm512_set1_epi16(kSecondBelow << 7), third = _mm512_set1_epi16(kThirdBelow << 7);
    const __m512i turned = _mm512_set4_epi32(0x0e0f0c0d, 0x0a0b0809, 0x06070405, 0x02030001);
#pragma GCC unroll 8
    for (int i = 0; i < kAtOnce; ++i) {
      const __m512i first = _mm512_load_si512(from_ + i * kPairBytes);
      const __m512i rest = _mm512_load_si512(from_ + i * kPairBytes + kLineBytes);
      const __m512i exponents = _mm512_and_si512(first, _mm512_set1_epi16(kExponents));
      const __m512i two = _mm512_ternarylogic_epi32(signs, rest, _mm512_subs_epu16(exponents, second),
                                                    kFirstAndSecondOrThird);
      const __m512i three = _mm512_ternarylogic_epi32(signs, _mm512_shuffle_epi8(rest, turned),
                                                      _mm512_subs_epu16(exponents, third), kFirstAndSecondOrThird);
      _mm512_store_si512(to_ + i * kLineBytes, two);
      _mm512_store_si512(to_ + i * kLineBytes + kTileBytes, three);
    }
    from_ += kAtOnce * kPairBytes;
    to_ += kAtOnce * kLineBytes;
    if (reinterpret_cast<uintptr_t>(to_) % kTileBytes == 0) to_ += kTileBytes;
  }

  const LinearJob& job_;
  const uint8_t* at_;
  int32_t near_panel_ = 0, near_line_ = 0;  // where that is
  int32_t fetch_panel_ = 0;
  const uint8_t* fetch_ = nullptr;
  const uint8_t* fetch_end_ = nullptr;
  const uint8_t* from_ = nullptr;
  uint8_t* to_ = nullptr;
  int32_t pairs_ = 0;
};

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_FP32_PARTS_H_
