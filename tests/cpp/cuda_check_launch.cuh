// How CTAs are spread over multiprocessors (SpreadShared): arithmetic alone, on any machine.
#ifndef FTBERT_TESTS_CPP_CUDA_CHECK_LAUNCH_CUH_
#define FTBERT_TESTS_CPP_CUDA_CHECK_LAUNCH_CUH_

#include <cstdio>

#include "cuda_check_report.cuh"

namespace ftbert_test {

// What is asked for must be there, be what the kernel needs at least, and leave room for a multiprocessor's share of
// the CTAs and not for one more.
inline void CheckSpreading() {
  Machine card;
  card.sms = 132;
  card.dependent_launch = true;
  card.sm_shared = 228 << 10, card.shared_reserved = 1 << 10, card.cta_shared = 227 << 10;
  const auto expect = [](bool right, const char* what, int ctas, int bytes, int fixed) {
    if (right) return;
    ++failures;
    std::printf("FAIL spreading %d CTAs of %d + %d bytes: %s\n", ctas, bytes, fixed, what);
  };
  for (int ctas = 1; ctas <= 800; ctas += ctas % 7 + 1) {
    for (int bytes : {0, 1000, 24 << 10, 41 << 10, 57 << 10, 100 << 10, 225 << 10}) {
      for (int fixed : {0, 128, 1024}) {
        const dim3 grid(ctas);
        const int got = static_cast<int>(SpreadShared(card, grid, bytes, fixed));
        const int share = CeilDiv(ctas, card.sms), room = card.sm_shared / (got + fixed + card.shared_reserved);
        const bool fits = card.sm_shared / (bytes + fixed + card.shared_reserved) >= share;
        expect(got >= bytes && (got == bytes || got + fixed <= card.cta_shared), "not to be had", ctas, bytes, fixed);
        expect(share <= kMostSpread || got == bytes, "more than needed", ctas, bytes, fixed);
        expect(share > kMostSpread || !fits || room == share, "another share", ctas, bytes, fixed);
        Machine other = card;
        other.dependent_launch = false;
        const size_t plain = bytes;
        expect(SpreadShared(other, grid, bytes, fixed) == plain, "no early start", ctas, bytes, fixed);
        other = card;
        other.sm_shared = 0;
        expect(SpreadShared(other, grid, bytes, fixed) == plain, "not known", ctas, bytes, fixed);
      }
    }
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CUDA_CHECK_LAUNCH_CUH_
