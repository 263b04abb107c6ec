// Threads for the CPU backend: one pool for the process, leased by runs.
//
// A run of an engine with n threads leases n of the process's CPUs (its own thread and a crew of n - 1 workers) and
// gives them back at its end. Leases are granted in the order of asking and never sum to more than the CPUs the process
// may use, so two predictors, or one predictor called from many threads, do not oversubscribe the machine: with all
// threads each, runs take turns; with one thread each, they run side by side.
//
// Between the kernels of a run workers spin, for at most kSpinMicroseconds, then sleep; idle workers likewise. After a
// fork the child has no workers: it starts a pool of its own at its first run.
#ifndef FTBERT_CPU_THREAD_POOL_H_
#define FTBERT_CPU_THREAD_POOL_H_

namespace ftbert {
namespace cpu {

// Physical cores in the affinity mask, lowered to the cgroup's CPU quota (v1 and v2, rounded down), at least 1.
int AvailableCpus();

class Crew;

class Team {
 public:
  // The calling thread alone, without a lease: for a task that runs on a leased thread already.
  Team() = default;
  // Waits until `threads` CPUs are free. If the system refuses a new worker thread, the team is smaller.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls body(task, thread) for each task in [0, tasks), tasks taken in order by whichever thread is free; returns
  // when all are done. What tasks wrote is seen by the caller and by the next ForEach. `thread` is in [0, size()) and
  // no two tasks run at once with the same one. A worker that comes late finds nothing left and is not waited for.
  template <typename Body>
  void ForEach(int tasks, const Body& body) {
    if (tasks <= 1 || size_ == 1) {
      for (int task = 0; task < tasks; ++task) body(task, 0);
      return;
    }
    const auto call = [](const void* context, int task, int thread) {
      (*static_cast<const Body*>(context))(task, thread);
    };
    Dispatch(call, &body, tasks);
  }

 private:
  using Call = void (*)(const void* context, int task, int thread);

  void Dispatch(Call call, const void* context, int tasks);

  Crew* crew_ = nullptr;  // null for a team of one
  int leased_ = 0;
  int size_ = 1;
};

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_THREAD_POOL_H_
