// How a CTA of a product of many rows goes through its tiles, and what its copying warpgroup does: slices of both
// operands through the copy engine, tiles' parameters by a warp of their own.
#ifndef FTBERT_CUDA_WGMMA_FEED_CUH_
#define FTBERT_CUDA_WGMMA_FEED_CUH_

#include "cuda/hopper.cuh"
#include "cuda/wgmma_end.cuh"

namespace ftbert {
namespace cuda {

#if FTBERT_HOPPER
// The tiles of a CTA: `first`, and every `stride`-th from there on. Those of one block of rows follow one another; CTAs
// of a cluster take neighbouring blocks.
template <int kRows, int kColumns, int kCluster>
struct TileOrder {
  int columns, row_tiles, tiles, first, stride, rank;
  bool reversed;

  __device__ __forceinline__ TileOrder(const EpilogueArgs& e, int rank_in_cluster)
      : columns(CeilDiv(e.n, kColumns)),
        row_tiles(CeilDiv(CeilDiv(e.m, kRows), kCluster)),
        tiles(columns * row_tiles),
        first(blockIdx.x / kCluster),
        stride(gridDim.x / kCluster),
        rank(rank_in_cluster),
        reversed(e.reversed) {}
  __device__ __forceinline__ int Column(int tile) const { return tile % columns * kColumns; }
  __device__ __forceinline__ int Row(int tile) const {
    const int at = reversed ? row_tiles - 1 - tile / columns : tile / columns;
    return (at * kCluster + rank) * kRows;
  }
};

// A stage holds kRows rows and kColumns weights of a slice of K; `full` and `empty` are the stages' mbarriers. With a
// cluster of two each CTA loads half of the weights for both.
template <typename In, int kRows, int kColumns, int kStages, int kCluster>
struct TileFeed {
  static constexpr int kSlice = 128 / sizeof(In);  // values of K in a stage
  static constexpr int kStageBytes = (kRows + kColumns) * 128;
  const CUtensorMap *x_map, *w_map;
  uint32_t base, full, empty;

  __device__ __forceinline__ void LoadWeights(int stage, int slice, int column, int rank) const {
    const uint32_t barrier = full + 8 * stage, to = base + stage * kStageBytes + kRows * 128;
    BarrierExpect(barrier, kStageBytes);
    if (kCluster == 1) {
      LoadTile(to, w_map, barrier, slice * kSlice, column);
    } else {
      constexpr int kShare = kColumns / kCluster;
      LoadTileMulticast(to + rank * kShare * 128, w_map, barrier, slice * kSlice, column + rank * kShare,
                        (1 << kCluster) - 1);
    }
  }

  // All slices of all tiles: by one thread. Order: as TileOrder.
  template <typename Order>
  __device__ __forceinline__ void Run(const Order& order, int slices) const {
    // The weights of the first stages do not depend on the kernel before.
    const int early = order.first < order.tiles ? (slices < kStages ? slices : kStages) : 0;
#pragma unroll 1
    for (int slice = 0; slice < early; ++slice) LoadWeights(slice, slice, order.Column(order.first), order.rank);
    WaitForPreviousKernel();
    int stage = 0;
    uint32_t parity = 1;
    bool ahead = true;
    for (int tile = order.first; tile < order.tiles; tile += order.stride, ahead = false) {
      const int column = order.Column(tile), row = order.Row(tile);
#pragma unroll 1
      for (int slice = 0; slice < slices; ++slice) {
        if (!ahead || slice >= early) {
          BarrierWait(empty + 8 * stage, parity);
          LoadWeights(stage, slice, column, order.rank);
        }
        LoadTile(base + stage * kStageBytes, x_map, full + 8 * stage, slice * kSlice, row);
        if (++stage == kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  }
};

// Fills slots of parameters, kSlots in turn: by one warp.
template <typename End, int kSlots, typename Order>
__device__ __forceinline__ void FeedParameters(const Order& order, const EpilogueArgs& e, uint32_t slots,
                                               uint32_t slot_full, uint32_t slot_empty) {
  int count = 0;
  for (int tile = order.first; tile < order.tiles; tile += order.stride, ++count) {
    const int slot = count % kSlots;
    const uint32_t at = slots + slot * End::kParameterBytes;
    BarrierWait(slot_empty + 8 * slot, (count / kSlots & 1) ^ 1);
    BringColumns<End>(at, e, order.Column(tile), threadIdx.x % 32);
    if (count == 0) WaitForPreviousKernel();
    BringRows<End>(at, e, order.Row(tile), threadIdx.x % 32);
    BarrierArrive(slot_full + 8 * slot);
  }
}
#endif

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_WGMMA_FEED_CUH_
