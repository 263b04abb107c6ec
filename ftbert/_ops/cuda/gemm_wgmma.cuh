// Matrix products of many rows on Hopper: persistent CTAs of one copying and two or three multiplying warpgroups.
//
// Contract: x (M, K) and w (N, K) as gemm.h says. A CTA loops over tiles of kRows x kColumns; the copying warpgroup
// keeps kStages slices of 128 bytes of K in flight through the copy engine. With kAlternate each multiplying warpgroup
// owns every other tile, so that one's epilogue hides behind the other's products; otherwise all share each tile, 64
// rows each. With a cluster of 2 the two CTAs take neighbouring row blocks, and each loads half of the weight tile for
// both.
#ifndef FTBERT_CUDA_GEMM_WGMMA_CUH_
#define FTBERT_CUDA_GEMM_WGMMA_CUH_

#include "cuda/tensor_map.h"
#include "cuda/wgmma_feed.cuh"

namespace ftbert {
namespace cuda {

constexpr bool ForFewRows(int rows, int columns, bool alternate) {
  return ForFewRows(WgmmaTile{rows, columns, alternate, 1});
}

template <typename In, typename Out, int kRows, int kColumns, bool kAlternate>
struct WgmmaSizes {
  using End = WgmmaEnd<In, Out, kRows, kColumns, ForFewRows(kRows, kColumns, kAlternate)>;
  static constexpr int kStageBytes = (kRows + kColumns) * 128;
  static constexpr int kGroups = kAlternate ? 2 : kRows / 64;  // multiplying warpgroups
  static constexpr int kThreads = 128 * (1 + kGroups);
  static constexpr int kBlocks = kAlternate ? kRows / 64 : 1;  // 64-row blocks of one of them
  // Registers of a multiplying and of a copying thread.
  static constexpr int kRegisters = kGroups == 3 ? 160 : 232, kSpared = kGroups == 3 ? 32 : 40;
  static constexpr int kSlots = 2;  // tiles whose parameters are there at a time
  static constexpr int kBarriers = 8 * (2 * 7 + 2 * kSlots + 4 * kGroups * 4);
  static constexpr int kAvailable = 227 * 1024 - 1024 - kBarriers - kSlots * End::kParameterBytes;
  static constexpr int kEach = 4 * kGroups * End::kBufferBytes;  // a buffer of every multiplying warp
  // As many buffers as divide the parts of a tile and leave room for six stages (seven small ones), or, where nothing
  // hides a tile's end, for three.
  static constexpr int kLeast = !kAlternate ? 3 : kStageBytes >= 32768 ? 6 : 7, kParts = kBlocks * End::kParts;
  static constexpr int kRoom = (kAvailable - kLeast * kStageBytes) / kEach;
  static constexpr int kBuffers = kRoom >= 4 && kParts % 4 == 0   ? 4
                                  : kRoom >= 3 && kParts % 3 == 0 ? 3
                                  : kRoom >= 2 && kParts % 2 == 0 ? 2
                                                                  : 1;
  static constexpr int kMost = (kAvailable - kBuffers * kEach) / kStageBytes, kStages = kMost < 7 ? kMost : 7;
  static constexpr int kShared =
      kStages * kStageBytes + kBuffers * kEach + kSlots * End::kParameterBytes + kBarriers + 1024;
};

template <typename In, typename Out, int kRows, int kColumns, bool kAlternate, int kCluster, bool kCompact = false>
__global__ void __launch_bounds__(WgmmaSizes<In, Out, kRows, kColumns, kAlternate>::kThreads, 1)
    GemmWgmma(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
              const __grid_constant__ EndMaps<ForFewRows(kRows, kColumns, kAlternate)> maps, const EpilogueArgs e,
              const void* prefetch, int64_t prefetch_bytes) {
#if FTBERT_HOPPER
  using Sizes = WgmmaSizes<In, Out, kRows, kColumns, kAlternate>;
  using End = typename Sizes::End;
  constexpr bool kFew = End::kFew;
  constexpr int kStages = Sizes::kStages, kBuffers = Sizes::kBuffers, kBlocks = Sizes::kBlocks;
  constexpr int kGroups = Sizes::kGroups;
  // Columns of an instruction. (Where three warpgroups multiply, the compiler has 128 registers for one.)
  constexpr int kWide = kGroups == 3 && kColumns > 192 ? kColumns / 2 : kColumns;
  constexpr int kSlice = 128 / sizeof(In);                      // values of K in a stage
  constexpr int kConsumers = (kAlternate ? 1 : kGroups) * kCluster;  // warpgroups that must leave a stage
  const uint32_t base = (SharedAddress(DynamicShared()) + 1023u) & ~1023u;
  const uint32_t buffers = base + kStages * Sizes::kStageBytes;
  const uint32_t parameters = buffers + kBuffers * Sizes::kEach;
  const uint32_t full = parameters + Sizes::kSlots * End::kParameterBytes, empty = full + 8 * kStages;
  const uint32_t slot_full = empty + 8 * kStages, slot_empty = slot_full + 8 * Sizes::kSlots;
  const bool fetches = !kFew && e.residual != nullptr;
  const CUtensorMap *out_map = nullptr, *residual_map = nullptr;
  if constexpr (!kFew) out_map = &maps.out, residual_map = &maps.residual;
  const uint32_t residuals = slot_empty + 8 * Sizes::kSlots;
  const int warpgroup = Warpgroup();
  const uint32_t rank = kCluster > 1 ? ClusterRank() : 0;
  if (threadIdx.x == 0) {
    PrefetchMap(&x_map);
    PrefetchMap(&w_map);
    if constexpr (!kFew) {
      PrefetchMap(&maps.out);
      if (fetches) PrefetchMap(&maps.residual);
    }
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kConsumers);
    }
    for (int s = 0; s < Sizes::kSlots; ++s) {
      BarrierInit(slot_full + 8 * s, 32);
      BarrierInit(slot_empty + 8 * s, kAlternate ? 4 : 4 * kGroups);
    }
    for (int i = 0; i < 4 * kGroups * kBuffers && fetches; ++i) BarrierInit(residuals + 8 * i, 1);
    BarrierInitFence();
  }
  if (kCluster > 1) {
    ClusterArrive();
    ClusterWait();
  } else {
    __syncthreads();
  }
  LetNextKernelStart();

