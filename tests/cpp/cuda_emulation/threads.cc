// Fibers, their order, and everything that they wait for.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "machine.h"

uint3 threadIdx __attribute__((section(".data"))), blockIdx __attribute__((section(".data")));
dim3 blockDim __attribute__((section(".data"))), gridDim __attribute__((section(".data")));

namespace emulation {

Launched launched;
Fiber* running = nullptr;
Clock now = 1;
std::vector<std::unique_ptr<Cta>> ctas;
std::vector<Landing> landings;

namespace {

std::vector<Fiber>& fibers = *new std::vector<Fiber>(kMostFibers);
const std::function<void()>* body = nullptr;
jmp_buf scheduler;
// FTBERT_EMULATION_ORDER. 0: threads in order, 1: backwards, else shuffled; copies land at once only with 0.
const char* const order_text = std::getenv("FTBERT_EMULATION_ORDER");
const uint32_t order_seed = order_text != nullptr ? std::atoi(order_text) : 0;
uint32_t random_state = order_seed * 2654435761u + 1;
long faults = 0;

void RunBody() {
  (*body)();
  if (!running->accumulators.empty()) Fault("a thread ends with a product under way");
  if (!running->copies.empty()) Fault("a thread ends with copies under way");
  if (!running->stores.empty()) Fault("a thread ends with stores of the copy engine under way");
  running->done = true;
  _longjmp(scheduler, 1);
}

void Resume(Fiber* fiber) {
  running = fiber;
  threadIdx = fiber->thread;
  blockIdx = fiber->cta->index;
  if (_setjmp(scheduler) == 0) {
    if (fiber->started) _longjmp(fiber->here, 1);
    fiber->started = true;
    setcontext(&fiber->start);
  }
  running = nullptr;
}

bool Ready(const Fiber& fiber) {
  if (fiber.wait_at == nullptr) return true;
  return fiber.wait_parity ? (*fiber.wait_at & 1) != fiber.wait_value : *fiber.wait_at != fiber.wait_value;
}

void Prepare(Fiber* fiber, size_t index) {
  if (!fiber->prepared) {
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = StackOf(index);
    fiber->start.uc_stack.ss_size = kStackBytes;
    fiber->start.uc_link = nullptr;
    makecontext(&fiber->start, RunBody, 0);
    fiber->prepared = true;
  }
  fiber->started = fiber->done = fiber->fenced = false;
  fiber->known.reset();
  fiber->clock = ++now;
  fiber->wait_at = nullptr;
  fiber->copies.clear(), fiber->stores.clear(), fiber->accumulators.clear(), fiber->operands.clear();
  fiber->product_clocks.clear();
  fiber->copy_group = fiber->store_group = fiber->product_group = 0;
  fiber->fenced_at = 0;
}

void LandOne(size_t i) {
  const Landing landing = landings[i];
  landings.erase(landings.begin() + i);
  Land(landing);
}

// Runs the CTAs of one cluster to their end. False: they hang.
bool RunCluster() {
  const int count = launched.threads * launched.cluster;
  std::vector<int> order(count);
  for (int i = 0; i < count; ++i) order[i] = order_seed == 1 ? count - 1 - i : i;
  if (order_seed > 1) {
    for (int i = count - 1; i > 0; --i) std::swap(order[i], order[Random() % (i + 1)]);
  }
  for (int left = count; left > 0;) {
    bool moved = false;
    for (int i : order) {
      Fiber& fiber = fibers[i];
      if (fiber.done || !Ready(fiber)) continue;
      fiber.wait_at = nullptr;
      Resume(&fiber);
      moved = true;
      left -= fiber.done;
    }
    if (!landings.empty() && (!moved || (order_seed > 1 && Random() % 2 == 0))) {
      LandOne(Random() % landings.size());
      moved = true;
    }
    if (!moved) {
      std::map<std::string, int> where;
      for (int i = 0; i < count; ++i) {
        if (!fibers[i].done) ++where[fibers[i].doing];
      }
      std::string all;
      for (const auto& one : where) all += " " + std::to_string(one.second) + " at " + one.first + ";";
      Fault("the kernel hangs:%s %d threads have ended", all.c_str(), count - left);
      landings.clear();
      return false;
    }
  }
  return true;
}

}  // namespace

Clock FencedAt(uint32_t who) { return fibers[who].fenced_at; }

namespace {

void CheckEnds() {
  if (!landings.empty()) Fault("a CTA ends before copies into it have landed");
  landings.clear();
  for (size_t c = 0; c < ctas.size(); ++c) {
    Gathered end;
    for (int i = 0; i < launched.threads; ++i) {
      const Fiber& fiber = fibers[c * launched.threads + i];
      end.Add(fiber.known, fiber.who, fiber.clock);
    }
    for (const auto& visit : ctas[c]->visits) {
      if ((*end.Get())[visit.first] < visit.second) {
        Fault("CTA %u of the cluster may end before thread or agent %u is through with its shared memory",
              ctas[c]->rank, visit.first);
      }
    }
    for (const NamedState& named : ctas[c]->named) {
      const int left = named.meeting.arrived;
      if (left > 0) Fault("a CTA ends with %d threads arrived at a named barrier", left);
    }
    if (launched.dependent && !ctas[c]->waited) Fault("a CTA ends without WaitForPreviousKernel");
  }
}

}  // namespace

long Faults() { return faults; }
bool CopiesLandLate() { return order_seed != 0; }

uint32_t Random() {
  random_state = random_state * 1664525u + 1013904223u;
  return random_state >> 8;
}

void Fault(const char* format, ...) {
  if (++faults > 20) return;
  std::printf("FAULT ");
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  if (running != nullptr) {
    std::printf(" [thread %u of CTA %u,%u,%u]", running->thread.x, running->cta->index.x, running->cta->index.y,
                running->cta->index.z);
  }
  std::printf("\n");
  std::fflush(stdout);
}

// ---- Order --------------------------------------------------------------------------------------------------------
namespace {
size_t Width() { return launched.previous + 1; }
}  // namespace

// Threads that wait together mostly know the same: they then share what they learn, too.
namespace {
struct Remembered {
  Known from, with, sum;
  uint32_t who;
  Clock clock;
};
constexpr size_t kRemembered = 512;
std::vector<Remembered>& remembered = *new std::vector<Remembered>(kRemembered);

Remembered* Recall(const Known& from, const Known& with, uint32_t who, Clock clock) {
  const size_t hash = (reinterpret_cast<uintptr_t>(from.get()) * 31 + reinterpret_cast<uintptr_t>(with.get()) * 7) / 16;
  Remembered* const one = &remembered[(hash + who * 131 + clock) * 2654435761u / 64 % kRemembered];
  if (one->sum && one->from == from && one->with == with && one->who == who && one->clock == clock &&
      one->sum->size() == Width()) {
    return one;
  }
  *one = Remembered{from, with, nullptr, who, clock};
  return one;
}
}  // namespace

Known Join(const Known& a, const Known& b) {
  if (!b || a == b) return a;
  if (!a) return b;
  Remembered* const one = Recall(a, b, 0, 0);
  if (!one->sum) {
    one->sum = std::make_shared<std::vector<Clock>>(*a);
    for (size_t i = 0; i < one->sum->size(); ++i) (*one->sum)[i] = std::max((*one->sum)[i], (*b)[i]);
  }
  return one->sum;
}

Known Learn(const Known& known, uint32_t who, Clock clock) {
  if (known && (*known)[who] >= clock) return known;
  Remembered* const one = Recall(known, nullptr, who, clock);
  if (!one->sum) {
    one->sum = known ? std::make_shared<std::vector<Clock>>(*known)
                     : std::make_shared<std::vector<Clock>>(Width(), Clock{0});
    (*one->sum)[who] = clock;
  }
  return one->sum;
}

void Gathered::Own() {
  if (!sum_) {
    sum_ = std::make_shared<std::vector<Clock>>(Width(), Clock{0});
  } else if (sum_.use_count() > 1) {
    sum_ = std::make_shared<std::vector<Clock>>(*sum_);
  }
}
void Gathered::Add(const Known& known, uint32_t who, Clock clock) {
  Own();
  if (known && std::find(added_, added_ + 8, known) == added_ + 8) {
    for (size_t i = 0; i < sum_->size(); ++i) (*sum_)[i] = std::max((*sum_)[i], (*known)[i]);
    added_[next_++ % 8] = known;
  }
  (*sum_)[who] = std::max((*sum_)[who], clock);
}

// ---- Waiting ------------------------------------------------------------------------------------------------------
void Block(const uint64_t* at, uint64_t value, bool parity, const char* doing) {
  Fiber* const fiber = running;
  fiber->wait_at = at, fiber->wait_value = value, fiber->wait_parity = parity, fiber->doing = doing;
  if (Ready(*fiber)) {
    fiber->wait_at = nullptr;
    return;
  }
  if (_setjmp(fiber->here) == 0) _longjmp(scheduler, 1);
}

bool Meet(Meeting* meeting, const char* what, bool ordered) {
  if (meeting->arrived > 0 && std::strcmp(meeting->what, what) != 0) {
    Fault("threads that must stay together take %s and %s", meeting->what, what);
  }
  meeting->what = what;
  if (ordered) {
    meeting->gathered.Add(running->known, running->who, running->clock);
    running->clock = ++now;
  }
  const uint64_t generation = meeting->generation;
  if (++meeting->arrived == meeting->size) {
    if (ordered) meeting->released[generation & 1] = meeting->gathered.Get();
  } else {
    Block(&meeting->generation, generation, false, what);
  }
  if (ordered) running->known = Join(running->known, meeting->released[generation & 1]);
  return meeting->generation == generation;
}
void Part(Meeting* meeting) {
  meeting->arrived = 0;
  ++meeting->generation;
}

}  // namespace emulation

