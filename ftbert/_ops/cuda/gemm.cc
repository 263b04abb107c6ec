// Which kernel runs a product: the rules for shapes that were never measured on this card, and the list to search.
#include "cuda/gemm.h"

#include <algorithm>

#include "cuda/lt.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kMostSplit = 8;    // the largest portable cluster
constexpr int kMostSlices = 12;  // of 128 bytes of K in a CTA; with more it measured slower
constexpr int kSplitRows = kRuledRows;  // up to here the split-K kernel is the first choice
constexpr int kMostSplitRows = 512;     // and up to here it is searched
// Beyond so many rows clusters that share K are faster where K is long, so many slices of 128 bytes; beyond kSplitRows
// clusters of two with half of them.
constexpr int kLeastSharedRows = 64;
constexpr int kLongSlices = 24;
// Where cuBLASLt's first choice is faster than ours on Hopper: beyond so many rows, from fewer rows on with many
// weights (its kernels end better in a single wave), and up to here; with more, where K is long, so many times N, and
// ours have no tiles of 192 rows. (The model in fp16 on an H200 with all products by cuBLASLt, against ours: 9, 10, 5%
// less time at 5,120, 6,144 and 8,192 rows, 1% more at 12,288; at 16,000 and more it pays only where K is long.)
constexpr int kLtRows = 2048, kLtSomeRows = 1024, kMostLtRows = 8192;
// Between, up to kMostTallRows, only with as many weights as in a BERT-large (16-bit model at 12,288 rows: 7% less).
constexpr int64_t kLtSomeWeights = 1 << 20, kLtManyWeights = 3 << 20;
constexpr int kLongK = 2;

int MostSplit(const Machine& machine) { return machine.clusters ? kMostSplit : 1; }

int Slices(const Gemm& g) { return (g.k * ElementBytes(g.in) + 127) / 128; }

// CTAs of the split-K kernel keep their whole share of K in shared memory.
bool SplitFits(const Gemm& g, int tokens, int split) {
  const int slices = (Slices(g) + split - 1) / split;
  return slices >= 1 && slices <= kMostSlices && split <= Slices(g) && slices * (64 + tokens) * 128 <= 224 * 1024;
}

// One CTA for each 64 outputs; K is split over a cluster only where it does not fit into one multiprocessor. Tiles of
// few tokens while every CTA still finds a multiprocessor of its own.
Plan SplitPlan(const Machine& machine, const Gemm& g) {
  Plan widest{Family::kSplit, 0, 0};
  for (int variant = 0; variant < kSplitVariants; ++variant) {
    for (int split = 1; split <= MostSplit(machine); ++split) {
      if (!SplitFits(g, kSplitTokens[variant], split)) continue;
      widest = Plan{Family::kSplit, variant, split};
      if (CeilDiv(g.n, 64) * CeilDiv(g.m, kSplitTokens[variant]) * split <= machine.sms) return widest;
      break;
    }
  }
  return widest;
}

// Between the few rows that the split-K kernel is for and the many that fill the card with tiles: the smallest tiles
// and the largest cluster with which all are one wave.
Plan SharedPlan(const Machine& machine, const Gemm& g) {
  Plan best{Family::kShared, 0, 0};
  const bool long_k = Slices(g) >= kLongSlices;
  if (!machine.clusters || g.m <= (long_k ? kLeastSharedRows : kSplitRows)) return best;
  for (const SharedTile& tile : kSharedTiles) {
    const int tiles = CeilDiv(g.m, SharedRows(tile.variant)) * CeilDiv(g.n, kSharedColumns);
    const Plan plan{Family::kShared, tile.variant, tile.split};
    const bool enough = long_k || (tile.variant == 0 && tile.split == 2 && 2 * Slices(g) >= kLongSlices);
    if (tiles * tile.split <= machine.sms && enough && CanRun(plan, g)) best = plan;
  }
  return best;
}

