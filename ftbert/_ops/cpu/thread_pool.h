// Threads for the CPU backend: one pool for the process, leased by runs.
//
// A run of an engine with n threads leases n of the process's CPUs (its own thread and n - 1 workers) and gives them
// back at its end. Leases are granted in the order of asking and never sum to more than the CPUs the process may use,
// so two predictors, or one predictor called from many threads, do not oversubscribe the machine: with all threads
// each, runs take turns; with one thread each, they run side by side.
//
// Between the kernels of a run workers spin, for at most kSpinMicroseconds, then sleep; idle workers likewise. After a
// fork the child has no workers: it starts a pool of its own at its first run.
#ifndef FTBERT_CPU_THREAD_POOL_H_
#define FTBERT_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <vector>

namespace ftbert {
namespace cpu {

// Physical cores in the affinity mask, lowered to the cgroup's CPU quota (v1 and v2, rounded down), at least 1.
int AvailableCpus();

class Worker;

class Team {
 public:
  // Waits until `threads` CPUs are free. If the system refuses a new worker thread, the team is smaller.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) for each task in [0, tasks), tasks taken in order by whichever thread is free; returns
  // when all are done. What tasks wrote is seen by the caller and by the next ForEach. `thread` is in [0, size()).
  template <typename Body>
  void ForEach(int tasks, const Body& body) {
    if (tasks <= 1 || workers_.empty()) {
      for (int task = 0; task < tasks; ++task) body(task, 0);
      return;
    }
    const auto call = [](const void* context, int task, int thread) {
      (*static_cast<const Body*>(context))(task, thread);
    };
    Dispatch(call, &body, tasks);
  }

 private:
  friend class Worker;
  using Call = void (*)(const void* context, int task, int thread);

  void Dispatch(Call call, const void* context, int tasks);
  void TakeTasks(int thread);

  std::vector<Worker*> workers_;
  int leased_ = 0;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  // Generation of the work, its number of tasks and the next one to take, in one word: a worker that comes late, when
  // the work is done or has given way to the next, can take nothing by mistake, so nobody has to wait for it.
  alignas(64) std::atomic<uint64_t> work_{0};
  alignas(64) std::atomic<int> done_{0};
};

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_THREAD_POOL_H_
