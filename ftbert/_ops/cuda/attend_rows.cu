// Queries, keys, values and attention of short rows in one kernel, on Hopper: heads of 64, rows of at most 128 tokens.
//
// A tile is up to 128 consecutive tokens that are whole rows, and one head: 64 columns each of its queries, keys and
// values, 192 sums for each token over K. Tiles begin wherever a row does (the copy engine takes any row of x first);
// what follows their last row belongs to the next tile, is computed and dropped. Sums become 16-bit queries in
// registers, and keys and values in shared memory, of which wgmma makes scores and context as in attention_wgmma.cu:
// neither queries, keys nor values go through memory, and no kernel waits for them. All of a query's keys are there at
// once, so that the softmax is a plain one.
//
// CTAs stay, with one copying warpgroup and two that multiply and attend, 64 rows of each tile.
#include "cuda/attend_rows.cuh"
#include "cuda/tensor_map.h"

namespace ftbert {
namespace cuda {
namespace {

using namespace attend_rows;

constexpr int kThreads = 3 * 128;

template <typename In, typename T, bool kFloat8>
__global__ void __launch_bounds__(kThreads, 1)
    AttendRows(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map, const Arguments a,
               const void* prefetch, int64_t prefetch_bytes) {
#if FTBERT_HOPPER
  using S = Sizes<In>;
  constexpr int kSlice = kRowBytes / sizeof(In);  // values of K in a stage
  const uint32_t base = (SharedAddress(DynamicShared()) + 1023u) & ~1023u;
  const uint32_t keys = base + kStages * kStageBytes, slots = keys + 2 * kTokensBytes;
  const uint32_t full = slots + kSlots * S::kSlotBytes, empty = full + 8 * kStages;
  const uint32_t slot_full = empty + 8 * kStages, slot_empty = slot_full + 8 * kSlots;
  const int warpgroup = Warpgroup(), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    PrefetchMap(&x_map);
    PrefetchMap(&w_map);
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, 2);
    }
    for (int s = 0; s < kSlots; ++s) {
      BarrierInit(slot_full + 8 * s, 32);
      BarrierInit(slot_empty + 8 * s, 8);
    }
    BarrierInitFence();
  }
  __syncthreads();
  LetNextKernelStart();

  const int slices = CeilDiv(a.k, kSlice), first = blockIdx.x, stride = gridDim.x;
  // Tiles of one token range follow one another. How many of these there are is known once the kernel before has ended.
  const auto head_of = [&](int tile) { return tile % a.heads; };
  const auto used_of = [&] { return a.tiles[a.slots].x; };
  const auto range_of = [&](int tile, int used) {
    return a.tiles[a.reversed ? used - 1 - tile / a.heads : tile / a.heads];
  };

