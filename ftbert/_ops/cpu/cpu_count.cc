// How many threads pay: physical cores of the affinity mask, within the cgroup's quota.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "cpu/thread_pool.h"

namespace ftbert {
namespace cpu {
namespace {

bool ReadFirstLine(const std::string& path, std::string* line) {
  std::ifstream file(path);
  return file && std::getline(file, *line);
}

// CPUs of quota microseconds per period, or 0 where there is no limit.
double QuotaV2(const std::string& folder) {
  std::string line;
  if (!ReadFirstLine(folder + "/cpu.max", &line)) return 0;
  double quota = 0, period = 0;
  if (std::sscanf(line.c_str(), "%lf %lf", &quota, &period) != 2 || period <= 0) return 0;  // "max 100000"
  return quota / period;
}

double QuotaV1(const std::string& folder) {
  std::string quota, period;
  if (!ReadFirstLine(folder + "/cpu.cfs_quota_us", &quota) || !ReadFirstLine(folder + "/cpu.cfs_period_us", &period))
    return 0;
  const double q = std::atof(quota.c_str()), p = std::atof(period.c_str());
  return q > 0 && p > 0 ? q / p : 0;
}

// The tightest quota from this process's cgroup up to the root, 0: none. A container often sees its own group as the
// root, so the mount point itself is asked too.
double CgroupQuota() {
  double tightest = 0;
  const auto tighten = [&](double quota) {
    if (quota > 0 && (tightest == 0 || quota < tightest)) tightest = quota;
  };
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {  // "0::/path" (v2) or "4:cpu,cpuacct:/path" (v1)
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool v1 = controllers.find(",cpu,") != std::string::npos;
    if (!v1 && controllers != ",,") continue;
    const std::string mount = v1 ? "/sys/fs/cgroup/cpu" : "/sys/fs/cgroup";
    std::string path = line.substr(second + 1);
    while (!path.empty()) {
      tighten(v1 ? QuotaV1(mount + path) : QuotaV2(mount + path));
      path.resize(path.find_last_of('/'));
    }
    tighten(v1 ? QuotaV1(mount) : QuotaV2(mount));
  }
  return tightest;
}

#if defined(__linux__)
// Hyperthreads of one core share its multiply-add units: a second thread there only waits.
int CoresInAffinityMask() {
  for (int size = 1024; size <= (1 << 20); size *= 4) {
    cpu_set_t* mask = CPU_ALLOC(size);
    if (mask == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(size);
    if (sched_getaffinity(0, bytes, mask) != 0) {
      CPU_FREE(mask);
      continue;
    }
    std::set<std::string> cores;
    for (int cpu = 0; cpu < size; ++cpu) {
      if (!CPU_ISSET_S(cpu, bytes, mask)) continue;
      std::string siblings;
      const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      if (!ReadFirstLine(topology + "thread_siblings_list", &siblings)) siblings = "cpu" + std::to_string(cpu);
      cores.insert(siblings);
    }
    CPU_FREE(mask);
    if (!cores.empty()) return static_cast<int>(cores.size());
  }
  return std::max(1u, std::thread::hardware_concurrency());
}
#else
int CoresInAffinityMask() { return std::max(1u, std::thread::hardware_concurrency()); }
#endif

}  // namespace

int AvailableCpus() {
  const int cores = CoresInAffinityMask();
  const double quota = CgroupQuota();
  // Rounded down: threads beyond the quota are stopped together until the period ends, in the middle of a kernel.
  return quota > 0 ? std::clamp(static_cast<int>(quota), 1, cores) : cores;
}

}  // namespace cpu
}  // namespace ftbert
