#include "cpu/thread_pool.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ftbert {
namespace cpu {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the gap between two kernels of a run and than a short kernel's imbalance; far shorter than a scheduler
// tick.
constexpr int kSpinMicroseconds = 100;

inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// True as soon as ready() is; false when the spinning time is over.
template <typename Ready>
bool Spin(const Ready& ready) {
  for (int i = 0; i < 64; ++i) {
    if (ready()) return true;
    Pause();
  }
  const auto end = Clock::now() + std::chrono::microseconds(kSpinMicroseconds);
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      Pause();
    }
  } while (Clock::now() < end);
  return ready();
}

// A thread that takes longer than the spinning has lost its CPU to another process: leave it this one.
template <typename Ready>
void WaitFor(const Ready& ready) {
  while (!Spin(ready)) std::this_thread::yield();
}

// Team::work_: 16 bits of generation, 24 of tasks, 24 of the next task.
constexpr int kTaskBits = 24;
constexpr uint64_t kTaskMask = (uint64_t{1} << kTaskBits) - 1;
int Next(uint64_t work) { return static_cast<int>(work & kTaskMask); }
int Tasks(uint64_t work) { return static_cast<int>((work >> kTaskBits) & kTaskMask); }
uint64_t NewWork(uint64_t last, int tasks) {
  const uint64_t generation = (last >> (2 * kTaskBits)) + 1;
  return (generation << (2 * kTaskBits)) | (static_cast<uint64_t>(tasks) << kTaskBits);
}

}  // namespace

// A thread with a mailbox: its team raises `posted_` when there is work; the worker helps with whatever is there when
// it comes, then sets `seen_` to the number it had read.
class Worker {
 public:
  // Throws std::system_error when the system refuses a thread.
  Worker() { std::thread([this] { Loop(); }).detach(); }

  // Only while quiet().
  void Join(Team* team, int thread) {
    team_ = team;
    thread_ = thread;
  }

  void Post() {
    posted_.store(posted_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_one();
    }
  }

  // It has read every post and left the team's work.
  bool quiet() const { return seen_.load(std::memory_order_acquire) == posted_.load(std::memory_order_relaxed); }

 private:
  void Loop() {
    uint32_t seen = 0;
    for (;;) {
      const auto posted = [&] { return posted_.load(std::memory_order_acquire) != seen; };
      if (!Spin(posted)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.store(true, std::memory_order_seq_cst);
        // Post stores posted_ before it reads sleeping_, and this thread the other way round: one of them sees the
        // other.
        wake_.wait(lock, [&] { return posted_.load(std::memory_order_seq_cst) != seen; });
        sleeping_.store(false, std::memory_order_relaxed);
      }
      seen = posted_.load(std::memory_order_acquire);
      team_->TakeTasks(thread_);
      seen_.store(seen, std::memory_order_release);
    }
  }

  alignas(64) std::atomic<uint32_t> posted_{0};
  Team* team_ = nullptr;
  int thread_ = 0;
  std::atomic<bool> sleeping_{false};
  alignas(64) std::atomic<uint32_t> seen_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

namespace {

// The process's CPUs and workers. Never destroyed: workers may be asleep in it when the process exits.
class Pool {
 public:
  Pool() : cpus_(AvailableCpus()) {}

  // Waits for its turn and for the CPUs; fills `workers` with threads - 1 workers and returns the CPUs leased.
  int Lease(int threads, std::vector<Worker*>* workers) {
    std::unique_lock<std::mutex> lock(mutex_);
    cpus_ = std::max(cpus_, threads);  // threads= beyond what was found is the user's decision
    const uint64_t ticket = next_ticket_++;
    changed_.wait(lock, [&] { return ticket == now_serving_ && leased_ + threads <= cpus_; });
    ++now_serving_;
    leased_ += threads;
    try {
      for (int i = 1; i < threads; ++i) {
        if (idle_.empty()) idle_.push_back(new Worker);
        workers->push_back(idle_.back());
        idle_.pop_back();
      }
    } catch (const std::system_error&) {  // no more threads to be had: the run goes on with fewer
    }
    lock.unlock();
    changed_.notify_all();
    return threads;
  }

  void Return(int leased, const std::vector<Worker*>& workers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      leased_ -= leased;
      // In reverse, so that the next team gets the same workers in the same places.
      idle_.insert(idle_.end(), workers.rbegin(), workers.rend());
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int cpus_;
  int leased_ = 0;
  uint64_t next_ticket_ = 0;
  uint64_t now_serving_ = 0;
  std::vector<Worker*> idle_;
};

std::atomic<Pool*> current_pool{nullptr};

// The child of a fork has none of the parent's threads, and locks in whatever state they were: it forgets the pool.
void ForgetPool() { current_pool.store(nullptr); }

Pool* GetPool() {
  Pool* pool = current_pool.load(std::memory_order_acquire);
  if (pool != nullptr) return pool;
  static const int registered = pthread_atfork(nullptr, nullptr, ForgetPool);
  (void)registered;
  Pool* fresh = new Pool;
  if (current_pool.compare_exchange_strong(pool, fresh)) return fresh;
  delete fresh;
  return pool;
}

}  // namespace

Team::Team(int threads) {
  leased_ = GetPool()->Lease(std::max(threads, 1), &workers_);
  for (size_t i = 0; i < workers_.size(); ++i) workers_[i]->Join(this, static_cast<int>(i) + 1);
}

Team::~Team() {
  for (Worker* worker : workers_) WaitFor([&] { return worker->quiet(); });
  GetPool()->Return(leased_, workers_);
}

void Team::TakeTasks(int thread) {
  int done = 0;
  uint64_t work = work_.load(std::memory_order_acquire);
  while (Next(work) < Tasks(work)) {
    if (!work_.compare_exchange_weak(work, work + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    // This task is not done, so the work is not either, and call_ and context_ are its own.
    call_(context_, Next(work), thread);
    ++done;
    work = work_.load(std::memory_order_acquire);
  }
  if (done > 0) done_.fetch_add(done, std::memory_order_release);
}

void Team::Dispatch(Call call, const void* context, int tasks) {
  call_ = call;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  work_.store(NewWork(work_.load(std::memory_order_relaxed), tasks), std::memory_order_release);
  const int helpers = std::min(tasks - 1, static_cast<int>(workers_.size()));
  for (int i = 0; i < helpers; ++i) workers_[i]->Post();
  TakeTasks(0);
  WaitFor([&] { return done_.load(std::memory_order_acquire) == tasks; });
}

}  // namespace cpu
}  // namespace ftbert