  const TileOrder<kRows, kColumns, kCluster> order(e, static_cast<int>(rank));
  const int slices = CeilDiv(e.k, kSlice);

  if (warpgroup == 0) {
    GiveRegisters<Sizes::kSpared>();
    if (threadIdx.x == 0) {
      TileFeed<In, kRows, kColumns, kStages, kCluster>{&x_map, &w_map, base, full, empty}.Run(order, slices);
    } else if (threadIdx.x / 32 == 1) {
      FeedParameters<End, Sizes::kSlots>(order, e, parameters, slot_full, slot_empty);
    } else if (threadIdx.x == 64 && prefetch_bytes > 0) {
      PrefetchShare(prefetch, prefetch_bytes);
    }
  } else {
    TakeRegisters<Sizes::kRegisters>();
    WaitForPreviousKernel();  // what is written may still be read there
    const int mine = warpgroup - 1;
    const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
    const int row_in_tile = (kAlternate ? 0 : mine * kBlocks * 64) + warp * 16;
    const WarpBuffers<End::kRowBytes> w{buffers + (mine * 4 + warp) * kBuffers * End::kBufferBytes,
                                        residuals + (mine * 4 + warp) * kBuffers * 8,
                                        out_map,
                                        residual_map,
                                        lane};
    // Tells every CTA that writes into this stage, itself among them.
    const auto leave = [&](int stage) {
      const uint32_t to = threadIdx.x % 128;
      if (to >= kCluster) return;
      if (kCluster == 1) {
        BarrierArrive(empty + 8 * stage);
      } else {
        BarrierArriveRemote(empty + 8 * stage, to);
      }
    };
    int slice_count = 0;  // slices of all tiles so far: names the stage and its parity
    int count = 0, uses = 0;
    if (kAlternate && mine == 1) NamedBarrierArrive(1, 256);  // the first turn is warpgroup 0's
    for (int tile = order.first; tile < order.tiles; tile += order.stride, ++count) {
      if (kAlternate && (count & 1) != mine) {
        slice_count += slices;
        continue;
      }
      const int column = order.Column(tile), row = order.Row(tile) + row_in_tile;
      if (fetches && lane == 0) {
        WaitStoresRead<0>();
#pragma unroll
        for (int i = 0; i < kBuffers; ++i) {
          w.BringResidual(i, row + i / End::kParts * 64, column + i % End::kParts * End::kColumns);
        }
      }
      __syncwarp();
      float acc[kBlocks * kColumns / 2];
      if (kAlternate) NamedBarrierSync(1 + mine, 256);
      int previous = -1;
#pragma unroll kFew ? 1 : 2
      for (int slice = 0; slice < slices; ++slice, ++slice_count) {
        const int stage = slice_count % kStages;
        BarrierWait(full + 8 * stage, slice_count / kStages & 1);
        const uint32_t x_tile = base + stage * Sizes::kStageBytes + (kAlternate ? 0 : mine * kBlocks * 64 * 128);
        const uint64_t w_tile = TileDescriptor(base + stage * Sizes::kStageBytes + kRows * 128);
        WgmmaFence();
#pragma unroll
        for (int step = 0; step < 4; ++step) {  // 32 bytes of K each
#pragma unroll
          for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
            for (int part = 0; part < kColumns / kWide; ++part) {
              Wgmma<In, kWide>::Run(reinterpret_cast<float(&)[kWide / 2]>(acc[block * kColumns / 2 + part * kWide / 2]),
                                    TileDescriptor(x_tile + block * 64 * 128) + 2 * step,
                                    w_tile + part * (kWide * 128 / 16) + 2 * step, slice > 0 || step > 0);
            }
          }
        }
        WgmmaCommit();
        WgmmaWait<1>();
        if (previous >= 0) leave(previous);
        previous = stage;
      }
      // The other's turn, if it has one: no arrival may be left over when the CTA ends.
      if (kAlternate && tile + order.stride < order.tiles) NamedBarrierArrive(1 + (mine ^ 1), 256);
      WgmmaWait<0>();
      leave(previous);

      const bool last = tile + (kAlternate ? 2 : 1) * order.stride >= order.tiles;
      const int slot = count % Sizes::kSlots;
      const uint32_t at = parameters + slot * End::kParameterBytes;
      BarrierWait(slot_full + 8 * slot, count / Sizes::kSlots & 1);
      if (sizeof(Out) == 2 && e.residual != nullptr) {  // which no activation goes before
        FinishTile<End, Act::kNone, sizeof(Out) == 2, kBlocks, kBuffers, false>(
            acc, at, row_in_tile, row, column, uses, last, e, w);
      } else {
        WithAct(e.act, [&](auto act) {
          constexpr Act kAct = decltype(act)::value;
          FinishTile<End, kAct, false, kBlocks, kBuffers, (kFew || kCompact) && kAct != Act::kNone>(
              acc, at, row_in_tile, row, column, uses, last, e, w);
        });
      }
      uses += Sizes::kParts / kBuffers;
      __syncwarp();
      if (lane == 0) BarrierArrive(slot_empty + 8 * slot);
    }
    if (lane == 0) WaitStoresRead<0>();
  }
  if (kCluster > 1) {  // a CTA that ended could not take its neighbour's arrivals
    __syncwarp();
    ClusterArrive();
    ClusterWait();
  }
