// The thread pool, the count of CPUs, and the choice of the instruction set.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "ftbert/engine.h"

namespace {

using ftbert::cpu::AvailableCpus;
using ftbert::cpu::Team;

void TestEveryTaskRunsOnce() {
  for (int threads : {1, 2, 3, 7}) {
    Team team(threads);
    CHECK_EQ(team.size(), threads);
    long wrong = 0;
    for (int round = 0; round < 3000; ++round) {
      const int tasks = round % 40;
      std::vector<int> runs(tasks, 0);  // plain: every task has its own, and ForEach orders them with what follows
      std::atomic<int> bad_thread{0};
      team.ForEach(tasks, [&](int task, int thread) {
        ++runs[task];
        if (thread < 0 || thread >= threads) ++bad_thread;
      });
      for (int count : runs) wrong += count != 1;
      wrong += bad_thread;
    }
    CHECK_EQ(wrong, 0L);
  }
}

// Two tasks that are never both with one thread: `thread` names scratch that nobody else uses meanwhile.
void TestThreadsAreDistinct() {
  Team team(4);
  std::atomic<int> inside[4] = {};
  std::atomic<int> clashes{0};
  for (int round = 0; round < 500; ++round) {
    team.ForEach(16, [&](int, int thread) {
      if (inside[thread].fetch_add(1) != 0) ++clashes;
      inside[thread].fetch_sub(1);
    });
  }
  CHECK_EQ(clashes.load(), 0);
}

// Runs that ask for all CPUs take turns; the CPUs in use never exceed those there are.
void TestLeasesDoNotOversubscribe() {
  const int cpus = std::max(AvailableCpus(), 7);  // the test above asked for 7, so the pool has as many
  std::atomic<int> in_use{0}, most{0}, done{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&, caller] {
      const int threads = caller % 2 ? cpus : 2;
      for (int round = 0; round < 50; ++round) {
        Team team(threads);
        const int now = in_use.fetch_add(threads) + threads;
        int before = most.load();
        while (now > before && !most.compare_exchange_weak(before, now)) {
        }
        team.ForEach(8, [&](int, int) { ++done; });
        in_use.fetch_sub(threads);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK_EQ(done.load(), 6 * 50 * 8);
  CHECK(most.load() <= cpus);
  CHECK(most.load() >= cpus);
}

void TestWorkersSleepAndWake() {
  Team team(3);
  for (int pause_ms : {0, 1, 5, 20}) {
    std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms));
    std::atomic<int> done{0};
    team.ForEach(30, [&](int, int) { ++done; });
    CHECK_EQ(done.load(), 30);
  }
}

void TestAffinityIsHonoured() {
  const pid_t child = fork();
  if (child == 0) {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    CPU_SET(sched_getcpu(), &mask);
    if (sched_setaffinity(0, sizeof mask, &mask) != 0) _exit(2);
    _exit(AvailableCpus() == 1 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(AvailableCpus() >= 1);
  CHECK(AvailableCpus() <= static_cast<int>(std::thread::hardware_concurrency()));
}

void TestInstructionSetIsChosen() {
  using ftbert::cpu::Isa;
  Isa isa = Isa::kAmx;
  unsetenv("FTBERT_CPU_ISA");
  CHECK_OK(ftbert::cpu::ChooseIsa(&isa));
  CHECK(isa == ftbert::cpu::MachineIsa());
  for (int i = 0; i < ftbert::cpu::kNumIsas; ++i) {
    setenv("FTBERT_CPU_ISA", ftbert::cpu::IsaName(static_cast<Isa>(i)), 1);
    const ftbert::Status status = ftbert::cpu::ChooseIsa(&isa);
    if (i <= static_cast<int>(ftbert::cpu::MachineIsa())) {
      CHECK(status.ok() && isa == static_cast<Isa>(i));
    } else {
      CHECK(status.code() == ftbert::Code::kUnavailable);
      CHECK(status.message().find(ftbert::cpu::AvailableIsas()) != std::string::npos);
    }
  }
  setenv("FTBERT_CPU_ISA", "avx3", 1);
  const ftbert::Status status = ftbert::cpu::ChooseIsa(&isa);
  CHECK(status.code() == ftbert::Code::kInvalidArgument);
  CHECK(status.message().find("avx3") != std::string::npos);
  CHECK(status.message().find(ftbert::cpu::AvailableIsas()) != std::string::npos);
  ftbert::Config config;
  config.vocab_size = config.hidden_size = config.num_layers = config.num_heads = config.intermediate_size = 1;
  config.max_positions = config.type_vocab_size = 1;
  std::unique_ptr<ftbert::Builder> builder;
  CHECK(ftbert::Builder::Create(config, ftbert::Options(), &builder).code() == ftbert::Code::kInvalidArgument);
  unsetenv("FTBERT_CPU_ISA");
}

}  // namespace

int main() {
  TestEveryTaskRunsOnce();
  TestThreadsAreDistinct();
  TestLeasesDoNotOversubscribe();
  TestWorkersSleepAndWake();
  TestAffinityIsHonoured();
  TestInstructionSetIsChosen();
  return ftbert_test::Finish();
}
