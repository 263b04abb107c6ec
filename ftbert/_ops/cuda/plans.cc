#include "cuda/plans.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "cuda/device.h"
#include "cuda/graph_fills.h"
#include "cuda/lt.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr const char* kFormat = "ftbert-cuda-plans 2";
// Rises when kernels or variants change their meaning: what older builds measured is then not used.
constexpr int kKernels = 8;

std::string CacheFolder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return std::string(cache) + "/ftbert";
  const char* home = std::getenv("HOME");
  if (home != nullptr && home[0] == '/') return std::string(home) + "/.cache/ftbert";
  return "";
}

std::string FileName(const std::string& card) {
  std::string name = "cuda-plans-";
  for (char c : card) name += std::isalnum(static_cast<unsigned char>(c)) ? c : '-';
  return name + ".txt";
}

void MakeFolders(const std::string& path) {
  for (size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
    mkdir(path.substr(0, at).c_str(), 0777);
  }
  mkdir(path.c_str(), 0777);
}

// Median time of a product over the weights, or a negative number where the plan does not run. With a counter, which
// kLtCounters then begin at, as in a recorded batch.
float TimePlan(const Machine& machine, const Plan& plan, Gemm gemm, const std::vector<const void*>& weights,
               cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t run = nullptr;
  if (RunGemm(machine, plan, gemm, stream) != cudaSuccess || cudaStreamSynchronize(stream) != cudaSuccess) {
    cudaGetLastError();
    return -1.f;
  }
  if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) != cudaSuccess) return -1.f;
  bool good = true;
  void* const counters = gemm.counter;
  const size_t count = counters == nullptr ? 0 : std::min<size_t>(weights.size(), kLtCounters);
  for (size_t i = 0; i < weights.size(); ++i) {
    gemm.w = weights[i];
    gemm.counter = i < count ? static_cast<uint8_t*>(counters) + i * kLtCounterBytes : nullptr;
    good = good && RunGemm(machine, plan, gemm, stream) == cudaSuccess;
  }
  good = cudaStreamEndCapture(stream, &graph) == cudaSuccess && good;
  if (count > 0) good = good && HoistFills(graph, counters, count * kLtCounterBytes) == cudaSuccess;
  good = good && cudaGraphInstantiateWithFlags(&run, graph, 0) == cudaSuccess;
  float median = -1.f;
  if (good) {
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    float times[5] = {};
    for (float& time : times) {
      cudaEventRecord(begin, stream);
      cudaGraphLaunch(run, stream);
      cudaEventRecord(end, stream);
      good = good && cudaStreamSynchronize(stream) == cudaSuccess &&
             cudaEventElapsedTime(&time, begin, end) == cudaSuccess;
    }
    std::sort(times, times + 5);
    if (good) median = times[2] / weights.size();
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
  if (run != nullptr) cudaGraphExecDestroy(run);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
  return median;
}

}  // namespace

PlanTable::PlanTable(const Machine& machine) : machine_(machine) {
  const std::string folder = CacheFolder();
  if (!folder.empty()) path_ = folder + "/" + FileName(machine.name);
  Read();
}

std::string PlanTable::Header() const {
  return std::string(kFormat) + "\t" + machine_.name + "\t" + DriverRelease() + "\t" + RuntimeVersion() + "\t" +
         std::to_string(kKernels);
}

PlanTable::Key PlanTable::KeyOf(const Gemm& g) {
  return Key(HeightClass(g.m), g.n, g.k, static_cast<int>(g.in), static_cast<int>(g.out_type), g.act);
}

Plan PlanTable::Find(const Gemm& g) const {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = plans_.find(KeyOf(g));
    if (found != plans_.end() && CanRun(found->second, g)) return found->second;
  }
  return PlanFor(machine_, g);
}

Status PlanTable::Search(Gemm gemm, const std::vector<const void*>& weights, cudaStream_t stream) {
  Plan best = PlanFor(machine_, gemm);
  if (best.family == Family::kSplit || (best.family == Family::kShared && gemm.m <= kRuledRows)) return Status();
  float least = -1.f;
  for (const Plan& plan : Candidates(machine_, gemm)) {
    const float time = TimePlan(machine_, plan, gemm, weights, stream);
    const cudaError_t error = cudaStreamSynchronize(stream);
    if (error != cudaSuccess) return FromCuda(error, "timing " + PlanName(plan));
    if (time >= 0.f && (least < 0.f || time < least)) least = time, best = plan;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  plans_[KeyOf(gemm)] = best;
  return Status();
}

void PlanTable::Read() {
  if (path_.empty()) return;
  std::ifstream file(path_);
  if (!file) return;
  std::string line;
  std::getline(file, line);
  if (line != Header()) {
    warning_ = path_ + " was measured on another card, driver or build and is not used. Tune again to replace it.";
    return;
  }
  std::map<Key, Plan> plans;
  std::string lt_version;
  std::getline(file, lt_version);
  bool uses_lt = false;
  int count = -1;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    int v[9];
    bool good = true;
    if (line.compare(0, 4, "end ") == 0) {
      count = std::atoi(line.c_str() + 4);
      continue;
    }
    for (int& value : v) good = good && static_cast<bool>(words >> value);
    good = good && v[6] >= 0 && v[6] <= 5 && v[7] >= 0 && v[7] < 64 && v[8] >= 1 && v[8] <= 8;
    if (!good) {
      count = -1;
      break;
    }
    uses_lt = uses_lt || v[6] == static_cast<int>(Family::kLt);
    plans[Key(v[0], v[1], v[2], v[3], v[4], v[5])] = Plan{static_cast<Family>(v[6]), v[7], v[8]};
  }
  if (count != static_cast<int>(plans.size())) {
    warning_ = path_ + " is damaged and is not used. Tune again to replace it.";
    return;
  }
  // cuBLASLt is opened, which takes a while, only where a choice names it.
  if (uses_lt && lt_version != LtVersion()) {
    warning_ = path_ + " was measured with another cuBLASLt and is not used. Tune again to replace it.";
    return;
  }
  plans_ = plans;
}

void PlanTable::Save() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (path_.empty()) {
    warning_ = "Neither XDG_CACHE_HOME nor HOME names a folder: what was measured is not kept.";
    return;
  }
  MakeFolders(path_.substr(0, path_.rfind('/')));
  const std::string beside = path_ + "." + std::to_string(getpid()) + ".tmp";
  {
    std::ofstream file(beside);
    file << Header() << "\n" << LtVersion() << "\n";
    for (const auto& item : plans_) {
      const Key& k = item.first;
      file << std::get<0>(k) << ' ' << std::get<1>(k) << ' ' << std::get<2>(k) << ' ' << std::get<3>(k) << ' '
           << std::get<4>(k) << ' ' << std::get<5>(k) << ' ' << static_cast<int>(item.second.family) << ' '
           << item.second.variant << ' ' << item.second.split << "\n";
    }
    file << "end " << plans_.size() << "\n";
    file.flush();
    if (!file) {
      warning_ = "Could not write " + beside + ": what was measured is not kept.";
      std::remove(beside.c_str());
      return;
    }
  }
  if (std::rename(beside.c_str(), path_.c_str()) != 0) {
    std::remove(beside.c_str());
    warning_ = "Could not write " + path_ + ": what was measured is not kept.";
  } else {
    warning_.clear();
  }
}

size_t PlanTable::measured() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return plans_.size();
}

std::string PlanTable::warning() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return warning_;
}

}  // namespace cuda
}  // namespace ftbert
