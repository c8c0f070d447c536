#include "backends/attention_cost.h"

#include <algorithm>

#include "backends/error.h"
#include "backends/kernels/block_sparse.h"
#include "backends/kernels/workers.h"

namespace denoised {
namespace {

double Double(int64_t x) { return static_cast<double>(x); }

// Spans of the kernel in one block of the maker's, on average.
double SpansOf(int64_t tokens, int64_t blocks) {
  return 1.0 + Double(tokens) / Double(std::max<int64_t>(1, blocks)) / kernels::kBlock;
}

}  // namespace

double DenseMultiplyAdds(const AttentionSpec& spec, int64_t rows) {
  return 2.0 * Double(rows * spec.num_heads * spec.head_size) * Double(spec.q_len) *
         Double(spec.kv_len);
}

int64_t QueryBytes(const AttentionSpec& spec, int64_t rows, int64_t element) {
  return rows * spec.q_len * spec.num_heads * spec.head_size * element;
}

int64_t KernelBytes(const AttentionSpec& spec, int64_t rows) {
  // Keys and values of some heads, four bytes a number at most, rows padded to 64.
  const int64_t padded = (spec.head_size + 63) / 64 * 64;
  const int64_t head = 2 * (spec.kv_len + kernels::kBlock) * padded * 4;
  const int64_t packed =
      std::min(rows * spec.num_heads * head, std::max(head, kernels::kMaxPackedUnits * 4));
  const bool widens = spec.dtype == DType::kFloat16;  // q, k, v and the result in float32
  const int64_t keys = rows * spec.kv_len * spec.num_heads * spec.head_size * 4;
  const int64_t wide = widens ? 2 * (QueryBytes(spec, rows, 4) + keys) : 0;
  const int64_t mask = spec.has_mask ? rows * spec.num_heads * spec.q_len * spec.kv_len * 4 : 0;
  return packed + wide + mask +
         kernels::HardwareThreads() * ((int64_t{192} << 10) + padded * kernels::kBlock * 8);
}

int64_t PlanBytes(const PlanSize& size, const AttentionSpec& spec, int64_t rows) {
  const int64_t means = rows * spec.num_heads * size.means * spec.head_size * 4;
  const int64_t orders = (spec.q_len + spec.kv_len) * 16;
  return means + kernels::HardwareThreads() * size.band_bytes + size.kept_bytes + orders;
}

int64_t ListBytes(const PlanSize& size, const AttentionSpec& spec) {
  // A column and a mask for each span of the kernel's; vectors that are filled one by one grow.
  constexpr double kGrowth = 2, kEntryBytes = 12;
  const double spans = SpansOf(spec.q_len, size.query_blocks);
  const double entries = Double(size.entries) * spans * SpansOf(spec.kv_len, size.key_blocks);
  return static_cast<int64_t>(kGrowth *
                              (entries * kEntryBytes + Double(size.query_blocks) * spans * 16));
}

void CheckPlanSize(const PlanSize& size, const AttentionSpec& spec) {
  constexpr int64_t kAlways = int64_t{1} << 20, kAlwaysBytes = int64_t{64} << 20;
  constexpr int64_t kShare = 32;
  const int64_t most = std::max(kAlways, spec.q_len * spec.kv_len / kShare);
  const int64_t larger = std::max(size.scores, size.entries);
  if (larger > most) {
    throw InvalidField("attention.parameters." + size.parameter,
                       "cuts " + std::to_string(spec.q_len) + " tokens into " +
                           std::to_string(size.query_blocks) + " by " +
                           std::to_string(size.key_blocks) + " blocks; a head would choose among " +
                           std::to_string(larger) + " pairs of them, at most " +
                           std::to_string(most) + " are taken: ask for larger blocks");
  }
  const int64_t most_bytes = std::max(kAlwaysBytes, 4 * QueryBytes(spec, 1, 4));
  if (size.kept_bytes > most_bytes) {
    throw InvalidField("attention.parameters." + size.kept_parameter,
                       "on " + std::to_string(spec.q_len) + " tokens would keep lists of " +
                           std::to_string(size.kept_bytes >> 20) + " MiB, at most " +
                           std::to_string(most_bytes >> 20) + " MiB are taken");
  }
}

double MultiplyAddsOf(const PlanSize& size, const AttentionSpec& spec, int64_t rows) {
  const double kept = Double(size.entries) / Double(std::max<int64_t>(1, size.query_blocks)) /
                      Double(std::max<int64_t>(1, size.key_blocks));
  return DenseMultiplyAdds(spec, rows) * std::min(1.0, kept) +
         Double(rows * spec.num_heads) * Double(size.scores) * Double(spec.head_size);
}

}  // namespace denoised