#endif
}

template <typename In, typename Out, int kVariant>
cudaError_t LaunchWgmma(const Machine& machine, Element in, const Gemm& g, cudaStream_t stream) {
  constexpr WgmmaTile kTile = kWgmmaTiles[kVariant];
  using Sizes = WgmmaSizes<In, Out, kTile.rows, kTile.columns, kTile.alternate>;
  static_assert(Sizes::kStages >= 3, "too little shared memory for this tile");
  const auto kernel = GemmWgmma<In, Out, kTile.rows, kTile.columns, kTile.alternate, kTile.cluster, kTile.compact>;
  static std::atomic<uint64_t> allowed{0};
  const cudaError_t refused = AllowShared(machine, reinterpret_cast<const void*>(kernel), Sizes::kShared, &allowed);
  if (refused != cudaSuccess) return refused;
  CUtensorMap x_map, w_map;
  EndMaps<Sizes::End::kFew> maps;
  cudaError_t error = MakeTensorMap(&x_map, in, g.x, g.m, g.k, g.ldx, kTile.rows);
  if (error == cudaSuccess) error = MakeTensorMap(&w_map, in, g.w, g.n, g.k, g.k, kTile.columns / kTile.cluster);
  if constexpr (!Sizes::End::kFew) {
    const auto map_end = [&](CUtensorMap* map, const void* data) {
      return MakeTensorMap(map, g.out_type, data, g.m, g.n, g.ldo, 16, Sizes::End::kRowBytes);
    };
    if (error == cudaSuccess) error = map_end(&maps.out, g.out);
    if (error == cudaSuccess) error = map_end(&maps.residual, g.residual != nullptr ? g.residual : g.out);
  }
  if (error != cudaSuccess) return error;
  const int tiles = ClusterTiles(kTile, g), most = ClustersAtOnce(machine, kTile);
  if (most == 0) return cudaErrorNotSupported;
  LaunchShape shape;
  shape.grid = dim3((tiles < most ? tiles : most) * kTile.cluster);
  shape.block = dim3(Sizes::kThreads);
  shape.shared = Sizes::kShared;
  shape.stream = stream;
  shape.cluster = kTile.cluster;
  shape.dependent = machine.dependent_launch;
  return Launch(shape, kernel, x_map, w_map, maps, MakeEpilogueArgs(g), g.prefetch, g.prefetch_bytes);
}

