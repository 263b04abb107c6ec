// The embedding tables as the CPU keeps them, and their conversion at load.
#ifndef FTBERT_CPU_EMBEDDING_TABLES_H_
#define FTBERT_CPU_EMBEDDING_TABLES_H_

#include "core/backend.h"
#include "cpu/memory.h"

namespace ftbert {
namespace cpu {

struct CpuTables final : EmbeddingTables {
  Buffer words, positions, segments;  // (V, H), (P, H), (type_vocab, H), rows Stride(H) elements apart, zero-padded
  DataType type = DataType::kFloat32;  // of all three

  // Whole vectors of every instruction set.
  static ptrdiff_t Stride(int32_t hidden) { return (static_cast<ptrdiff_t>(hidden) + 15) / 16 * 16; }
  // Converts to `type`, on the threads that LoadThreads gave.
  Status Pack(const SourceTable& from_words, const SourceTable& from_positions, const SourceTable& from_segments,
              int32_t hidden);
  size_t bytes() const override { return words.size() + positions.size() + segments.size(); }
};

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_EMBEDDING_TABLES_H_