// ---- The language's own -------------------------------------------------------------------------------------------
using namespace emulation;

void __syncthreads() { NamedBarrier(0, launched.threads, true); }
void __syncwarp() {
  Meeting* const meeting = &running->warp->meeting;
  if (Meet(meeting, "__syncwarp", true)) Part(meeting);
}
uint32_t ShuffleBits(uint32_t mask, uint32_t value, int lane) {
  if (mask != 0xffffffffu || lane < 0 || lane > 31) Fault("a shuffle of lanes %x from lane %d", mask, lane);
  Warp* const warp = running->warp;
  const int turn = warp->meeting.generation & 1;
  warp->values[turn][running->lane] = value;
  if (Meet(&warp->meeting, "a shuffle", false)) Part(&warp->meeting);
  return warp->values[turn][lane & 31];
}
bool __all_sync(uint32_t mask, bool value) {
  if (mask != 0xffffffffu) Fault("a vote of lanes %x", mask);
  Warp* const warp = running->warp;
  const int turn = warp->meeting.generation & 1;
  warp->values[turn][running->lane] = value;
  if (Meet(&warp->meeting, "a vote", false)) Part(&warp->meeting);
  for (uint32_t one : warp->values[turn]) value = value && one;
  return value;
}

cudaError_t RunGrid(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  MapMemory();
  launched = Launched();
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) launched.cluster = attribute.val.clusterDim.x;
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) launched.dependent = true;
  }
  const dim3 grid = config.gridDim, block = config.blockDim;
  launched.threads = block.x, launched.shared = static_cast<int>(config.dynamicSmemBytes);
  if (grid.x * grid.y * grid.z == 0 || grid.y > 65535 || grid.z > 65535 || block.x == 0 || block.x > 1024 ||
      block.y > 1 || config.dynamicSmemBytes > 227 * 1024 || launched.cluster > 8 ||
      grid.x % launched.cluster != 0 || static_cast<size_t>(launched.cluster) * block.x > kMostFibers) {
    return cudaErrorInvalidValue;
  }
  const uint32_t agents = launched.threads * launched.cluster, groups = (launched.threads + 127) / 128;
  const uint32_t warpgroups = agents + launched.cluster * kMostBarriers;
  const uint32_t stores = warpgroups + launched.cluster * groups, warps = (launched.threads + 31) / 32;
  launched.previous = stores + launched.cluster * warps;
  launched.begin = ++now;
  blockDim = block, gridDim = grid;
  body = &thread;
  cudaError_t result = cudaSuccess;
  const uint64_t clusters = static_cast<uint64_t>(grid.x / launched.cluster) * grid.y * grid.z;
  for (uint64_t c = 0; c < clusters && result == cudaSuccess; ++c) {
    launched.cluster_begin = ++now;
    ctas.clear();
    std::fill(remembered.begin(), remembered.end(), Remembered());
    ResetCluster();
    for (int rank = 0; rank < launched.cluster; ++rank) {
      ctas.push_back(std::make_unique<Cta>());
      Cta& cta = *ctas.back();
      const uint64_t across = grid.x / launched.cluster;
      cta.index = uint3{static_cast<unsigned>(c % across * launched.cluster + rank),
                        static_cast<unsigned>(c / across % grid.y), static_cast<unsigned>(c / across / grid.y)};
      cta.rank = rank;
      cta.warps = std::vector<Warp>((launched.threads + 31) / 32);
      cta.groups = std::vector<WarpGroup>(groups);
      for (Warp& warp : cta.warps) warp.meeting.size = std::min(32, launched.threads);
      for (uint32_t g = 0; g < groups; ++g) {
        cta.groups[g].meeting.size = 128;
        cta.groups[g].agent = warpgroups + rank * groups + g;
      }
      for (int i = 0; i < launched.threads; ++i) {
        const size_t index = static_cast<size_t>(rank) * launched.threads + i;
        Fiber& fiber = fibers[index];
        Prepare(&fiber, index);
        fiber.thread = uint3{static_cast<unsigned>(i), 0, 0};
        fiber.who = static_cast<uint32_t>(index);
        fiber.cta = &cta, fiber.warp = &cta.warps[i / 32], fiber.group = &cta.groups[i / 128], fiber.lane = i % 32;
        fiber.store_agent = stores + rank * warps + i / 32;
      }
    }
    if (RunCluster()) {
      CheckEnds();
    } else {
      result = cudaErrorLaunchFailure;
    }
  }
  for (Fiber& fiber : fibers) fiber.known.reset();
  ctas.clear();
  return result;
}
