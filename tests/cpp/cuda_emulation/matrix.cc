// Numbers of 16 and 8 bits, and the instructions that multiply matrices.
#include <cmath>

#include "machine.h"

namespace {

float Bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// `exponent` bits of exponent, then `mantissa` bits; the top exponent means numbers too where `finite` (e4m3).
float Widen(uint32_t bits, int exponent, int mantissa, bool finite) {
  const int sign = bits >> (exponent + mantissa) & 1, e = bits >> mantissa & ((1 << exponent) - 1);
  const int m = bits & ((1 << mantissa) - 1), bias = (1 << (exponent - 1)) - 1, top = (1 << exponent) - 1;
  float value;
  if (e == top && (!finite || m == (1 << mantissa) - 1)) {
    value = m == 0 ? INFINITY : NAN;
  } else if (e == 0) {
    value = std::ldexp(static_cast<float>(m), 1 - bias - mantissa);
  } else {
    value = std::ldexp(static_cast<float>(m | 1 << mantissa), e - bias - mantissa);
  }
  return sign ? -value : value;
}

// To the nearest number with `mantissa` bits and at least the exponent `least`, even ones first.
float RoundTo(float x, int mantissa, int least) {
  int e;
  std::frexp(x, &e);
  const int step = std::max(e - 1, least) - mantissa;
  return std::ldexp(std::nearbyint(std::ldexp(x, -step)), step);
}

struct Tables {
  float half[65536], float8[256];
  Tables() {
    for (int i = 0; i < 65536; ++i) half[i] = Widen(i, 5, 10, false);
    for (int i = 0; i < 256; ++i) float8[i] = Widen(i, 4, 3, true);
  }
};
const Tables& tables() {
  static const Tables* const made = new Tables;
  return *made;
}

uint32_t Narrow(float rounded, int exponent, int mantissa) {  // of a number that fits
  uint32_t sign = std::signbit(rounded) ? 1u << (exponent + mantissa) : 0;
  rounded = std::fabs(rounded);
  if (rounded == 0) return sign;
  int e;
  std::frexp(rounded, &e);
  const int bias = (1 << (exponent - 1)) - 1, field = std::max(e - 1 + bias, 0);
  const int scale = (field == 0 ? 1 : field) - bias - mantissa;
  const uint32_t m = static_cast<uint32_t>(std::ldexp(rounded, -scale));
  return sign | (field == 0 ? m : (static_cast<uint32_t>(field) << mantissa) + (m - (1u << mantissa)));
}

}  // namespace

