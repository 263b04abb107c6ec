// Checks of what packs weights.
#ifndef FTBERT_TESTS_CPP_CUDA_CHECK_PACK_CUH_
#define FTBERT_TESTS_CPP_CUDA_CHECK_PACK_CUH_

#include <cmath>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda_check_report.cuh"
#include "cuda_matrix.cuh"

namespace ftbert_test {

// Values (size outputs) of what a norm leaves, and the matrix after them: what the one is divided by the other is
// multiplied with, and no z that a norm can make brings an output over the largest e4m3.
inline void CheckBound(int size, int padded) {
  Matrix w(Element::kFloat8, padded, padded), scale(Element::kFloat, 1, padded), bias(Element::kFloat, 1, padded);
  Matrix gamma(Element::kFloat, 1, size), beta(Element::kFloat, 1, size), divisor(Element::kFloat, 1, padded);
  Matrix next(Element::kHalf, padded, padded), packed(Element::kFloat8, padded, padded);
  Matrix packed_scale(Element::kFloat, 1, padded);
  w.Random(20.f), scale.Random(0.01f), bias.Random(1.f), gamma.Random(2.f), beta.Random(1.f), next.Random(0.1f);
  for (int n = 0; n < padded; ++n) {
    scale.host[n] = n < size ? std::fabs(scale.host[n]) + 1e-4f : 0.f;
    if (n >= size) bias.host[n] = 0.f;
    for (int k = 0; k < padded; ++k) {
      if (n >= size || k >= size) w.host[n * padded + k] = next.host[n * padded + k] = 0.f;
    }
  }
  w.Upload(), scale.Upload(), bias.Upload(), next.Upload();
  divisor.Poison(), packed.Poison(), packed_scale.Poison();
  CHECK_CUDA(BoundOutputs(w.device, size, padded, padded, static_cast<float*>(gamma.device),
                          static_cast<float*>(beta.device), static_cast<float*>(scale.device),
                          static_cast<float*>(bias.device), static_cast<float*>(divisor.device), nullptr));
  CHECK_CUDA(PackMatrix(next.device, ftbert::DataType::kFloat16, padded, padded, true, Element::kFloat8,
                        packed.device, padded, static_cast<float*>(packed_scale.device), nullptr,
                        static_cast<float*>(divisor.device)));
  CHECK_CUDA(cudaDeviceSynchronize());
  const std::string what = "bound of " + std::to_string(size) + " outputs: ";
  const std::vector<float> by = divisor.Download(), scales = scale.Download(), biases = bias.Download();
  std::vector<double> most(padded), divided(padded), moved(padded);
  std::vector<float> reached(padded);
  for (int n = 0; n < padded; ++n) {
    // The furthest output: z along gamma w, as long as a norm makes it.
    double squares = 0, middle = bias.host[n];
    for (int k = 0; k < size; ++k) {
      const double value = static_cast<double>(w.host[n * padded + k]) * scale.host[n];
      squares += value * gamma.host[k] * value * gamma.host[k];
      middle += value * beta.host[k];
    }
    most[n] = n < size ? kFloat8Max : 0;
    reached[n] = static_cast<float>((std::sqrt(size * squares) + std::fabs(middle)) / by[n]);
    divided[n] = scale.host[n] / by[n], moved[n] = bias.host[n] / by[n];
  }
  Report(what + "the furthest", most, reached, 1e-5f);
  Report(what + "scales", divided, scales, 1e-6f);
  Report(what + "biases", moved, biases, 1e-6f);
  std::vector<double> wanted(static_cast<size_t>(padded) * padded);
  std::vector<float> got = packed.Download();
  const std::vector<float> outputs = packed_scale.Download();
  for (size_t i = 0; i < wanted.size(); ++i) {
    wanted[i] = static_cast<double>(next.host[i]) * by[i % padded];
    got[i] *= outputs[i / padded];
  }
  Report(what + "what comes after", wanted, got, Tolerance(Element::kFloat8));
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CUDA_CHECK_PACK_CUH_
