#include "backends/attention_cost.h"

#include <algorithm>
#include <thread>

#include "backends/error.h"
#include "backends/kernels/block_sparse.h"

namespace denoised {
namespace {

int64_t Threads() { return std::max<int64_t>(1, std::thread::hardware_concurrency()); }

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
  return packed + wide + mask + Threads() * (int64_t{256} << 10);
}

void CheckPlanSize(const PlanSize& size, const AttentionSpec& spec) {
  constexpr int64_t kAlways = int64_t{1} << 20;
  constexpr int64_t kShare = 32;
  const int64_t most = std::max(kAlways, spec.q_len * spec.kv_len / kShare);
  const int64_t larger = std::max(size.scores, size.entries);
  if (larger <= most) return;
  throw InvalidField("attention.parameters." + size.parameter,
                     "cuts " + std::to_string(spec.q_len) + " tokens into " +
                         std::to_string(size.query_blocks) + " by " +
                         std::to_string(size.key_blocks) + " blocks; a head would choose among " +
                         std::to_string(larger) + " pairs of them, at most " +
                         std::to_string(most) + " are taken: ask for larger blocks");
}

AttentionCost CostOfPlan(const PlanSize& size, const AttentionSpec& spec, int64_t rows) {
  constexpr double kGrowth = 2;  // of vectors that are filled one by one
  const int64_t all_lists = size.by_head ? rows * spec.num_heads : 1;
  const double query_spans = SpansOf(spec.q_len, size.query_blocks);
  const double columns = Double(size.entries) * query_spans * SpansOf(spec.kv_len, size.key_blocks);
  const double list = Double(size.entries) * 4 + columns * 4 * kGrowth +
                      Double(size.query_blocks) * (40 + 8 * kGrowth * query_spans);
  const int64_t scored = size.all_heads_at_once ? spec.num_heads : std::min(all_lists, Threads());
  const double means = 2.0 * Double(rows * spec.num_heads * (size.query_blocks + size.key_blocks)) *
                       Double(spec.head_size) * 4;
  AttentionCost cost;
  cost.bytes = KernelBytes(spec, rows) +
               static_cast<int64_t>(Double(all_lists) * list + means +
                                    Double(scored) * Double(size.scores * size.score_bytes)) +
               (spec.q_len + spec.kv_len) * 16;
  const double kept = Double(size.entries) / Double(std::max<int64_t>(1, size.query_blocks)) /
                      Double(std::max<int64_t>(1, size.key_blocks));
  cost.multiply_adds = DenseMultiplyAdds(spec, rows) * std::min(1.0, kept) +
                       Double(rows * spec.num_heads) * Double(size.scores) * Double(spec.head_size);
  return cost;
}

}  // namespace denoised