// Measured on an H100, in microseconds: a 128-byte slice of K; what a tile takes besides, and an activation on top;
// what the first wave cannot hide behind another. A tile that alternates hides its end behind the other's products.
struct WgmmaCost {
  float slice, tile, activation, alone;
};
constexpr WgmmaCost kWgmmaCosts[kWgmmaVariants] = {
    {0.44f, 0.3f, 0.4f, 2.f},    // 128 x 128 alternating
    {0.385f, 0.6f, 0.4f, 2.f},   // the same in clusters
    {0.735f, 1.9f, 1.4f, 1.f},   // 128 x 256
    {0.6f, 2.f, 1.f, 1.f},       // 128 x 192
    {0.37f, 1.5f, 0.7f, 1.f},    // 128 x 128
    {0.33f, 1.6f, 0.6f, 0.5f},   // 128 x 96
    {0.23f, 1.5f, 0.4f, 0.9f},   // 128 x 64
    {0.45f, 1.f, 0.4f, 2.f},     // 64 x 256 alternating in clusters
    {0.19f, 1.3f, 0.3f, 1.15f},  // 64 x 96 alternating
    {0.46f, 1.8f, 0.8f, 1.f},    // 128 x 144
    {1.15f, 2.4f, 0.4f, 1.f},    // 192 x 256
    {0.867f, 1.5f, 0.3f, 1.f},   // 192 x 192
    {0.44f, 0.3f, 0.4f, 2.f},    // 128 x 128 alternating, compact
};
// Up to here tiles' ends are compact: a kernel goes through them a few times only. (The model in fp8 on an H200: 5, 7,
// 6% faster at 1,024, 2,048 and 4,096 rows; at 12,288 the same, beyond slower.)
constexpr int kCompactRows = 8192;
// Tiles of 192 rows, whose ends are not, pay from there to here (the model at 12,288 rows: 3% faster). At 2,048, at
// 4,096 and from 16,000 on it is slower with them, whatever the products alone say.
constexpr int kMostTallRows = 14336;
constexpr float kFloat8Tile = 1.f;  // scaling by row and column; half of it hides where tiles alternate
// fp8 from kManyRows on, scaling included, in the same order: fitted to 32,768 rows.
constexpr int kManyRows = 2048;
constexpr WgmmaCost kFloat8Costs[kWgmmaVariants] = {
    {0.342f, 0.98f, 0.37f, 2.f}, {0.363f, 0.84f, 0.39f, 2.f},  {0.687f, 2.76f, 0.55f, 1.f},
    {0.485f, 2.71f, 0.19f, 1.f}, {0.348f, 1.70f, 0.10f, 1.f},  {0.262f, 1.48f, 0.12f, 0.5f},
    {0.236f, 0.80f, 0.23f, 0.9f}, {0.577f, 0.03f, -0.2f, 2.f}, {0.219f, 0.40f, 0.02f, 1.15f},
    {0.38f, 2.0f, 0.1f, 1.f},    {1.05f, 4.f, 0.7f, 1.f},      {0.72f, 2.7f, 1.f, 1.f},
    {0.342f, 0.98f, 0.37f, 2.f},
};

Plan WgmmaPlan(const Machine& machine, const Gemm& g) {
  Plan best{Family::kWgmma, 0, 1};
  float least = 1e30f;
  for (int v = 0; v < kWgmmaVariants; ++v) {
    const WgmmaTile& t = kWgmmaTiles[v];
    const int most = ClustersAtOnce(machine, t);
    if (most == 0 || (t.rows == 192 && g.m > kMostTallRows)) continue;
    const bool compact = t.compact || ForFewRows(t);
    if (g.m <= kCompactRows ? !compact : t.compact) continue;
    const int waves = CeilDiv(ClusterTiles(t, g), most);
    const bool float8 = g.in == Element::kFloat8, many = float8 && g.m >= kManyRows;
    const WgmmaCost& cost = many ? kFloat8Costs[v] : kWgmmaCosts[v];
    const float each = Slices(g) * cost.slice + cost.tile + (g.act != 0 ? cost.activation : 0.f) +
                       (float8 && !many ? (t.alternate ? 0.5f : 1.f) * kFloat8Tile : 0.f);
    const float time = waves * each + (waves <= (t.alternate ? 2 : 1) ? cost.alone : 0.f);
    if (time < least) least = time, best.variant = v;
  }
  return best;
}

