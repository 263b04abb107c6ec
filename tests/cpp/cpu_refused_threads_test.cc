// A system that refuses threads: the team is smaller than was asked for, and the answers are the same.
#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "check.h"
#include "cpu/isa.h"
#include "cpu_model.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {

std::atomic<int> allowed{0};

}  // namespace

// In the place of the C library's, for the C++ library.
extern "C" __attribute__((visibility("default"))) int pthread_create(pthread_t* thread,
                                                                     const pthread_attr_t* attributes,
                                                                     void* (*body)(void*), void* argument) noexcept {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (allowed.fetch_sub(1) <= 0) return EAGAIN;
  return create(thread, attributes, body, argument);
}

namespace {

using namespace ftbert_test;  // NOLINT

// Four threads would share out columns of these texts; one or two take blocks of rows.
int Check(int workers) {
  const ftbert::Config config = Model(128, 4, 512, 3, 128);
  const RandomModel model(config);
  const RandomBatch batch(config, {100, 100});
  allowed = workers;
  for (int level = 0; level <= static_cast<int>(ftbert::cpu::MachineIsa()); ++level) {
    const IsaScope scope(ftbert::cpu::IsaName(static_cast<ftbert::cpu::Isa>(level)));
    for (ftbert::Precision precision :
         {ftbert::Precision::kFloat32, ftbert::Precision::kBFloat16, ftbert::Precision::kInt8}) {
      std::shared_ptr<ftbert::Engine> one, four;
      CHECK_OK(model.Build("cpu", 1, &one, precision));
      CHECK_OK(model.Build("cpu", 4, &four, precision));
      if (!one || !four) break;
      Answers expected, got;
      CHECK_OK(Run(one.get(), batch, true, &expected));
      CHECK_OK(Run(four.get(), batch, true, &got));
      CHECK(Same(got, expected));
    }
  }
  CHECK(allowed.load() < 0);  // more were asked for
  return Finish();
}

}  // namespace

int main() {
  for (const int workers : {0, 1}) {  // what threads there are stay: a process each
    const pid_t child = fork();
    if (child == 0) _exit(Check(workers));
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
  }
  return Finish();
}
#else
int main() { SKIP("the sanitizer starts threads itself"); }
#endif
