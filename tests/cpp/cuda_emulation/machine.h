// The emulated machine's inside: what its files share.
#ifndef FTBERT_TESTS_CUDA_EMULATION_MACHINE_H_
#define FTBERT_TESTS_CUDA_EMULATION_MACHINE_H_

#include <csetjmp>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <ucontext.h>

#include "emulation.h"

namespace emulation {

// ---- What happens before what: every thread and agent of a cluster has a clock, and knows how far each other one was
// at the latest moment that lies before its own. Clocks never start anew, so that an access of an earlier cluster or
// launch is told by its age.
using Clock = uint32_t;
using Known = std::shared_ptr<std::vector<Clock>>;  // by thread or agent; never changed once it is shared
Known Join(const Known& a, const Known& b);
Known Learn(const Known& known, uint32_t who, Clock clock);

// What those who arrived somewhere know.
class Gathered {
 public:
  void Add(const Known& known, uint32_t who, Clock clock);
  const Known& Get() const { return sum_; }

 private:
  void Own();
  Known sum_;
  Known added_[8];  // the latest, which need not be added again
  int next_ = 0;
};

struct Meeting {  // of threads that take an instruction together
  uint64_t generation = 0;
  int arrived = 0, size = 0;
  const char* what = nullptr;
  Gathered gathered;
  Known released[2];
};

struct Warp {
  Meeting meeting;
  uint32_t values[2][32];
  struct Product {
    uint32_t a[4], b[2];
    float* d;
  } products[32];
};

struct WarpGroup {
  Meeting meeting;
  uint32_t agent;
  Clock clock = 0;  // of its latest product
  struct Part {
    float* sums;
    uint32_t a[4];
    Known known;
  } parts[128];
  int columns;
  uint64_t a, b;
};

struct CopyBarrier {  // an mbarrier
  int count = 0, pending = 0;
  int64_t bytes = 0;
  uint64_t phase = 0;
  uint32_t agent = 0;
  Gathered gathered;
  Known released;
};

struct NamedState {
  Meeting meeting;
  uint64_t generation = 0;
};

constexpr uint32_t kSharedSpan = 1 << 18;      // addresses of a CTA's shared memory
constexpr uint32_t kDynamicStart = 1024 + 16;  // as badly aligned as the programming model allows
constexpr int kStaticStart = 64;
constexpr int kMostBarriers = 64;              // mbarriers of a CTA

struct Cta {
  uint3 index;
  uint32_t rank;
  std::vector<Warp> warps;
  std::vector<WarpGroup> groups;
  std::unordered_map<uint32_t, CopyBarrier> barriers;
  std::unordered_map<const void*, uint32_t> statics;  // variables in shared memory whose address was taken
  NamedState named[16];
  bool waited = false;                                 // for the kernel before
  std::unordered_map<uint32_t, Clock> visits;          // others' latest access to this CTA's memory
};

struct Accumulator {  // of a product under way: what the thread sees of it is NaN until it has waited
  float* place;
  int count;
  uint64_t group;
  std::vector<float> values;
};
struct Operand {  // registers that a product under way reads
  const uint32_t* place;
  uint64_t group;
};
struct PendingStore {  // of the copy engine: when it reads shared memory is open until it is waited for
  uint64_t group;
  Clock clock;
};
struct PendingCopy {
  uint32_t to;
  const void* from;
  uint64_t group;
};

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  bool prepared = false, started = false, done = false;
  uint3 thread;
  uint32_t who = 0;
  Cta* cta = nullptr;
  Warp* warp = nullptr;
  WarpGroup* group = nullptr;
  int lane = 0;
  Clock clock = 0;
  Known known;
  const uint64_t* wait_at = nullptr;  // null: runs
  uint64_t wait_value = 0;
  bool wait_parity = false;           // until (*wait_at & 1) != wait_value; else until *wait_at != wait_value
  const char* doing = "";
  uint64_t cluster_phase = 0;
  std::vector<PendingCopy> copies;
  uint64_t copy_group = 0;
  uint32_t store_agent = 0;
  std::vector<PendingStore> stores;
  uint64_t store_group = 0;
  Clock fenced_at = 0;  // all it wrote before is there for the copy engine
  std::vector<Accumulator> accumulators;
  std::vector<Operand> operands;
  std::vector<std::pair<uint64_t, Clock>> product_clocks;  // group and clock
  uint64_t product_group = 0;
  bool fenced = false;
};

struct Landing {  // a copy engine's copy that has not arrived
  Cta* cta;
  uint32_t to, barrier;
  Clock clock;
  const CUtensorMap* map;
  int x, y;
};

struct Launched {
  int threads = 0, cluster = 1, shared = 0;
  bool dependent = false;
  Clock begin = 0, cluster_begin = 0;
  uint32_t previous = 0;  // the agent that the kernel before is
};

extern Launched launched;
extern Fiber* running;  // null outside of kernels
extern Clock now;
extern std::vector<std::unique_ptr<Cta>> ctas;
extern std::vector<Landing> landings;

void Fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
uint32_t Random();
bool CopiesLandLate();
void Block(const uint64_t* at, uint64_t value, bool parity, const char* doing);
// True to the last that comes, who then does the work and calls Part; to the others once it has.
bool Meet(Meeting* meeting, const char* what, bool ordered);
void Part(Meeting* meeting);
void Land(const Landing& landing);
Clock FencedAt(uint32_t who);  // of a thread
void ResetCluster();

// ---- Memory -------------------------------------------------------------------------------------------------------
// One access of thread or agent `who`, which knows `known`. Reports what is wrong with it; false: out of bounds.
bool AccessShared(Cta* cta, uint32_t address, int bytes, bool write, uint32_t who, Clock clock, const Known& known);
// Whether what threads wrote last to these bytes lies before their latest WrittenForCopyEngine.
bool WrittenForEngine(const Cta* cta, uint32_t address, int bytes);
bool AccessDevice(const void* memory, int64_t bytes, bool write);
uint8_t* SharedMemory(const Cta* cta, uint32_t address);
void MapMemory();
bool OnStack(const void* memory);
char* StackOf(size_t fiber);
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kMostFibers = 8 * 512;

}  // namespace emulation

#endif  // FTBERT_TESTS_CUDA_EMULATION_MACHINE_H_
