// The checks of an int8 or bf16 form that concern cuts between rows: how many there are, how they are prepared, and the
// ways in which product.cc shares them out.
#ifndef FTBERT_TESTS_CPP_PRODUCT_CHECKS_H_
#define FTBERT_TESTS_CPP_PRODUCT_CHECKS_H_

#include <algorithm>

#include "core/half.h"
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

// What product.cc makes of random rows: the wide product, and two steps of a layer.
class ProductSteps {
 public:
  struct Results {
    std::vector<float> wide, states;  // (rows, F), (rows, H)
  };

  ProductSteps(const LinearKernel& kernel, int32_t hidden, int32_t intermediate, int32_t most_rows, Epilogue activation)
      : kernel_(kernel), activation_(activation), wide_(hidden, intermediate, most_rows, 3),
        narrow_(intermediate, hidden, 1, 4), square_(hidden, hidden, 1, 5), up_(wide_.Pack(kernel)),
        down_(narrow_.Pack(kernel)), output_(square_.Pack(kernel)) {
    norm_.gamma.assign(hidden, 1.25f);
    norm_.beta.assign(hidden, -0.5f);
    norm_.epsilon = 1e-12f;
  }

  const PackedMatrix& up() const { return up_; }
  const std::vector<float>& rows() const { return wide_.x; }

  // What `count` rows from `first` on, the first `paired` of them in pairs, become on so many threads.
  Results Run(int32_t first, int32_t count, int threads, int32_t paired = 0) const {
    using namespace ftbert::cpu;  // NOLINT
    const int32_t hidden = up_.inputs, intermediate = up_.outputs;
    Team team(threads);
    ProductScratch scratch;
    CHECK(scratch.Reserve(kernel_, hidden, intermediate, count, team.size()));
    if (paired > 0) CHECK(scratch.Reserve(*kernel_.pairs(), hidden, intermediate, count, team.size()));
    Products products(KernelsFor(kernel_.isa()), &team, &scratch);
    const auto as_rows = [&](std::vector<float>* storage, int32_t columns) {
      Rows some;
      some.stride = PaddedStride(columns);
      some.count = count;
      some.paired = paired;
      storage->assign(some.stride * count, kNan);
      some.data = storage->data();
      return some;
    };
    std::vector<float> of_states, of_wide, of_context;
    const Rows states = as_rows(&of_states, hidden), context = as_rows(&of_context, hidden);
    const Rows result = as_rows(&of_wide, intermediate);
    for (int32_t r = 0; r < count; ++r) {
      const float* x = &wide_.x[static_cast<size_t>(first + r) * hidden];
      std::copy(x, x + hidden, states.row(r));
      std::reverse_copy(x, x + hidden, context.row(r));
    }
    products.Linear(up_, 0, static_cast<int32_t>(up_.panels.size()), activation_, states, result);
    products.LinearAddNorm(output_, norm_, context, states);
    products.FeedForward(up_, down_, activation_, norm_, states);
    Results results;
    for (int32_t r = 0; r < count; ++r) {
      results.wide.insert(results.wide.end(), result.row(r), result.row(r) + intermediate);
      results.states.insert(results.states.end(), states.row(r), states.row(r) + hidden);
    }
    return results;
  }

 private:
  const LinearKernel& kernel_;
  Epilogue activation_;
  Problem wide_, narrow_, square_;
  PackedMatrix up_, down_, output_;
  ftbert::cpu::CpuNorm norm_;
};

// The ways of product.cc: blocks of rows for each thread, and the grid; against the kernel itself where it can be
// asked, and a row at a time.
inline void CheckProducts(const Form& form, int32_t hidden, int32_t intermediate, Epilogue activation) {
  const int32_t most_rows = std::max(300, form.kernel->block_rows() + 18);  // two blocks for a thread
  using Results = ProductSteps::Results;
  const ProductSteps steps(*form.kernel, hidden, intermediate, most_rows, activation);
  const std::vector<float> direct = Multiply(*form.kernel, steps.up(), steps.rows().data(), most_rows, activation);
  const Results all = steps.Run(0, most_rows, 1);
  CHECK(SameBits(all.wide.data(), direct.data(), direct.size()));
  CHECK(std::none_of(all.states.begin(), all.states.end(), [](float x) { return std::isnan(x); }));
  for (int threads : {1, 2, 3, 8}) {
    for (int32_t rows : {1, 3, 15, 16, 17, 31, 32, 33, 63, 65, 127, 129, 130, 161, 299, 300}) {
      const Results some = steps.Run(0, rows, threads);
      CHECK(SameBits(some.wide.data(), all.wide.data(), some.wide.size()));
      CHECK(SameBits(some.states.data(), all.states.data(), some.states.size()));
    }
  }
  const Results shared = steps.Run(0, most_rows, 3);
  CHECK(SameBits(shared.states.data(), all.states.data(), shared.states.size()));
  for (int32_t r = 0; r < most_rows; r += 23) {
    const Results alone = steps.Run(r, 1, 1);
    CHECK(SameBits(alone.wide.data(), &all.wide[static_cast<size_t>(r) * intermediate], alone.wide.size()));
    CHECK(SameBits(alone.states.data(), &all.states[static_cast<size_t>(r) * hidden], alone.states.size()));
  }
}

// A product written in bf16, as attention with tiles takes it, is the one in floats rounded; what lies behind its
// columns stays.
inline void CheckRoundedRows(const Form& form) {
  using namespace ftbert::cpu;  // NOLINT
  constexpr int32_t kInputs = 900, kOutputs = 96, kMostRows = 300;
  const Problem p(kInputs, kOutputs, kMostRows);
  const PackedMatrix packed = p.Pack(*form.kernel, 3);
  const std::vector<float> floats = Multiply(*form.kernel, packed, p.x.data(), kMostRows, Epilogue::kBias);
  for (int threads : {1, 3}) {
    for (int32_t count : {1, 15, 16, 17, 33, 130, kMostRows}) {
      Team team(threads);
      ProductScratch scratch;
      CHECK(scratch.Reserve(*form.kernel, kInputs, kInputs, count, team.size()));
      Rows in, out;
      std::vector<float> of_in(PaddedStride(kInputs) * count, kNan), of_out(PaddedStride(kOutputs) * count, kNan);
      in.data = of_in.data(), out.data = of_out.data();
      in.stride = PaddedStride(kInputs), out.stride = PaddedStride(kOutputs);
      in.count = out.count = count;
      out.rounded = true;
      for (int32_t r = 0; r < count; ++r) std::copy_n(&p.x[static_cast<size_t>(r) * kInputs], kInputs, in.row(r));
      Products(KernelsFor(form.kernel->isa()), &team, &scratch)
          .Linear(packed, 0, static_cast<int32_t>(packed.panels.size()), Epilogue::kBias, in, out);
      int32_t different = 0;
      for (int32_t r = 0; r < count; ++r) {
        for (int32_t n = 0; n < kOutputs; ++n) {
          uint16_t got;
          std::memcpy(&got, reinterpret_cast<const uint16_t*>(out.row(r)) + n, sizeof(got));
          different += got != ftbert::FloatToBFloat16(floats[static_cast<size_t>(r) * kOutputs + n]);
        }
        for (int32_t n = kOutputs / 2; n < out.stride; ++n) different += !std::isnan(out.row(r)[n]);
      }
      CHECK_EQ(different, 0);
    }
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_PRODUCT_CHECKS_H_