template <typename In, typename Out>
cudaError_t RunWgmma(const Machine& machine, Element in, int variant, const Gemm& g, cudaStream_t stream) {
  switch (variant) {
    case 0:
      return LaunchWgmma<In, Out, 0>(machine, in, g, stream);
    case 1:
      return LaunchWgmma<In, Out, 1>(machine, in, g, stream);
    case 2:
      return LaunchWgmma<In, Out, 2>(machine, in, g, stream);
    case 3:
      return LaunchWgmma<In, Out, 3>(machine, in, g, stream);
    case 4:
      return LaunchWgmma<In, Out, 4>(machine, in, g, stream);
    case 5:
      return LaunchWgmma<In, Out, 5>(machine, in, g, stream);
    case 6:
      return LaunchWgmma<In, Out, 6>(machine, in, g, stream);
    case 7:
      return LaunchWgmma<In, Out, 7>(machine, in, g, stream);
    case 8:
      return LaunchWgmma<In, Out, 8>(machine, in, g, stream);
    case 9:
      return LaunchWgmma<In, Out, 9>(machine, in, g, stream);
    case 10:
      return LaunchWgmma<In, Out, 10>(machine, in, g, stream);
    case 11:
      return LaunchWgmma<In, Out, 11>(machine, in, g, stream);
    case 12:
      return LaunchWgmma<In, Out, 12>(machine, in, g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_GEMM_WGMMA_CUH_