float __half2float(__half x) { return tables().half[x.bits]; }
__half __float2half(float x) {
  if (std::isnan(x)) return {0x7fff};
  const float rounded = std::isinf(x) ? x : RoundTo(x, 10, -14);
  if (std::fabs(rounded) > 65504.f) return {static_cast<uint16_t>(x < 0 ? 0xfc00 : 0x7c00)};
  return {static_cast<uint16_t>(Narrow(rounded, 5, 10))};
}
__nv_bfloat16 __float2bfloat16(float x) {
  if (std::isnan(x)) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
float Float8ToFloat(uint8_t bits) { return tables().float8[bits]; }
uint8_t FloatToFloat8(float x) {
  if (std::isnan(x)) return 0x7f;
  float rounded = std::isinf(x) ? x : RoundTo(x, 3, -6);
  if (std::fabs(rounded) > 448.f) rounded = std::copysign(448.f, rounded);
  return static_cast<uint8_t>(Narrow(rounded, 4, 3));
}

namespace emulation {
namespace {

float Value(const void* from, Kind kind) {
  uint16_t bits;
  if (kind == Kind::kFloat8) return Float8ToFloat(*static_cast<const uint8_t*>(from));
  std::memcpy(&bits, from, 2);
  return kind == Kind::kHalf ? __half2float({bits}) : Bits(static_cast<uint32_t>(bits) << 16);
}

}  // namespace

// Matrix i of four has its row r at the address that lane 8 i + r gives.
void LoadMatrix4(uint32_t (&r)[4], uint32_t address, bool transposed) {
  Warp* const warp = running->warp;
  Cta* const cta = running->cta;
  const int turn = warp->meeting.generation & 1, lane = running->lane;
  const bool inside = AccessShared(cta, address, 16, false, running->who, running->clock, running->known);
  warp->values[turn][lane] = inside ? address : 0;
  if (Meet(&warp->meeting, transposed ? "ldmatrix.trans" : "ldmatrix", false)) Part(&warp->meeting);
  for (int i = 0; i < 4; ++i) {
    const auto at = [&](int row, int column) {
      uint16_t bits;
      std::memcpy(&bits, SharedMemory(cta, warp->values[turn][8 * i + row]) + column * 2, 2);
      return static_cast<uint32_t>(bits);
    };
    const int major = lane / 4, minor = lane % 4 * 2;
    r[i] = transposed ? at(minor, major) | at(minor + 1, major) << 16 : at(major, minor) | at(major, minor + 1) << 16;
  }
}

void StoreMatrix4(uint32_t address, const uint32_t (&r)[4]) {
  Warp* const warp = running->warp;
  const int turn = warp->meeting.generation & 1, lane = running->lane;
  const bool inside = AccessShared(running->cta, address, 16, true, running->who, running->clock, running->known);
  warp->values[turn][lane] = inside ? address : 0;
  std::memcpy(warp->products[lane].a, r, 16);
  if (!Meet(&warp->meeting, "stmatrix", false)) return;
  for (int from = 0; from < 32; ++from) {
    for (int i = 0; i < 4; ++i) {
      uint8_t* const row = SharedMemory(running->cta, warp->values[turn][8 * i + from / 4]);
      std::memcpy(row + from % 4 * 4, &warp->products[from].a[i], 4);
    }
  }
  Part(&warp->meeting);
}

void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Kind kind) {
  Warp* const warp = running->warp;
  Warp::Product& mine = warp->products[running->lane];
  std::memcpy(mine.a, a, 16);
  mine.b[0] = b0, mine.b[1] = b1, mine.d = d;
  if (!Meet(&warp->meeting, "mma.sync", false)) return;
  float left[16][16], right[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Warp::Product& p = warp->products[lane];
    for (int c = 0; c < 2; ++c) {
      const int k = lane % 4 * 2 + c, row = lane / 4;
      const auto half = [&](const uint32_t& word) { return Value(reinterpret_cast<const uint16_t*>(&word) + c, kind); };
      left[row][k] = half(p.a[0]), left[row + 8][k] = half(p.a[1]);
      left[row][k + 8] = half(p.a[2]), left[row + 8][k + 8] = half(p.a[3]);
      right[k][row] = half(p.b[0]), right[k + 8][row] = half(p.b[1]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = warp->products[lane].d[i];
      for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
      warp->products[lane].d[i] = sum;
    }
  }
  Part(&warp->meeting);
}

// ---- wgmma --------------------------------------------------------------------------------------------------------
void WgmmaFence() { running->fenced = true; }
void WgmmaCommit() { ++running->product_group; }

void WgmmaWait(int pending) {
  Fiber* const fiber = running;
  fiber->fenced = false;
  const uint64_t end = fiber->product_group < static_cast<uint64_t>(pending) ? 0 : fiber->product_group - pending;
  for (size_t i = 0; i < fiber->accumulators.size();) {
    Accumulator& a = fiber->accumulators[i];
    if (a.group >= end) {
      ++i;
      continue;
    }
    std::memcpy(a.place, a.values.data(), a.count * sizeof(float));
    fiber->accumulators.erase(fiber->accumulators.begin() + i);
  }
  for (size_t i = 0; i < fiber->operands.size();) {
    if (fiber->operands[i].group < end) {
      fiber->operands.erase(fiber->operands.begin() + i);
    } else {
      ++i;
    }
  }
  while (!fiber->product_clocks.empty() && fiber->product_clocks.front().first < end) {
    fiber->known = Learn(fiber->known, fiber->group->agent, fiber->product_clocks.front().second);
    fiber->product_clocks.erase(fiber->product_clocks.begin());
  }
}

namespace {

// Row r (of 128-byte rows in groups of eight) of the operand that a descriptor names.
uint32_t OperandRow(uint64_t descriptor, int row) {
  const uint32_t begin = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  return begin + row / 8 * stride + row % 8 * 128;
}

// Reads `bytes` of `rows` rows through the swizzle, as the warpgroup's agent.
void ReadOperand(WarpGroup* group, uint64_t descriptor, int rows, int bytes, uint8_t* to) {
  if (descriptor >> 62 != 1) Fault("a product's operand without the 128-byte swizzle");
  std::vector<Known> seen;
  for (const WarpGroup::Part& part : group->parts) {
    bool had = false;
    for (const Known& known : seen) had = had || known == part.known;
    if (!had) seen.push_back(part.known);
  }
  for (int row = 0; row < rows; ++row) {
    for (int piece = 0; piece < bytes; piece += 16) {
      const uint32_t at = OperandRow(descriptor, row) + piece, swizzled = at ^ (at >> 3 & 0x70);
      bool inside = true;
      for (const Known& known : seen) {
        inside = inside && AccessShared(running->cta, swizzled, 16, false, group->agent, group->clock, known);
      }
      if (inside) {
        std::memcpy(to + row * bytes + piece, SharedMemory(running->cta, swizzled), 16);
      } else {
        std::memset(to + row * bytes + piece, 0xff, 16);
      }
    }
  }
}

}  // namespace

void Wgmma(float* d, int columns, const uint32_t* a_registers, uint64_t a, uint64_t b, bool accumulate, Kind kind,
           bool b_keys) {
  Fiber* const fiber = running;
  WarpGroup* const group = fiber->group;
  if (!fiber->fenced) Fault("wgmma without WgmmaFence since the latest wait");
  Accumulator* mine = nullptr;
  for (Accumulator& one : fiber->accumulators) {
    if (one.place == d) mine = &one;
  }
  if (mine == nullptr) {
    fiber->accumulators.push_back(Accumulator{d, columns / 2, 0, std::vector<float>(d, d + columns / 2)});
    mine = &fiber->accumulators.back();
    for (int i = 0; i < columns / 2; ++i) d[i] = NAN;
  }
  mine->group = fiber->product_group;
  if (!accumulate) std::fill(mine->values.begin(), mine->values.end(), 0.f);
  WarpGroup::Part& part = group->parts[fiber->thread.x % 128];
  part.sums = mine->values.data();
  part.known = fiber->known;
  if (a_registers != nullptr) {
    std::memcpy(part.a, a_registers, 16);
    fiber->operands.push_back(Operand{a_registers, fiber->product_group});
  }
  if (group->meeting.arrived > 0 && (group->columns != columns || group->a != a || group->b != b)) {
    Fault("a warpgroup's threads ask for different products");
  }
  group->columns = columns, group->a = a, group->b = b;
  if (group->meeting.arrived == 0) group->clock = ++now;
  fiber->product_clocks.emplace_back(fiber->product_group, group->clock);
  if (!Meet(&group->meeting, "wgmma", false)) return;

  const int depth = kind == Kind::kFloat8 ? 32 : 16, size = 32 / depth;  // 32 bytes of K
  std::vector<uint8_t> bytes(256 * 32);
  std::vector<float> left(64 * depth), right(depth * columns), sums(columns);
  if (a_registers == nullptr) {
    ReadOperand(group, a, 64, 32, bytes.data());
    for (int row = 0; row < 64; ++row) {
      for (int k = 0; k < depth; ++k) left[row * depth + k] = Value(&bytes[row * 32 + k * size], kind);
    }
  } else {  // as mma.sync's left operand, 16 rows a warp
    for (int t = 0; t < 128; ++t) {
      for (int i = 0; i < 8; ++i) {
        const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, k = t % 4 * 2 + i % 2 + i / 4 * 8;
        left[row * depth + k] = Value(reinterpret_cast<const uint16_t*>(group->parts[t].a) + i, kind);
      }
    }
  }
  if (a_registers == nullptr || b_keys) {
    ReadOperand(group, b, columns, 32, bytes.data());
    for (int column = 0; column < columns; ++column) {
      for (int k = 0; k < depth; ++k) right[k * columns + column] = Value(&bytes[column * 32 + k * size], kind);
    }
  } else {  // a row for each k
    ReadOperand(group, b, depth, columns * 2, bytes.data());
    for (int i = 0; i < depth * columns; ++i) right[i] = Value(&bytes[i * 2], kind);
  }
  for (int row = 0; row < 64; ++row) {
    std::fill(sums.begin(), sums.end(), 0.f);
    for (int k = 0; k < depth; ++k) {
      const float factor = left[row * depth + k];
      const float* const values = &right[k * columns];
      for (int column = 0; column < columns; ++column) sums[column] += factor * values[column];
    }
    for (int column = 0; column < columns; ++column) {
      const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
      group->parts[thread].sums[column / 8 * 4 + row / 8 % 2 * 2 + column % 2] += sums[column];
    }
  }
  Part(&group->meeting);
}

}  // namespace emulation
