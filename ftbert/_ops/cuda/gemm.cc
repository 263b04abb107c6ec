// Which kernel runs a product: the rules for shapes that were never measured on this card, and the list to search.
#include "cuda/gemm.h"

#include "cuda/lt.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kMostSplit = 8;  // the largest portable cluster
constexpr int kMostSplitRows = 512;

int Slices(const Gemm& g) { return (g.k * ElementBytes(g.in) + 127) / 128; }

// CTAs of the split-K kernel keep their whole share of K in shared memory.
bool SplitFits(const Gemm& g, int tokens, int split) {
  const int slices = (Slices(g) + split - 1) / split;
  return slices >= 1 && slices <= 16 && split <= Slices(g) && slices * (64 + tokens) * 128 <= 224 * 1024;
}

// One CTA for each 64 outputs; K is split over a cluster only where it does not fit into one multiprocessor.
Plan SplitPlan(const Machine& machine, const Gemm& g) {
  (void)machine;
  const int variant = g.m <= 32 ? 0 : 1;
  for (int split = 1; split <= kMostSplit; ++split) {
    if (SplitFits(g, kSplitTokens[variant], split)) return Plan{Family::kSplit, variant, split};
  }
  return Plan{Family::kSplit, variant, 0};
}

}  // namespace

Plan PlanFor(const Machine& machine, const Gemm& g) {
  // fp32, and large products on other cards than Hopper: cuBLASLt where it is.
  const bool wants_lt = g.in == Element::kFloat ? g.m >= 16 : (!machine.hopper && g.m >= 256);
  if (wants_lt && LtChoices(machine, g) > 0) return Plan{Family::kLt, 0, 1};
  if (g.in == Element::kFloat) return Plan{Family::kSimt, 0, 1};
  if (!machine.hopper) {
    const int64_t large = static_cast<int64_t>((g.m + 127) / 128) * ((g.n + 127) / 128);
    const int64_t medium = static_cast<int64_t>((g.m + 63) / 64) * ((g.n + 63) / 64);
    return Plan{Family::kMma, large >= machine.sms ? 0 : (medium >= machine.sms ? 1 : 2), 1};
  }
  if (g.m <= 256) {
    const Plan plan = SplitPlan(machine, g);
    if (plan.split > 0) return plan;
  }
  // The tile whose last wave is fullest, larger tiles before smaller ones at a tie.
  int best = 0;
  double least = 1e30;
  for (int v = 0; v < kWgmmaVariants; ++v) {
    const WgmmaTile& t = kWgmmaTiles[v];
    const int64_t tiles = static_cast<int64_t>((g.n + t.columns - 1) / t.columns) * ((g.m + t.rows - 1) / t.rows);
    const int64_t waves = (tiles + machine.sms - 1) / machine.sms;
    const double overhead = t.alternate ? 24. : 64.;  // of a tile, in columns of 128 rows
    const double time = waves * (t.rows / 128. * t.columns + (waves == 1 ? 64. : overhead));
    if (time < least) least = time, best = v;
  }
  return Plan{Family::kWgmma, best, 1};
}

std::vector<Plan> Candidates(const Machine& machine, const Gemm& g) {
  std::vector<Plan> plans;
  const int choices = LtChoices(machine, g);
  for (int i = 0; i < choices; ++i) plans.push_back(Plan{Family::kLt, i, 1});
  if (g.in == Element::kFloat) {
    plans.push_back(Plan{Family::kSimt, 0, 1});
    return plans;
  }
  if (g.in != Element::kFloat8) {
    for (int v = 0; v < 3; ++v) plans.push_back(Plan{Family::kMma, v, 1});
  }
  if (!machine.hopper) return plans;
  if (g.m > 64 && g.norm.states == nullptr) {
    for (int v = 0; v < kWgmmaVariants; ++v) plans.push_back(Plan{Family::kWgmma, v, 1});
  }
  if (g.m <= kMostSplitRows) {
    for (int v = 0; v < kSplitVariants; ++v) {
      if (v > 0 && g.m <= kSplitTokens[v - 1]) continue;
      for (int split = 1; split <= kMostSplit; ++split) {
        if (SplitFits(g, kSplitTokens[v], split)) plans.push_back(Plan{Family::kSplit, v, split});
      }
    }
  }
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
             (t.cluster > 1 ? " cluster " + std::to_string(t.cluster) : "");
    }
    case Family::kSplit:
      return "split " + std::to_string(kSplitTokens[plan.variant]) + "/" + std::to_string(plan.split);
    case Family::kLt:
      return "cublaslt " + std::to_string(plan.variant);
  }
  return "";
}

cudaError_t RunGemm(const Machine& machine, const Plan& plan, const Gemm& g, cudaStream_t stream) {
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
    case Family::kLt:
      return RunLt(machine, plan.variant, g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace ftbert
