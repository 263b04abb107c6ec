#include "cpu/thread_pool.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

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

// A worker that finds itself on its leader's CPU moves away at most so often.
constexpr int kMoveMilliseconds = 10;

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

#if defined(__linux__)
int CurrentCpu() { return sched_getcpu(); }

// Moves this thread to any other CPU it may use. The mask is then as it was: only the place has changed.
void LeaveCpu(int cpu) {
  cpu_set_t allowed;
  if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int CurrentCpu() { return -1; }
void LeaveCpu(int) {}
#endif

// Crew::work_: the number of tasks above, the next one to take below.
uint64_t NewWork(int tasks) { return static_cast<uint64_t>(tasks) << 32; }
int Tasks(uint64_t work) { return static_cast<int>(work >> 32); }
int Next(uint64_t work) { return static_cast<int>(work & 0xffffffffu); }

}  // namespace

// One leader and a fixed set of workers, which share work by taking tasks from one word. A worker that comes late, when
// the work is done or has given way to the next, can only take what is there to be taken: so nobody waits for workers,
// only for tasks. Never destroyed.
class Crew {
 public:
  using Call = void (*)(const void* context, int task, int thread);

  // Fewer than threads - 1 workers if the system refuses more.
  explicit Crew(int threads) : threads_(threads) {
    try {
      for (; size_ < threads; ++size_) {
        const int thread = size_;
        std::thread([this, thread] { Loop(thread); }).detach();
      }
    } catch (const std::system_error&) {
    }
  }

  int threads() const { return threads_; }  // asked for
  int size() const { return size_; }        // there are

  void Dispatch(Call call, const void* context, int tasks) {
    call_ = call;
    context_ = context;
    done_.store(0, std::memory_order_relaxed);
    leader_cpu_.store(CurrentCpu(), std::memory_order_relaxed);
    work_.store(NewWork(tasks), std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    // A worker adds itself to sleepers_ before it looks at epoch_ for the last time: it or this thread sees the other.
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    TakeTasks(0);
    // A worker that takes longer than the spinning has lost its CPU to another process: leave it this one.
    const auto done = [&] { return done_.load(std::memory_order_acquire) == tasks; };
    while (!Spin(done)) std::this_thread::yield();
  }

 private:
  void Loop(int thread) {
    uint32_t seen = 0;
    Clock::time_point moved;
    for (;;) {
      if (!Spin([&] { return epoch_.load(std::memory_order_acquire) != seen; })) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_seq_cst) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
      }
      seen = epoch_.load(std::memory_order_acquire);
      // On a busy machine the scheduler can leave leader and worker on one CPU for good, taking turns.
      const int cpu = CurrentCpu();
      if (cpu >= 0 && cpu == leader_cpu_.load(std::memory_order_relaxed)) {
        const auto now = Clock::now();
        if (now - moved > std::chrono::milliseconds(kMoveMilliseconds)) {
          LeaveCpu(cpu);
          moved = now;
        }
      }
      TakeTasks(thread);
    }
  }

  void TakeTasks(int thread) {
    int done = 0;
    uint64_t work = work_.load(std::memory_order_acquire);
    while (Next(work) < Tasks(work)) {
      if (!work_.compare_exchange_weak(work, work + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      // This task is not done, so the work is not, and call_ and context_ are its own.
      call_(context_, Next(work), thread);
      ++done;
      work = work_.load(std::memory_order_acquire);
    }
    if (done > 0) done_.fetch_add(done, std::memory_order_release);
  }

  const int threads_;
  int size_ = 1;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> epoch_{0};  // raised with every new work
  std::atomic<int> sleepers_{0};
  std::atomic<int> leader_cpu_{-1};
  alignas(64) std::atomic<uint64_t> work_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::mutex mutex_;
  std::condition_variable wake_;
};

namespace {

// The process's CPUs and crews. Never destroyed: workers may be asleep in it when the process exits.
class Pool {
 public:
  Pool() : cpus_(AvailableCpus()) {}

  // Waits for its turn and for the CPUs. Returns a crew of so many threads, null for one thread.
  Crew* Lease(int threads) {
    Crew* crew = nullptr;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      cpus_ = std::max(cpus_, threads);  // threads= beyond what was found is the user's decision
      const uint64_t ticket = next_ticket_++;
      changed_.wait(lock, [&] { return ticket == now_serving_ && leased_ + threads <= cpus_; });
      ++now_serving_;
      leased_ += threads;
      // The last used first: it may still be awake.
      for (size_t i = idle_.size(); threads > 1 && crew == nullptr && i-- > 0;) {
        if (idle_[i]->threads() != threads) continue;
        crew = idle_[i];
        idle_.erase(idle_.begin() + static_cast<ptrdiff_t>(i));
      }
    }
    changed_.notify_all();
    if (threads == 1 || crew != nullptr) return crew;
    try {
      return new Crew(threads);
    } catch (...) {
      Return(threads, nullptr);
      throw;
    }
  }

  void Return(int threads, Crew* crew) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      leased_ -= threads;
      if (crew != nullptr) idle_.push_back(crew);
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
  std::vector<Crew*> idle_;
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

Team::Team(int threads) : leased_(std::max(threads, 1)) {
  crew_ = GetPool()->Lease(leased_);
  if (crew_ != nullptr) size_ = crew_->size();
}

Team::~Team() {
  if (leased_ > 0) GetPool()->Return(leased_, crew_);
}

void Team::Dispatch(Call call, const void* context, int tasks) { crew_->Dispatch(call, context, tasks); }

}  // namespace cpu
}  // namespace ftbert
