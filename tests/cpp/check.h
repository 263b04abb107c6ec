// The whole test framework of tests/cpp: checks that count failures, and a main's closing line.
//
//   int main() {
//     CHECK(status.ok());
//     CHECK_EQ(a, b);
//     CHECK_NEAR(got, expected, 1e-5);                        // written so that NaN fails
//     CHECK_ALL_NEAR(got, expected, count, 1e-5, "8 x 97");   // reports the worst element
//     return ftbert_test::Finish();
//   }
//
// SKIP("no AVX-512 here") ends a program as skipped; ctest shows it.
#ifndef FTBERT_TESTS_CPP_CHECK_H_
#define FTBERT_TESTS_CPP_CHECK_H_

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

namespace ftbert_test {

// Built with AddressSanitizer, which makes everything ten times as long: repetitions that take the same paths are left
// out then.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

struct Counts {
  long checks = 0;
  long failures = 0;
};

inline Counts& counts() {
  static Counts value;
  return value;
}

inline void Report(bool ok, const char* file, int line, const std::string& message) {
  ++counts().checks;
  if (ok) return;
  if (++counts().failures <= 50) std::cerr << file << ":" << line << ": " << message << "\n";
}

template <typename A, typename B>
void CheckEqual(const A& a, const B& b, const char* text, const char* file, int line) {
  std::ostringstream message;
  message << text << ": got " << a << ", expected " << b;
  Report(a == b, file, line, message.str());
}

inline void CheckNear(double got, double expected, double tolerance, const char* text, const char* file, int line) {
  std::ostringstream message;
  message << text << ": got " << got << ", expected " << expected << " within " << tolerance;
  Report(std::fabs(got - expected) <= tolerance, file, line, message.str());
}

// Two arrays, element by element. The tolerance is absolute. Returns the worst difference (NaN when there is one).
template <typename A, typename B>
double CheckAllNear(const A* got, const B* expected, size_t count, double tolerance, const std::string& what,
                    const char* file, int line) {
  double worst = 0;
  size_t where = 0;
  for (size_t i = 0; i < count; ++i) {
    const double diff = std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    if (!(diff <= worst)) {
      worst = diff;
      where = i;
      if (std::isnan(diff)) break;
    }
  }
  std::ostringstream message;
  message << what << ": worst difference " << worst << " over " << tolerance << " at " << where << " of " << count;
  if (count) message << ", got " << got[where] << ", expected " << expected[where];
  Report(count > 0 && worst <= tolerance, file, line, message.str());
  return worst;
}

inline int Finish() {
  const Counts& c = counts();
  std::printf("%ld checks, %ld failures\n", c.checks, c.failures);
  if (c.checks == 0) std::printf("a test without a check proves nothing\n");
  return c.failures || c.checks == 0 ? 1 : 0;
}

}  // namespace ftbert_test

#define CHECK(condition) ::ftbert_test::Report(static_cast<bool>(condition), __FILE__, __LINE__, "expected " #condition)
#define CHECK_OK(status)                                                                               \
  do {                                                                                                 \
    const auto& check_status = (status);                                                               \
    ::ftbert_test::Report(check_status.ok(), __FILE__, __LINE__, #status ": " + check_status.message()); \
  } while (0)
#define CHECK_EQ(got, expected) ::ftbert_test::CheckEqual((got), (expected), #got, __FILE__, __LINE__)
#define CHECK_NEAR(got, expected, tolerance) \
  ::ftbert_test::CheckNear((got), (expected), (tolerance), #got, __FILE__, __LINE__)
#define CHECK_ALL_NEAR(got, expected, count, tolerance, what) \
  ::ftbert_test::CheckAllNear((got), (expected), (count), (tolerance), (what), __FILE__, __LINE__)
#define SKIP(reason)                      \
  do {                                    \
    std::printf("skipped: %s\n", reason); \
    std::exit(77);                        \
  } while (0)

#endif  // FTBERT_TESTS_CPP_CHECK_H_