// fp32, and on Hopper products of a middling size: ours start earlier.
bool PrefersLt(const Machine& machine, const Gemm& g) {
  if (g.in == Element::kFloat) return g.m >= 16;
  if (!machine.hopper) return g.m >= 256;
  const int64_t weights = static_cast<int64_t>(g.n) * g.k;
  if (g.m > kMostTallRows) return g.k >= kLongK * g.n;
  if (g.m > kMostLtRows) return weights >= kLtManyWeights;
  if (g.act != 0 && g.m > kLtSomeRows && g.m <= kLtRows) return false;  // the model is 3 to 6% faster with ours
  return weights >= kLtSomeWeights ? g.m >= kLtSomeRows : g.m > kLtRows;
}

}  // namespace

int HeightClass(int m) {
  int top = 32;
  while (top < m && top < 2048) top += top >= 128 ? top / 2 / 16 * 16 : top;
  if (m <= top) return top;
  int power = 2048;
  while (power * 2 < m && power < (1 << 29)) power *= 2;
  return RoundUp(m, power / 8);
}

bool LtAllowed(const Machine& machine, const Gemm& g) {
  return machine.lt && g.residual == nullptr && g.batches == 1;
}

Plan PlanFor(const Machine& machine, const Gemm& g) {
  if (LtAllowed(machine, g) && PrefersLt(machine, g) && LtChoices(machine, g) > 0) return Plan{Family::kLt, 0, 1};
  return OwnPlanFor(machine, g);
}

Plan OwnPlanFor(const Machine& machine, const Gemm& g) {
  if (g.in == Element::kFloat) return Plan{Family::kSimt, 0, 1};
  if (!machine.hopper || g.batches > 1) {
    const int64_t large = static_cast<int64_t>((g.m + 127) / 128) * ((g.n + 127) / 128) * g.batches;
    const int64_t medium = static_cast<int64_t>((g.m + 63) / 64) * ((g.n + 63) / 64) * g.batches;
    return Plan{Family::kMma, large >= machine.sms ? 0 : (medium >= machine.sms ? 1 : 2), 1};
  }
  const Plan shared = SharedPlan(machine, g);
  if (shared.split > 0) return shared;
  if (g.m <= kSplitRows) {
    const Plan plan = SplitPlan(machine, g);
    if (plan.split > 0) return plan;
  }
  return WgmmaPlan(machine, g);
}

namespace {

std::vector<Plan> AllPlans(const Machine& machine, const Gemm& g) {
  std::vector<Plan> plans;
  const int choices = LtAllowed(machine, g) ? LtChoices(machine, g) : 0;
  for (int i = 0; i < choices; ++i) plans.push_back(Plan{Family::kLt, i, 1});
  if (g.in == Element::kFloat) {
    plans.push_back(Plan{Family::kSimt, 0, 1});
    return plans;
  }
  if (g.in != Element::kFloat8) {
    for (int v = 0; v < 3; ++v) plans.push_back(Plan{Family::kMma, v, 1});
  }
  if (!machine.hopper) return plans;
  if (g.m > 64) {
    for (int v = 0; v < kWgmmaVariants; ++v) {
      if (ClustersAtOnce(machine, kWgmmaTiles[v]) > 0) plans.push_back(Plan{Family::kWgmma, v, 1});
    }
  }
  if (machine.clusters) {
    for (const SharedTile& tile : kSharedTiles) plans.push_back(Plan{Family::kShared, tile.variant, tile.split});
  }
  if (g.m <= kMostSplitRows) {
    for (int v = 0; v < kSplitVariants; ++v) {
      if (v > 0 && g.m <= kSplitTokens[v - 1]) continue;
      for (int split = 1; split <= MostSplit(machine); ++split) {
        if (SplitFits(g, kSplitTokens[v], split)) plans.push_back(Plan{Family::kSplit, v, split});
      }
    }
  }
  return plans;
}

}  // namespace

