// Barriers of every kind, and the copies of the copy engine that arrive at them.
#include <algorithm>

#include "machine.h"

namespace emulation {
namespace {
uint64_t cluster_phase = 0;
int cluster_arrived = 0;
Gathered cluster_gathered;
Known cluster_released[2];
}  // namespace

void ResetCluster() {
  cluster_phase = cluster_arrived = 0;
  cluster_gathered = Gathered();
}

void NamedBarrier(int id, int threads, bool waits) {
  static const char* const kNames[] = {"__syncthreads", "named barrier 1", "named barrier 2", "named barrier 3",
                                       "named barrier 4", "a named barrier above 4"};
  if (id < 0 || id > 15 || threads <= 0 || threads % 32 != 0) {
    Fault("named barrier %d of %d threads", id, threads);
    return;
  }
  Meeting& meeting = running->cta->named[id].meeting;
  if (meeting.arrived > 0 && meeting.size != threads) {
    Fault("named barrier %d of %d and of %d threads", id, meeting.size, threads);
  }
  meeting.size = threads;
  meeting.gathered.Add(running->known, running->who, running->clock);
  running->clock = ++now;
  const uint64_t generation = meeting.generation;
  if (++meeting.arrived == threads) {
    meeting.released[generation & 1] = meeting.gathered.Get();
    Part(&meeting);
  } else if (waits) {
    Block(&meeting.generation, generation, false, kNames[std::min(id, 5)]);
  }
  if (waits) running->known = Join(running->known, meeting.released[generation & 1]);
}

uint32_t ClusterRank() { return running->cta->rank; }

void ClusterArrive() {
  running->cluster_phase = cluster_phase;
  cluster_gathered.Add(running->known, running->who, running->clock);
  running->clock = ++now;
  if (++cluster_arrived == launched.threads * launched.cluster) {
    cluster_arrived = 0;
    cluster_released[cluster_phase++ & 1] = cluster_gathered.Get();
  }
}
void ClusterWait() {
  Block(&cluster_phase, running->cluster_phase, false, "the cluster's barrier");
  running->known = Join(running->known, cluster_released[running->cluster_phase & 1]);
}

void WaitForPrevious() {
  running->cta->waited = true;
  running->known = Learn(running->known, launched.previous, launched.begin);
}

// ---- mbarriers ----------------------------------------------------------------------------------------------------
namespace {

CopyBarrier* FindBarrier(Cta* cta, uint32_t barrier) {
  const auto found = cta->barriers.find(barrier);
  if (found != cta->barriers.end()) return &found->second;
  Fault("no mbarrier was made at %u of CTA %u", barrier, cta->rank);
  return nullptr;
}

void CompletePhase(CopyBarrier* b) {
  constexpr int64_t kMostBytes = (1 << 20) - 1;
  if (b->pending < 0) Fault("more arrive at an mbarrier than its %d", b->count);
  if (b->bytes > kMostBytes || b->bytes < -kMostBytes) {
    Fault("an mbarrier expects %ld bytes", static_cast<long>(b->bytes));
  }
  if (b->pending > 0 || b->bytes != 0) return;
  b->pending = b->count;
  b->released = b->gathered.Get();
  ++b->phase;
}

}  // namespace

void BarrierInit(uint32_t barrier, int arrivals) {
  Cta* const cta = running->cta;
  if (barrier % 8 != 0 || arrivals < 1) Fault("an mbarrier at %u for %d arrivals", barrier, arrivals);
  if (!AccessShared(cta, barrier, 8, true, running->who, running->clock, running->known)) return;
  if (cta->barriers.count(barrier) != 0) Fault("an mbarrier is made again");
  CopyBarrier& b = cta->barriers[barrier];
  b.count = b.pending = arrivals;
  const int made = static_cast<int>(cta->barriers.size());
  b.agent = launched.threads * launched.cluster + cta->rank * kMostBarriers + made - 1;
  if (cta->barriers.size() > kMostBarriers) Fault("more mbarriers than the emulation has agents for");
}

// The place of an mbarrier is written once, by BarrierInit; all else must come after it.
void BarrierArrive(uint32_t barrier, uint32_t rank, uint32_t expected_bytes) {
  if (rank >= ctas.size()) return Fault("an arrival at CTA %u of a cluster of %zu", rank, ctas.size());
  Cta* const cta = ctas[rank].get();
  CopyBarrier* const b = FindBarrier(cta, barrier);
  if (b == nullptr) return;
  AccessShared(cta, barrier, 8, false, running->who, running->clock, running->known);
  if (cta != running->cta) cta->visits[running->who] = running->clock;
  b->gathered.Add(running->known, running->who, running->clock);
  running->clock = ++now;
  b->bytes += expected_bytes;
  --b->pending;
  CompletePhase(b);
}

void Sent(uint32_t barrier, uint32_t rank, int bytes) {
  if (rank >= ctas.size()) return Fault("sent to CTA %u of a cluster of %zu", rank, ctas.size());
  CopyBarrier* const b = FindBarrier(ctas[rank].get(), barrier);
  if (b == nullptr) return;
  b->gathered.Add(running->known, running->who, running->clock);
  running->clock = ++now;
  b->bytes -= bytes;
  CompletePhase(b);
}

void BarrierWait(uint32_t barrier, uint32_t parity) {
  CopyBarrier* const b = FindBarrier(running->cta, barrier);
  if (b == nullptr) return;
  AccessShared(running->cta, barrier, 8, false, running->who, running->clock, running->known);
  if (parity > 1) Fault("an mbarrier's parity of %u", parity);
  Block(&b->phase, parity & 1, true, "an mbarrier");
  running->known = Join(running->known, b->released);
}

namespace {
// Where 16 bytes of a box lie.
uint32_t Swizzled(const CUtensorMap& map, uint32_t begin, int row, int piece) {
  const uint32_t at = begin + row * map.box_bytes + piece * 16;
  return at ^ (at >> 7 & map.swizzle) << 4;
}
bool Aligned(const CUtensorMap& map, uint32_t box) { return box % 128 == 0 && box % ((map.swizzle + 1) * 128) == 0; }
}  // namespace

void LoadTile(uint32_t to, const CUtensorMap& map, uint32_t barrier, int x, int y, uint32_t ranks) {
  if (!Aligned(map, to)) Fault("a tile is copied to %u, where its swizzle does not begin", to);
  if (ranks == 0 || ranks >> ctas.size() != 0) return Fault("a tile is copied to CTAs %x of %zu", ranks, ctas.size());
  const int begin = std::max(y, 0), end = static_cast<int>(std::min<int64_t>(map.rows, y + map.box_rows));
  const int64_t column = static_cast<int64_t>(x) * map.value_bytes;
  const int64_t width = std::min<int64_t>(map.box_bytes, map.row_bytes - column);
  for (int row = begin; row < end && width > 0 && column >= 0; ++row) {
    AccessDevice(map.data + row * map.pitch + column, width, false);
  }
  for (uint32_t rank = 0; rank < ctas.size(); ++rank) {
    if ((ranks >> rank & 1) == 0) continue;
    Cta* const cta = ctas[rank].get();
    CopyBarrier* const b = FindBarrier(cta, barrier);
    if (b == nullptr) continue;
    AccessShared(cta, barrier, 8, false, running->who, running->clock, running->known);
    const Clock clock = ++now;
    // Ordered as the thread that asks for it, but not known to be there before the barrier says so. All accesses of the
    // thread's own to this place count as well: it may not read what it has asked for.
    AccessShared(cta, to, map.box_rows * map.box_bytes, true, b->agent, clock,
                 Learn(running->known, running->who, running->clock));
    cta->visits[b->agent] = clock;
    const Landing landing{cta, to, barrier, clock, &map, x, y};
    if (CopiesLandLate()) {
      landings.push_back(landing);
    } else {
      Land(landing);
    }
  }
}

void Land(const Landing& l) {
  for (int r = 0; r < l.map->box_rows; ++r) {
    const int64_t row = l.y + r;
    for (int piece = 0; piece < l.map->box_bytes / 16; ++piece) {
      const uint32_t swizzled = Swizzled(*l.map, l.to, r, piece);
      if (swizzled + 16 > kSharedSpan) return;
      for (int i = 0; i < 16; ++i) {
        const int64_t column = static_cast<int64_t>(l.x) * l.map->value_bytes + piece * 16 + i;
        const bool inside = row >= 0 && row < l.map->rows && column >= 0 && column < l.map->row_bytes;
        SharedMemory(l.cta, swizzled)[i] = inside ? l.map->data[row * l.map->pitch + column] : 0;
      }
    }
  }
  CopyBarrier& b = l.cta->barriers[l.barrier];
  b.gathered.Add(nullptr, b.agent, l.clock);
  b.bytes -= l.map->box_rows * l.map->box_bytes;
  CompletePhase(&b);
}

// ---- Stores of the copy engine ------------------------------------------------------------------------------------
void WrittenForCopyEngine() { running->fenced_at = running->clock = ++now; }

void StoreTile(uint32_t from, const CUtensorMap& map, int x, int y) {
  const int bytes = map.box_rows * map.box_bytes;
  if (!Aligned(map, from)) Fault("a tile is stored from %u, where its swizzle does not begin", from);
  const Clock clock = ++now;
  const Known known = Learn(running->known, running->who, running->clock);
  if (!AccessShared(running->cta, from, bytes, false, running->store_agent, clock, known)) return;
  if (!WrittenForEngine(running->cta, from, bytes)) {
    Fault("the copy engine stores what was written without WrittenForCopyEngine");
  }
  running->stores.push_back(PendingStore{running->store_group, clock});
  for (int r = 0; r < map.box_rows; ++r) {
    const int64_t row = static_cast<int64_t>(y) + r;
    for (int piece = 0; piece < map.box_bytes / 16 && row >= 0 && row < map.rows; ++piece) {
      const int64_t column = static_cast<int64_t>(x) * map.value_bytes + piece * 16;
      const int64_t width = std::min<int64_t>(16, map.row_bytes - column);
      if (column < 0 || width <= 0) continue;
      uint8_t* const to = map.data + row * map.pitch + column;
      if (!AccessDevice(to, width, true)) continue;
      std::memcpy(to, SharedMemory(running->cta, Swizzled(map, from, r, piece)), width);
    }
  }
}

void CommitStores() { ++running->store_group; }

void WaitStores(int pending) {
  std::vector<PendingStore>& stores = running->stores;
  while (!stores.empty() && stores.front().group + pending < running->store_group) {
    running->known = Learn(running->known, running->store_agent, stores.front().clock);
    stores.erase(stores.begin());
  }
}

}  // namespace emulation
