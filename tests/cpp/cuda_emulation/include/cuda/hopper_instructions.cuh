// Emulated: ftbert/_ops/cuda/hopper_instructions.cuh says what each does.
#ifndef FTBERT_TESTS_CUDA_EMULATION_HOPPER_INSTRUCTIONS_CUH_
#define FTBERT_TESTS_CUDA_EMULATION_HOPPER_INSTRUCTIONS_CUH_

#include "cuda/common.cuh"

namespace ftbert {
namespace cuda {

inline void BarrierInit(uint32_t barrier, int arrivals) { emulation::BarrierInit(barrier, arrivals); }
inline void BarrierInitFence() {}
inline void BarrierExpect(uint32_t barrier, uint32_t bytes) {
  emulation::BarrierArrive(barrier, emulation::ClusterRank(), bytes);
}
inline void BarrierArrive(uint32_t barrier) { emulation::BarrierArrive(barrier, emulation::ClusterRank(), 0); }
inline void BarrierArriveRemote(uint32_t barrier, uint32_t rank) { emulation::BarrierArrive(barrier, rank, 0); }
inline void BarrierWait(uint32_t barrier, uint32_t parity) { emulation::BarrierWait(barrier, parity); }
inline void BarrierWaitCluster(uint32_t barrier, uint32_t parity) { emulation::BarrierWait(barrier, parity); }
inline void NamedBarrierSync(int id, int threads) { emulation::NamedBarrier(id, threads, true); }
inline void NamedBarrierArrive(int id, int threads) { emulation::NamedBarrier(id, threads, false); }

inline bool ElectLane() { return ShuffleBits(0xffffffffu, threadIdx.x % 32, 0) == threadIdx.x % 32; }

inline uint32_t ClusterRank() { return emulation::ClusterRank(); }
inline void ClusterArrive() { emulation::ClusterArrive(); }
inline void ClusterWait() { emulation::ClusterWait(); }
inline void StoreRemote4(uint32_t address, uint32_t rank, const float4& value) {
  emulation::StoreRemote(address, rank, &value, sizeof value);
}

inline void SendRemote2(uint32_t address, uint32_t rank, const float2& value, uint32_t barrier) {
  emulation::StoreRemote(address, rank, &value, sizeof value);
  emulation::Sent(barrier, rank, sizeof value);
}

inline void SendRemote4(uint32_t address, uint32_t rank, const float4& value, uint32_t barrier) {
  emulation::StoreRemote(address, rank, &value, sizeof value);
  emulation::Sent(barrier, rank, sizeof value);
}

inline void LoadTile(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y) {
  emulation::LoadTile(to, *map, barrier, x, y, 1u << emulation::ClusterRank());
}
inline void LoadTileMulticast(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, uint16_t ranks) {
  emulation::LoadTile(to, *map, barrier, x, y, ranks);
}
inline void WrittenForCopyEngine() { emulation::WrittenForCopyEngine(); }
inline void StoreTile(uint32_t from, const CUtensorMap* map, int x, int y) { emulation::StoreTile(from, *map, x, y); }
inline void CommitStores() { emulation::CommitStores(); }
template <int kPending>
void WaitStoresRead() {
  emulation::WaitStores(kPending);
}
inline void PrefetchMap(const CUtensorMap*) {}
inline void PrefetchL2(const void* address, uint32_t bytes) { emulation::Prefetch(address, bytes); }

inline void WgmmaFence() { emulation::WgmmaFence(); }
inline void WgmmaCommit() { emulation::WgmmaCommit(); }
template <int kPending>
void WgmmaWait() {
  emulation::WgmmaWait(kPending);
}
template <int kRegisters>
void TakeRegisters() {}
template <int kRegisters>
void GiveRegisters() {}
template <typename T, int N>
struct Wgmma {
  static void Run(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
    emulation::Wgmma(d, N, nullptr, a, b, accumulate != 0, emulation::KindOf<T>());
  }
};
template <typename T>
void MultiplyRegisters(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  emulation::Wgmma(d, 64, a, 0, b, true, emulation::KindOf<T>());
}
template <typename T>
void MultiplyRegistersKeys(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  emulation::Wgmma(d, 64, a, 0, b, true, emulation::KindOf<T>(), true);
}
inline void HoldRegisters(float (&)[32]) {}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_TESTS_CUDA_EMULATION_HOPPER_INSTRUCTIONS_CUH_
