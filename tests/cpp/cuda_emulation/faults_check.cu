// The emulation finds what it is there to find: kernels with one planted fault each, and one without.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/hopper.cuh"
#include "cuda/tensor_map.h"
#include "cuda_matrix.cuh"
#include "emulation.h"

using namespace ftbert::cuda;
using namespace ftbert_test;

namespace {

enum class Planted {
  kNone,
  kUnorderedInWarp,      // a lane reads what another has written, without __syncwarp
  kUnorderedInCta,       // a warp reads what another has written, without __syncthreads
  kReadUnwritten,        // shared memory that nobody has written
  kSharedOutOfBounds,
  kDeviceOutOfBounds,
  kBeforePrevious,       // what the kernel before may write, read before the wait for it
  kNoWait,               // a CTA that ends without that wait
  kUnfinishedCopy,       // an asynchronous copy read before it is waited for
  kHalfBarrier,          // a named barrier that half of its threads leave out
  kOtherNotBegun,        // a write into a CTA of the cluster that may not have begun
  kOtherEnded,           // and into one that may have ended
  kSentUnwaited,         // what the other sends, read before the barrier that counts its bytes
  kStoredUnordered,      // the copy engine stores what another lane has written, without __syncwarp
  kStoredUnfenced,       // and without that lane's WrittenForCopyEngine
  kOverwritten,          // what it stores is written again before it is waited for
};
constexpr Planted kAll[] = {Planted::kNone,           Planted::kUnorderedInWarp,   Planted::kUnorderedInCta,
                            Planted::kReadUnwritten,  Planted::kSharedOutOfBounds, Planted::kDeviceOutOfBounds,
                            Planted::kBeforePrevious, Planted::kNoWait,            Planted::kUnfinishedCopy,
                            Planted::kHalfBarrier,    Planted::kOtherNotBegun,     Planted::kOtherEnded,
                            Planted::kSentUnwaited,   Planted::kStoredUnordered,   Planted::kStoredUnfenced,
                            Planted::kOverwritten};

__global__ void Faulty(Planted planted, const float* in, float* out, const CUtensorMap map) {
  const uint32_t base = SharedAddress(DynamicShared()), mine = base + 4 * threadIdx.x;
  const auto is = [&](Planted one) { return planted == one; };
  if (is(Planted::kBeforePrevious)) out[threadIdx.x] = in[threadIdx.x];
  if (!is(Planted::kNoWait)) WaitForPreviousKernel();
  if (!is(Planted::kReadUnwritten)) StoreShared(mine, in[threadIdx.x]);
  if (!is(Planted::kUnorderedInWarp)) __syncwarp();
  float sum = LoadShared2(base + 8 * (threadIdx.x / 32 * 16 + (threadIdx.x + 1) % 16)).x;
  if (!is(Planted::kUnorderedInCta)) __syncthreads();
  sum += LoadShared2(base + 8 * ((threadIdx.x + 16) % 32)).x;
  if (is(Planted::kSharedOutOfBounds)) sum += LoadShared2(base + 6144 + 8 * threadIdx.x).x;
  if (is(Planted::kDeviceOutOfBounds)) sum += in[64 + threadIdx.x];
  __syncthreads();
  const uint32_t copied = base + 1024 + 16 * threadIdx.x;
  CopyAsync16(copied, in + threadIdx.x / 4 * 4, true);
  CommitCopies();
  if (!is(Planted::kUnfinishedCopy)) WaitCopies<0>();
  sum += LoadShared4(copied).x;
  WaitCopies<0>();
  if (!is(Planted::kHalfBarrier) || threadIdx.x < 32) NamedBarrierSync(1, 64);
  const uint32_t sent = base + 2048 + 16 * threadIdx.x, inbox = base + 5120 + 16 * threadIdx.x, arrived = base + 512;
  if (threadIdx.x == 0) {
    BarrierInit(arrived, 1);
    BarrierInitFence();
    BarrierExpect(arrived, 64 * 16);
  }
  if (!is(Planted::kOtherNotBegun)) {
    ClusterArrive();
    ClusterWait();
    SendRemote4(inbox, 1 - ClusterRank(), make_float4(sum, 0.f, 0.f, 0.f), arrived);
    if (!is(Planted::kSentUnwaited)) BarrierWait(arrived, 0);
    sum += LoadShared4(inbox).x;
  }
  StoreRemote4(sent, 1 - ClusterRank(), make_float4(sum, 0.f, 0.f, 0.f));
  if (!is(Planted::kOtherEnded)) {
    ClusterArrive();
    ClusterWait();
    sum = LoadShared4(sent).x;
  }
  if (blockIdx.x != 0) return;
  out[threadIdx.x] = sum;
  if (threadIdx.x >= 32) return;
  const uint32_t stored = (base + 4096) / 1024 * 1024, piece = stored + 16 * threadIdx.x;
  StoreShared4(piece, make_float4(sum, sum, sum, sum));
  if (!is(Planted::kStoredUnfenced) || threadIdx.x != 7) WrittenForCopyEngine();
  if (!is(Planted::kStoredUnordered)) __syncwarp();
  if (threadIdx.x == 0) {
    StoreTile(stored, &map, 0, 0);
    CommitStores();
    if (!is(Planted::kOverwritten)) WaitStoresRead<0>();
  }
  __syncwarp();
  StoreShared4(piece, make_float4(0.f, 0.f, 0.f, 0.f));
  if (threadIdx.x == 0) WaitStoresRead<0>();
}

}  // namespace

int main() {
  int wrong = 0;
  for (const Planted planted : kAll) {
    Matrix in(Element::kFloat, 1, 64), out(Element::kFloat, 1, 64);
    Matrix box(Element::kHalf, 32, 64);
    in.Random(1.f);
    CUtensorMap map;
    CHECK_CUDA(MakeTensorMap(&map, Element::kHalf, box.device, 32, 64, 64, 4));
    LaunchShape shape;
    shape.grid = dim3(2);
    shape.cluster = 2;
    shape.block = dim3(64);
    shape.shared = 6144;
    shape.dependent = true;
    const long before = emulation::Faults();
    const cudaError_t launched = Launch(shape, Faulty, planted, static_cast<const float*>(in.device),
                                        static_cast<float*>(out.device), map);
    const bool found = cudaDeviceSynchronize() != cudaSuccess || launched != cudaSuccess;
    std::printf("planted %d: %ld faults\n", static_cast<int>(planted), emulation::Faults() - before);
    if (found != (planted != Planted::kNone)) {
      std::printf("FAIL planted %d: expected %s\n", static_cast<int>(planted), found ? "no fault" : "a fault");
      ++wrong;
    }
  }
  return wrong == 0 ? 0 : 1;
}
