// Attention of one query a head to a row's states themselves, at every instruction set of this machine: the kernel
// against plain loops in double, bitwise independence of how heads are taken together, extreme scores, NaN; and the
// weights that take queries to the states and the states to values.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/product.h"

namespace {

using namespace ftbert;
using cpu::Isa;
using cpu::Kernels;

std::mt19937 generator(5);
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> Random(size_t count, float scale = 1.f) {
  std::normal_distribution<float> normal(0.f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

struct Row {
  int32_t tokens, hidden, heads;
  ptrdiff_t stride, states_stride;
  std::vector<float> u, states;  // both begin one float in: misaligned; behind the states' H, NaN

  Row(int32_t tokens, int32_t hidden, int32_t heads, float size)
      : tokens(tokens), hidden(hidden), heads(heads), stride(hidden + 3), states_stride(hidden + 17),
        u(Random(heads * stride + 1, size)), states(Random(tokens * states_stride + 32)) {
    for (int32_t t = 0; t < tokens; ++t) {
      for (ptrdiff_t h = hidden; h < states_stride; ++h) states[1 + t * states_stride + h] = kNan;
    }
  }
  float* query(int32_t head) { return u.data() + 1 + head * stride; }
  float* state(int32_t token) { return states.data() + 1 + token * states_stride; }
};

constexpr float kScale = 0.125f;

// Heads [first, first + heads) of the row, in place or to `out`.
void Attend(const Kernels& kernels, Row* row, int32_t first, int32_t heads, float* out) {
  std::vector<float> scratch(kernels.attend_states_scratch_floats(row->hidden), kNan);
  cpu::AttendStatesTask task = {};
  task.u = row->query(first);
  task.out = out;
  task.stride = row->stride;
  task.heads = heads;
  task.states = row->state(0);
  task.states_stride = row->states_stride;
  task.tokens = row->tokens;
  task.hidden = row->hidden;
  task.scale = kScale;
  task.scratch = scratch.data();
  kernels.attend_states(task);
}

void TestRow(const Kernels& kernels, int32_t tokens, int32_t hidden, int32_t heads, float size, double tolerance) {
  Row row(tokens, hidden, heads, size);
  std::vector<float> out(heads * row.stride, kNan);
  Attend(kernels, &row, 0, heads, out.data());
  double worst = 0;
  for (int32_t head = 0; head < heads; ++head) {
    std::vector<double> scores(tokens);
    double largest = -1e300, total = 0;
    for (int32_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int32_t h = 0; h < hidden; ++h) sum += static_cast<double>(row.query(head)[h]) * row.state(t)[h];
      scores[t] = sum * kScale;
      largest = std::fmax(largest, scores[t]);
    }
    for (double& score : scores) total += score = std::exp(score - largest);
    for (int32_t h = 0; h < hidden; ++h) {
      double sum = 0;
      for (int32_t t = 0; t < tokens; ++t) sum += scores[t] * row.state(t)[h];
      const double error = std::fabs(out[head * row.stride + h] - sum / total);
      if (!(error <= worst)) worst = error;
    }
    for (ptrdiff_t h = hidden; h < row.stride; ++h) CHECK(std::isnan(out[head * row.stride + h]));
  }
  if (!(worst <= tolerance)) {
    std::printf("  %d tokens, hidden %d, %d heads, size %g: error %.3g\n", tokens, hidden, heads, size, worst);
  }
  CHECK(worst <= tolerance);
  // One head alone, the last few together, and all in place of u: the same bits.
  const auto same = [&](int32_t first, int32_t count, const float* got) {
    for (int32_t i = 0; i < count; ++i) {
      CHECK(std::memcmp(got + i * row.stride, &out[(first + i) * row.stride], hidden * sizeof(float)) == 0);
    }
  };
  std::vector<float> some(heads * row.stride, kNan);
  Attend(kernels, &row, heads / 2, 1, some.data());
  same(heads / 2, 1, some.data());
  const int32_t last = std::min(heads, 5);
  Attend(kernels, &row, heads - last, last, some.data());
  same(heads - last, last, some.data());
  Attend(kernels, &row, 0, heads, row.query(0));
  same(0, heads, row.query(0));
}

void TestRows(const Kernels& kernels) {
  for (int32_t tokens : {1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 97, 128, 129, 300, 512}) {
    TestRow(kernels, tokens, 768, 12, 0.3f, 2e-5);
    TestRow(kernels, tokens, 40, 5, 1.f, 1e-5);
  }
  for (int32_t hidden : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 97, 255, 256, 257, 312, 1024}) {
    for (int32_t heads : {1, 8}) TestRow(kernels, 70, hidden, heads, 1.f, 2e-5);
  }
  for (int32_t heads : {1, 2, 5, 6, 7, 8, 9, 12, 13, 16, 17, 31, 32, 33, 40}) {
    TestRow(kernels, 70, 64, heads, 1.f, 1e-5);
  }
  // Scores up to hundreds: rounding of the scores themselves is all the error there may be.
  TestRow(kernels, 129, 768, 12, 20.f, 5e-3);
}

// Scores of 1e29 and equal ones: the largest wins or shares, nothing overflows.
void TestExtremes(const Kernels& kernels) {
  constexpr int32_t kTokens = 150;
  Row row(kTokens, 16, 3, 1.f);
  for (int32_t head = 0; head < 3; ++head) {
    for (int32_t h = 0; h < 16; ++h) row.query(head)[h] = h == 0 ? 1e15f : 0.f;
  }
  for (int32_t t = 0; t < kTokens; ++t) {
    row.state(t)[0] = t == 140 ? 1e15f : -1e15f;
    row.state(t)[1] = static_cast<float>(t);
  }
  std::vector<float> out(3 * row.stride);
  Attend(kernels, &row, 0, 3, out.data());
  for (int32_t head = 0; head < 3; ++head) CHECK_NEAR(out[head * row.stride + 1], 140.0, 1e-3);
  row.state(140)[0] = -1e15f;
  Attend(kernels, &row, 0, 3, out.data());
  for (int32_t head = 0; head < 3; ++head) CHECK_NEAR(out[head * row.stride + 1], 74.5, 1e-3);
  // A NaN in one head's u spoils that head alone; in a state, everything.
  row.query(1)[4] = kNan;
  Attend(kernels, &row, 0, 3, out.data());
  for (int32_t head = 0; head < 3; ++head) CHECK_EQ(std::isnan(out[head * row.stride + 7]), head == 1);
  for (int32_t token : {0, 70, kTokens - 1}) {
    Row spoiled(kTokens, 16, 3, 1.f);
    spoiled.state(token)[9] = kNan;
    Attend(kernels, &spoiled, 0, 3, out.data());
    for (int32_t i = 0; i < 3 * 16; ++i) CHECK(std::isnan(out[i / 16 * row.stride + i % 16]));
  }
}

// Rows through both products by heads, on several threads: what the matrix (H, H) itself gives.
void TestProductsByHeads(Isa isa, int32_t hidden, int32_t heads, int32_t rows, int threads, bool transposed) {
  const int32_t size = hidden / heads, H = hidden;
  const std::vector<float> weights = Random(static_cast<size_t>(H) * H), bias = Random(H);
  SourceMatrix source;
  source.data = weights.data();
  source.rows = source.cols = H;
  source.transposed = transposed;
  source.bias = bias.data();
  std::unique_ptr<cpu::PackedMatrix> to_states, to_values;
  CHECK_OK(cpu::PackHeads(*cpu::Fp32Kernel(isa), source, heads, true, &to_states));
  CHECK_OK(cpu::PackHeads(*cpu::Fp32Kernel(isa), source, heads, false, &to_values));
  const auto weight = [&](int32_t k, int32_t n) { return weights[transposed ? n * H + k : k * H + n]; };

  const auto make = [&](int32_t columns, std::vector<float>* memory, float value) {
    cpu::Rows view;
    view.stride = cpu::PaddedStride(columns);
    view.count = rows;
    *memory = value == 0.f ? Random(rows * view.stride) : std::vector<float>(rows * view.stride, value);
    view.data = memory->data();
    return view;
  };
  std::vector<float> memory[4];
  const cpu::Rows query = make(H, &memory[0], 0.f), u = make(heads * H, &memory[1], kNan);
  const cpu::Rows z = make(heads * H, &memory[2], 0.f), context = make(H, &memory[3], kNan);
  cpu::Team team(threads);
  cpu::ProductScratch scratch;
  cpu::Products products(cpu::KernelsFor(isa), &team, &scratch);
  products.LinearOfParts(*to_states, size, query, u);
  products.LinearOfParts(*to_values, H, z, context);
  double worst = 0;
  for (int32_t r = 0; r < rows; ++r) {
    for (int32_t head = 0; head < heads; ++head) {
      for (int32_t h = 0; h < H; ++h) {
        double sum = 0;
        for (int32_t d = 0; d < size; ++d) {
          sum += static_cast<double>(query.row(r)[head * size + d]) * weight(h, head * size + d);
        }
        const double error = std::fabs(u.row(r)[head * H + h] - sum);
        if (!(error <= worst)) worst = error;
      }
      for (int32_t d = 0; d < size; ++d) {
        double sum = bias[head * size + d];
        for (int32_t h = 0; h < H; ++h) sum += static_cast<double>(z.row(r)[head * H + h]) * weight(h, head * size + d);
        const double error = std::fabs(context.row(r)[head * size + d] - sum);
        if (!(error <= worst)) worst = error;
      }
    }
    for (ptrdiff_t n = H; n < context.stride; ++n) CHECK(std::isnan(context.row(r)[n]));
  }
  if (!(worst <= 1e-4)) std::printf("  %d heads of %d, %d rows: error %.3g\n", heads, size, rows, worst);
  CHECK(worst <= 1e-4);
}

}  // namespace

int main() {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa > cpu::MachineIsa()) continue;
    std::printf("%s\n", cpu::IsaName(isa));
    TestRows(*cpu::KernelsFor(isa));
    TestExtremes(*cpu::KernelsFor(isa));
    for (const bool transposed : {false, true}) {
      TestProductsByHeads(isa, 1, 1, 1, 1, transposed);
      TestProductsByHeads(isa, 97, 1, 3, 2, transposed);
      TestProductsByHeads(isa, 120, 3, 7, 3, transposed);
      TestProductsByHeads(isa, 256, 4, 1, 3, transposed);
      TestProductsByHeads(isa, 256, 4, 150, 2, transposed);
      TestProductsByHeads(isa, 256, 2, 150, 1, transposed);
    }
  }
  return ftbert_test::Finish();
}
