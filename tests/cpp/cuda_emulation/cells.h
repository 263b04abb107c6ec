// What is known of a byte's past, and whether one more access is ordered with it. Included by memory.cc alone.
#ifndef FTBERT_TESTS_CUDA_EMULATION_CELLS_H_
#define FTBERT_TESTS_CUDA_EMULATION_CELLS_H_

#include <algorithm>
#include <cstring>
#include <string>

#include "machine.h"

namespace emulation {
namespace {

struct Cell {  // of a byte, of shared memory two; a write's clock of 0: never written
  Clock write, read[2];
  uint16_t writer, reader[2], unused;
};
constexpr uint32_t kLine = 16;  // bytes of shared memory whose cells may be one: the first stands for all

// Whether an access of who, who knows that much, to one byte is ordered; says what is wrong in `problem`.
inline void Touch(Cell* cell, bool write, bool is_shared, uint32_t who, Clock clock, const Known& known,
                  const char** problem) {
  const auto unordered = [&](Clock at, uint32_t other) {
    if (at < launched.begin) return false;               // a launch before
    if (at < launched.cluster_begin) return !is_shared;  // another cluster, which had shared memory of its own
    return other != who && (!known || (*known)[other] < at);
  };
  if (is_shared && !write && cell->write < launched.cluster_begin) *problem = "read before anyone has written it";
  if (unordered(cell->write, cell->writer)) {
    *problem = write ? "written, unordered with another's write" : "read, unordered with another's write";
  }
  if (write) {
    for (int i = 0; i < 2; ++i) {
      if (unordered(cell->read[i], cell->reader[i])) *problem = "written, unordered with another's read";
    }
    cell->write = clock, cell->writer = static_cast<uint16_t>(who);
    cell->read[0] = cell->read[1] = 0;
  } else {  // keeps the first reader since the latest order and the latest one
    const int slot = cell->read[0] == 0 || cell->reader[0] == who || !unordered(cell->read[0], cell->reader[0]) ? 0 : 1;
    cell->read[slot] = clock, cell->reader[slot] = static_cast<uint16_t>(who);
  }
}

void Complain(const char* place, uint64_t at, const char* problem, uint32_t who, const Cell& before) {
  const uint32_t all = launched.threads * launched.cluster;
  const auto name = [&](uint32_t one) {
    const uint32_t thread = one % launched.threads, cta = one / launched.threads;
    if (one < all) return "thread " + std::to_string(thread) + " of CTA " + std::to_string(cta);
    const uint32_t stores = launched.previous - launched.cluster * ((launched.threads + 31) / 32);
    return std::string(one >= stores                                    ? "a store of the copy engine"
                       : one < all + launched.cluster * kMostBarriers ? "the copy engine"
                                                                      : "a warpgroup's product");
  };
  Fault("%s memory, access at %llu: %s; by %s; last written by %s, read by %s", place,
        static_cast<unsigned long long>(at), problem, name(who).c_str(),
        name(before.writer).c_str(), name(before.reader[0]).c_str());
}

// Neighbouring bytes mostly have the same past: it is looked at once. False: something was wrong, and is said.
bool AccessCells(Cell* cells, int64_t bytes, bool write, bool is_shared, uint32_t who, Clock clock,
                 const Known& known, const char* place, uint64_t at) {
  for (int64_t i = 0; i < bytes;) {
    const char* problem = nullptr;
    const Cell before = cells[i];
    Cell after = before;
    Touch(&after, write, is_shared, who, clock, known, &problem);
    if (problem != nullptr) Complain(place, at, problem, who, before);
    for (; i < bytes && std::memcmp(&cells[i], &before, sizeof before) == 0; ++i) cells[i] = after;
    if (problem != nullptr) return false;
  }
  return true;
}

// The same of shared memory, where most accesses are to 16 bytes that have one past.
void AccessLines(Cell* all, uint8_t* differ, uint32_t at, uint32_t bytes, bool write, uint32_t who, Clock clock,
                 const Known& known, uint32_t address) {
  for (uint32_t end = at + bytes; at < end;) {
    const uint32_t line = at / kLine, next = std::min(end, (line + 1) * kLine);
    Cell* const cells = all + line * kLine / 2;
    const bool whole = next - at == kLine;
    if (!whole && !differ[line]) {
      std::fill(cells + 1, cells + kLine / 2, cells[0]);
      differ[line] = 1;
    }
    const uint32_t count = differ[line] ? (next - at) / 2 : 1;
    if (!AccessCells(all + at / 2, count, write, true, who, clock, known, "shared", address)) return;
    if (whole && write) differ[line] = 0;
    at = next;
  }
}

}  // namespace
}  // namespace emulation

#endif  // FTBERT_TESTS_CUDA_EMULATION_CELLS_H_
