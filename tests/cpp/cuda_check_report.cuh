// What the checks of CUDA kernels share: tolerances by type, and the count of failures.
#ifndef FTBERT_TESTS_CPP_CUDA_CHECK_REPORT_CUH_
#define FTBERT_TESTS_CPP_CUDA_CHECK_REPORT_CUH_

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/gemm.h"

namespace ftbert_test {

using namespace ftbert::cuda;

inline int failures = 0;

inline float Tolerance(Element e) {
  return e == Element::kFloat ? 3e-6f : (e == Element::kHalf ? 8e-4f : (e == Element::kBFloat ? 5e-3f : 5e-2f));
}

inline void Report(const std::string& what, const std::vector<double>& expected, const std::vector<float>& got,
            float tolerance) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double off = got[i] - expected[i];
    error += off * off;
    norm += expected[i] * expected[i];
  }
  const double relative = std::sqrt(error / (norm > 0 ? norm : 1));
  if (!(relative <= tolerance)) {
    ++failures;
    std::printf("FAIL %s: relative error %.3g, expected at most %.3g\n", what.c_str(), relative, tolerance);
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CUDA_CHECK_REPORT_CUH_
