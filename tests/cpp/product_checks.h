// The checks of an int8 or bf16 form that concern cuts between rows: how many there are, how they are prepared, and the
// ways in which product.cc shares them out.
#ifndef FTBERT_TESTS_CPP_PRODUCT_CHECKS_H_
#define FTBERT_TESTS_CPP_PRODUCT_CHECKS_H_

#include <algorithm>

#include "cpu/product.h"
#include "linear_fixture.h"

namespace ftbert_test {

// The first rows of a problem, any number of them, give the bits that they give among all.
inline void CheckRowCounts(const Form& form, const Problem& p, int parts, Epilogue epilogue) {
  const PackedMatrix packed = p.Pack(*form.kernel, parts);
  const std::vector<float> all = Multiply(*form.kernel, packed, p.x.data(), p.rows, epilogue);
  int32_t different = 0;
  for (int32_t rows = 1; rows <= p.rows; ++rows) {
    const std::vector<float> some = Multiply(*form.kernel, packed, p.x.data(), rows, epilogue, rows % 3 * 64);
    different += !SameBits(some.data(), all.data(), some.size());
  }
  CHECK_EQ(different, 0);
}

// A row is prepared alike alone, with its neighbours of a group, and among all.
inline void CheckPrepare(const Form& form, const Problem& p) {
  const LinearKernel& kernel = *form.kernel;
  const size_t bytes = kernel.input_row_bytes(p.inputs);
  if (bytes == 0) return;
  const PreparedRows all(kernel, p.x.data(), p.inputs, p.rows, p.inputs, 64);
  std::vector<uint8_t> pieces(PreparedBytes(kernel, p.rows, all.stride), 0xff);
  constexpr int32_t kPiece = 4;
  for (int32_t r = 0; r < p.rows; r += kPiece) {
    kernel.Prepare(&p.x[static_cast<size_t>(r) * p.inputs], p.inputs, std::min(kPiece, p.rows - r), p.inputs,
                   pieces.data() + kernel.RowOffset(r, all.stride), all.stride);
  }
  // int8: of the RowScale's line only its own bytes are written.
  const int32_t lines = static_cast<int32_t>(bytes / 64);
  int32_t different = 0;
  for (int32_t r = 0; r < p.rows; ++r) {
    const std::vector<uint8_t> row = RowLines(kernel, all.data, all.stride, r, lines);
    const PreparedRows alone(kernel, &p.x[static_cast<size_t>(r) * p.inputs], p.inputs, 1, p.inputs, 0);
    different += row != RowLines(kernel, pieces.data(), all.stride, r, lines);
    different += row != RowLines(kernel, alone.data, alone.stride, 0, lines);
  }
  CHECK_EQ(different, 0);
}

// The ways of product.cc: blocks of rows for each thread, and the grid; against the kernel itself where it can be
// asked, and a row at a time.
inline void CheckProducts(const Form& form, int32_t hidden, int32_t intermediate, Epilogue activation) {
  using namespace ftbert::cpu;  // NOLINT
  constexpr int32_t kMostRows = 300;
  const LinearKernel& kernel = *form.kernel;
  const Kernels* kernels = KernelsFor(MachineIsa());
  const Problem wide(hidden, intermediate, kMostRows, 3), narrow(intermediate, hidden, 1, 4);
  const Problem square(hidden, hidden, 1, 5);
  const PackedMatrix up = wide.Pack(kernel), down = narrow.Pack(kernel), output = square.Pack(kernel);
  CpuNorm norm;
  norm.gamma.assign(hidden, 1.25f);
  norm.beta.assign(hidden, -0.5f);
  norm.epsilon = 1e-12f;
  const int32_t up_panels = static_cast<int32_t>(up.panels.size());

  // What `rows` rows from `first` on become on so many threads: the wide product, and two steps of a layer.
  struct Results {
    std::vector<float> wide, states;
  };
  const auto run = [&](int32_t first, int32_t rows, int threads) {
    Team team(threads);
    ProductScratch scratch;
    CHECK(scratch.Reserve(kernel, hidden, intermediate, rows, team.size()));
    Products products(kernels, &team, &scratch);
    const auto as_rows = [](std::vector<float>* storage, int32_t columns, int32_t count) {
      Rows some;
      some.stride = PaddedStride(columns);
      some.count = count;
      storage->assign(some.stride * count, kNan);
      some.data = storage->data();
      return some;
    };
    std::vector<float> of_states, of_wide, of_context;
    const Rows states = as_rows(&of_states, hidden, rows), context = as_rows(&of_context, hidden, rows);
    const Rows result = as_rows(&of_wide, intermediate, rows);
    for (int32_t r = 0; r < rows; ++r) {
      const float* x = &wide.x[static_cast<size_t>(first + r) * hidden];
      std::copy(x, x + hidden, states.row(r));
      std::reverse_copy(x, x + hidden, context.row(r));
    }
    products.Linear(up, 0, up_panels, activation, states, result);
    products.LinearAddNorm(output, norm, context, states);
    products.FeedForward(up, down, activation, norm, states);
    Results results;
    for (int32_t r = 0; r < rows; ++r) {
      results.wide.insert(results.wide.end(), result.row(r), result.row(r) + intermediate);
      results.states.insert(results.states.end(), states.row(r), states.row(r) + hidden);
    }
    return results;
  };

  const std::vector<float> direct = Multiply(kernel, up, wide.x.data(), kMostRows, activation);
  const Results all = run(0, kMostRows, 1);
  CHECK(SameBits(all.wide.data(), direct.data(), direct.size()));
  CHECK(std::none_of(all.states.begin(), all.states.end(), [](float x) { return std::isnan(x); }));
  for (int threads : {1, 2, 3, 8}) {
    for (int32_t rows : {1, 3, 15, 16, 17, 31, 32, 33, 63, 65, 127, 129, 130, 161, 299, 300}) {
      const Results some = run(0, rows, threads);
      CHECK(SameBits(some.wide.data(), all.wide.data(), some.wide.size()));
      CHECK(SameBits(some.states.data(), all.states.data(), some.states.size()));
    }
  }
  for (int32_t r = 0; r < kMostRows; r += 23) {
    const Results alone = run(r, 1, 1);
    CHECK(SameBits(alone.wide.data(), &all.wide[static_cast<size_t>(r) * intermediate], alone.wide.size()));
    CHECK(SameBits(alone.states.data(), &all.states[static_cast<size_t>(r) * hidden], alone.states.size()));
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_PRODUCT_CHECKS_H_