  if (warpgroup == 0) {
    GiveRegisters<24>();
    const auto load_w = [&](int stage, int slice, int head) {
      const uint32_t barrier = full + 8 * stage, to = base + stage * kStageBytes + kRows * kRowBytes;
      BarrierExpect(barrier, kStageBytes);
#pragma unroll 1
      for (int i = 0; i < 3; ++i) {
        LoadTile(to + i * kHead * kRowBytes, &w_map, barrier, slice * kSlice, i * a.part + head * kHead);
      }
    };
    if (threadIdx.x == 0) {
      // The weights of the first stages do not depend on the kernel before.
      const int early = first < a.sure * a.heads ? min(slices, kStages) : 0;
#pragma unroll 1
      for (int slice = 0; slice < early; ++slice) load_w(slice, slice, head_of(first));
      WaitForPreviousKernel();
      const int used = used_of(), tiles = used * a.heads;
      int stage = 0;
      uint32_t parity = 1;
      bool ahead = true;
      for (int tile = first; tile < tiles; tile += stride, ahead = false) {
        const int token = range_of(tile, used).x;
#pragma unroll 1
        for (int slice = 0; slice < slices; ++slice) {
          if (!ahead || slice >= early) {
            BarrierWait(empty + 8 * stage, parity);
            load_w(stage, slice, head_of(tile));
          }
          LoadTile(base + stage * kStageBytes, &x_map, full + 8 * stage, slice * kSlice, token);
          if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
    } else if (threadIdx.x / 32 == 1) {
      if (first < a.sure * a.heads) BringColumns<S>(slots, a, head_of(first), lane);
      WaitForPreviousKernel();
      const int used = used_of(), tiles = used * a.heads;
      int count = 0;
      for (int tile = first; tile < tiles; tile += stride, ++count) {
        const int slot = count % kSlots;
        const uint32_t at = slots + slot * S::kSlotBytes;
        BarrierWait(slot_empty + 8 * slot, (count / kSlots & 1) ^ 1);
        if (count > 0 || first >= a.sure * a.heads) BringColumns<S>(at, a, head_of(tile), lane);
        BringRows<S>(at, a, range_of(tile, used), lane);
        BarrierArrive(slot_full + 8 * slot);
      }
    } else if (threadIdx.x == 64 && prefetch_bytes > 0) {
      PrefetchShare(prefetch, prefetch_bytes);
    }
  } else {
    TakeRegisters<240>();
    WaitForPreviousKernel();  // what is written may still be read there
    const int tiles = used_of() * a.heads;
    const int warp = SameInWarp(threadIdx.x % 128 / 32), row0 = (warpgroup - 1) * 64, warp_row = row0 + warp * 16;
    const auto meet = [] { NamedBarrierSync(1, 256); };
    const auto leave = [&](int stage) {
      if (threadIdx.x % 128 == 0) BarrierArrive(empty + 8 * stage);
    };
    int slice_count = 0, count = 0;
    for (int tile = first; tile < tiles; tile += stride, ++count) {
      float acc[kColumns / 2] = {};  // else it would keep its registers from the tile before on
      int previous = -1;
#pragma unroll 1
      for (int slice = 0; slice < slices; ++slice, ++slice_count) {
        const int stage = slice_count % kStages;
        BarrierWait(full + 8 * stage, slice_count / kStages & 1);
        const uint32_t at = base + stage * kStageBytes;
        MultiplySlice<In, kColumns>(acc, at + row0 * kRowBytes, at + kRows * kRowBytes);
        WgmmaWait<1>();
        if (previous >= 0) leave(previous);
        previous = stage;
      }
      WgmmaWait<0>();
      leave(previous);

      const int slot = count % kSlots;
      const uint32_t at = slots + slot * S::kSlotBytes;
      BarrierWait(slot_full + 8 * slot, count / kSlots & 1);
      const int token = static_cast<int>(LoadWord(at + S::kTile)), rows = static_cast<int>(LoadWord(at + S::kTile + 4));
      uint32_t queries[4][4], context[4][4];
      FinishSums<S, T>(acc, at, warp_row, rows, keys + warp_row * kRowBytes, lane, queries);
      WrittenForCopyEngine();  // and for wgmma
      meet();
      if (row0 < rows) AttendQueries<T>(queries, at + S::kRanges, row0, rows, keys, warp, lane, a.scale, context);
      meet();  // all have read the keys: results turn around in their place
      if (warp_row < rows) {
        StoreContext<T, kFloat8>(context, keys + warp_row * kRowBytes, a, token + warp_row, rows - warp_row,
                                 head_of(tile), lane);
      }
      __syncwarp();
      if (lane == 0) BarrierArrive(slot_empty + 8 * slot);
    }
  }
#endif
}

template <typename In, typename T, bool kFloat8>
cudaError_t LaunchRows(const Machine& machine, Element in, const RowsAttention& a, cudaStream_t stream) {
  using S = Sizes<In>;
  const auto kernel = AttendRows<In, T, kFloat8>;
  static std::atomic<uint64_t> allowed{0};
  const cudaError_t refused = AllowShared(machine, reinterpret_cast<const void*>(kernel), S::kShared, &allowed);
  if (refused != cudaSuccess) return refused;
  const Gemm& g = a.product;
  CUtensorMap x_map, w_map;
  cudaError_t error = MakeTensorMap(&x_map, in, g.x, g.m, g.k, g.ldx, kRows);
  if (error == cudaSuccess) error = MakeTensorMap(&w_map, in, g.w, g.n, g.k, g.k, kHead);
  if (error != cudaSuccess) return error;
  Arguments arguments;
  arguments.bias = g.bias, arguments.w_scale = g.w_scale, arguments.x_scale = g.x_scale;
  arguments.ranges = a.ranges, arguments.tiles = a.tiles, arguments.slots = a.slots, arguments.sure = a.sure;
  arguments.heads = a.heads, arguments.part = g.n / 3, arguments.count = g.m, arguments.k = g.k;
  arguments.reversed = g.reversed;
  arguments.scale = kLog2E / 8.f;  // 8: the root of a head's size
  arguments.context = a.context, arguments.ld_context = a.ld_context;
  LaunchShape shape;
  const int most = a.slots * a.heads;
  shape.grid = dim3(most < machine.sms ? most : machine.sms);
  shape.block = dim3(kThreads);
  shape.shared = S::kShared;
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  return Launch(shape, kernel, x_map, w_map, arguments, g.prefetch, g.prefetch_bytes);
}

}  // namespace

bool RowsAttentionFits(const Machine& machine, Element in, Element out, int heads, int head_size) {
  return machine.hopper && head_size == kHead && heads > 0 && (in == out || in == Element::kFloat8) &&
         (out == Element::kHalf || (out == Element::kBFloat && in == out));
}

cudaError_t RunRowsAttention(const Machine& machine, const RowsAttention& a, cudaStream_t stream) {
  const Element in = a.product.in;
  if (in == Element::kFloat8) {
    return a.float8_context ? LaunchRows<Float8, Half, true>(machine, in, a, stream)
                            : LaunchRows<Float8, Half, false>(machine, in, a, stream);
  }
  return in == Element::kHalf ? LaunchRows<Half, Half, false>(machine, in, a, stream)
                              : LaunchRows<BFloat, BFloat, false>(machine, in, a, stream);
}

}  // namespace cuda
}  // namespace ftbert
