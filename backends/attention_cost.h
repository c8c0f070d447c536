// What a call of attention takes, told before it is made. Torch-free.
#ifndef DENOISED_BACKENDS_ATTENTION_COST_H_
#define DENOISED_BACKENDS_ATTENTION_COST_H_

#include <cstdint>
#include <string>

#include "backends/attention_spec.h"

namespace denoised {

// Beside a call's inputs and its result. By formula; tests hold it against what calls really take.
struct AttentionCost {
  int64_t bytes = 0;         // of host memory on the CPU, at most at one moment
  double multiply_adds = 0;  // of scores, values and the choice of blocks
};

// Of `rows` batch rows where every query meets every key.
double DenseMultiplyAdds(const AttentionSpec& spec, int64_t rows);

// Bytes of one [rows, S_q, H, D] tensor, `element` bytes a number.
int64_t QueryBytes(const AttentionSpec& spec, int64_t rows, int64_t element);

// What the block-sparse CPU kernel packs and converts for a call (kernels/block_sparse.h).
int64_t KernelBytes(const AttentionSpec& spec, int64_t rows);

// How large a mask maker's plan can become: counts of one list, from parameters and spec alone.
struct PlanSize {
  std::string parameter;                     // what a person would change: "tile"
  int64_t query_blocks = 0, key_blocks = 0;  // of the maker's own cut
  int64_t scores = 0;                        // compared with each other to choose blocks
  int64_t score_bytes = 4;                   // of each of them
  int64_t entries = 0;                       // (query block, key block) pairs kept at most
  bool by_head = true;                       // a list for every head, or one for all
  bool all_heads_at_once = false;            // scores of all heads are held, not a thread's
};

// Throws INVALID_ARGUMENT naming attention.parameters.<parameter> where the plan would hold more
// scores or entries a list than a 32nd of the pairs of tokens, and more than a million: far more
// than any cut into blocks needs, and more work than dense attention.
void CheckPlanSize(const PlanSize& size, const AttentionSpec& spec);

// Of making such a plan and running the kernel over it.
AttentionCost CostOfPlan(const PlanSize& size, const AttentionSpec& spec, int64_t rows);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_ATTENTION_COST_H_