std::vector<Plan> Candidates(const Machine& machine, const Gemm& g) {
  std::vector<Plan> plans = AllPlans(machine, g);
  const auto refused = [&](const Plan& plan) { return !CanRun(plan, g); };
  plans.erase(std::remove_if(plans.begin(), plans.end(), refused), plans.end());
  return plans;
}

std::string PlanName(const Plan& plan) {
  switch (plan.family) {
    case Family::kSimt:
      return "simt";
    case Family::kMma:
      return "mma " + std::to_string(plan.variant);
    case Family::kWgmma: {
      const WgmmaTile& t = kWgmmaTiles[plan.variant];
      return "wgmma " + std::to_string(t.rows) + "x" + std::to_string(t.columns) + (t.alternate ? " alternating" : "") +
             (t.compact ? " compact" : "") + (t.cluster > 1 ? " cluster " + std::to_string(t.cluster) : "");
    }
    case Family::kSplit:
      return "split " + std::to_string(kSplitTokens[plan.variant]) + "/" + std::to_string(plan.split);
    case Family::kShared:
      return "shared " + std::to_string(SharedRows(plan.variant)) + "x" + std::to_string(kSharedColumns) + "/" +
             std::to_string(plan.split);
    case Family::kLt:
      return "cublaslt " + std::to_string(plan.variant);
  }
  return "";
}

bool CanRun(const Plan& plan, const Gemm& g) {
  if (g.batches > 1) return plan.family == Family::kMma && g.residual == nullptr;
  if (plan.family == Family::kShared) {
    return g.residual == nullptr && g.act == 0 && g.in != Element::kFloat && g.out_type != Element::kFloat8 &&
           Slices(g) >= 2 * plan.split;
  }
  if (g.residual_rows != nullptr) return plan.family == Family::kSplit;
  if (g.residual == nullptr || plan.family == Family::kSplit) return true;
  return plan.family == Family::kWgmma && g.act == 0;
}

cudaError_t RunGemm(const Machine& machine, const Plan& plan, const Gemm& g, cudaStream_t stream) {
  if (!CanRun(plan, g) || (plan.split > 1 && !machine.clusters)) return cudaErrorNotSupported;
  switch (plan.family) {
    case Family::kSimt:
      return RunSimt(machine, g, stream);
    case Family::kMma:
      return RunMma(machine, plan.variant, g, stream);
    case Family::kWgmma:
      if (g.in == Element::kHalf) return RunWgmmaHalf(machine, plan.variant, g, stream);
      if (g.in == Element::kBFloat) return RunWgmmaBFloat(machine, plan.variant, g, stream);
      return RunWgmmaFloat8(machine, plan.variant, g, stream);
    case Family::kSplit:
      return RunSplit(machine, plan.variant, plan.split, g, stream);
    case Family::kShared:
      return RunSharedK(machine, plan.variant, plan.split, g, stream);
    case Family::kLt:
      return LtAllowed(machine, g) ? RunLt(machine, plan.variant, g, stream) : cudaErrorNotSupported;
  }
  return cudaErrorInvalidValue;
}

cudaError_t RunGemmOrOwn(const Machine& machine, const Plan& plan, const Gemm& g, cudaStream_t stream) {
  const cudaError_t error = RunGemm(machine, plan, g, stream);
  return error != cudaErrorNotSupported ? error : RunGemm(machine, OwnPlanFor(machine, g), g, stream);
}

}  // namespace cuda
}  // namespace ftbert
