// Which kernel runs which product on this card: rules at first sight, measured choices once Tune has run, kept in the
// user's cache folder for this card, driver and build.
#ifndef FTBERT_CUDA_PLANS_H_
#define FTBERT_CUDA_PLANS_H_

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "cuda/gemm.h"
#include "ftbert/engine.h"

namespace ftbert {
namespace cuda {

class PlanTable {
 public:
  explicit PlanTable(const Machine& machine);

  Plan Find(const Gemm& gemm) const;
  // Times every candidate; `weights` are matrices of this shape to rotate over, so that L2 does not hold the operand.
  Status Search(Gemm gemm, const std::vector<const void*>& weights, cudaStream_t stream);
  // Writes what was measured, beside and renamed. A folder that cannot be written is a warning, not an error.
  void Save();

  size_t measured() const;
  std::string warning() const;  // empty: none

 private:
  // m of the class, n, k, in, out, activation
  using Key = std::tuple<int, int, int, int, int, int>;
  static Key KeyOf(const Gemm& gemm);
  void Read();
  std::string Header() const;

  Machine machine_;
  std::string path_;
  mutable std::mutex mutex_;
  std::map<Key, Plan> plans_;
  std::string warning_;
};

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_PLANS_H_
