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

// Longer than the gap between two kernels of a run and than a short kernel's imbalance; far shorter than a scheduler tick.
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

}  // namespace

// A thread with a mailbox. The team that leases it raises `posted_`; the worker takes the team's tasks and sets `finished_`
// to the same number.
class Worker {
 public:
  // Throws std::system_error when the system refuses a thread.
  Worker() { std::thread([this] { Loop(); }).detach(); }

  void Post(Team* team, int thread) {
    team_ = team;
    thread_ = thread;
    posted_.store(posted_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_one();
    }
  }

  bool finished() const {
    return finished_.load(std::memory_order_acquire) == posted_.load(std::memory_order_relaxed);
  }

 private:
  void Loop() {
    uint32_t seen = 0;
    for (;;) {
      const auto posted = [&] { return posted_.load(std::memory_order_acquire) != seen; };
      if (!Spin(posted)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.store(true, std::memory_order_seq_cst);
        // Post stores posted_ before it reads sleeping_, and this thread the other way round: one of them sees the other.
        wake_.wait(lock, [&] { return posted_.load(std::memory_order_seq_cst) != seen; });
        sleeping_.store(false, std::memory_order_relaxed);
      }
      ++seen;
      team_->TakeTasks(thread_);
      finished_.store(seen, std::memory_order_release);
    }
  }

  alignas(64) std::atomic<uint32_t> posted_{0};
  Team* team_ = nullptr;
  int thread_ = 0;
  std::atomic<bool> sleeping_{false};
  alignas(64) std::atomic<uint32_t> finished_{0};
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

Team::Team(int threads) { leased_ = GetPool()->Lease(std::max(threads, 1), &workers_); }

Team::~Team() { GetPool()->Return(leased_, workers_); }

void Team::TakeTasks(int thread) {
  for (;;) {
    const int task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks_) return;
    call_(context_, task, thread);
  }
}

void Team::Dispatch(Call call, const void* context, int tasks) {
  call_ = call;
  context_ = context;
  tasks_ = tasks;
  next_task_.store(0, std::memory_order_relaxed);
  const int helpers = std::min(tasks - 1, static_cast<int>(workers_.size()));
  for (int i = 0; i < helpers; ++i) workers_[i]->Post(this, i + 1);
  TakeTasks(0);
  for (int i = 0; i < helpers; ++i) {
    const auto done = [&] { return workers_[i]->finished(); };
    // A worker that takes longer has lost its CPU to another process: leave it ours.
    while (!Spin(done)) std::this_thread::yield();
  }
}

}  // namespace cpu
}  // namespace ftbert
