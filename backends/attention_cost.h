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

// How large a choice of blocks can become: counts of one head, from parameters and spec alone.
struct PlanSize {
  std::string parameter;                     // what a person would change: "tile"
  int64_t query_blocks = 0, key_blocks = 0;  // of the chooser's own cut
  int64_t scores = 0;                        // compared with each other to choose blocks
  int64_t entries = 0;                       // (query block, key block) pairs chosen at most
  int64_t means = 0;                         // of blocks, [head size] float32 each, held for a call
  int64_t band_bytes = 0;                    // what a thread holds to choose for a band
  int64_t kept_bytes = 0;                    // what is made once, of all heads
  std::string kept_parameter = {};           // what a person would change about that
};

// Bytes of host memory that such a choice takes on the CPU at most at one moment.
int64_t PlanBytes(const PlanSize& size, const AttentionSpec& spec, int64_t rows);

// Of one head's list as a plan (kernels::BlockPlan): what CUDA is given.
int64_t ListBytes(const PlanSize& size, const AttentionSpec& spec);

// Throws INVALID_ARGUMENT naming attention.parameters.<parameter> where the choice would hold more
// scores or entries a head than a 32nd of the pairs of tokens, and more than a million: far more
// than any cut into blocks needs, and more work than dense attention. Also where it would keep more
// than the call's own tensors take, and more than 64 MiB.
void CheckPlanSize(const PlanSize& size, const AttentionSpec& spec);

// Of choosing and of attention over the most that can be chosen.
double MultiplyAddsOf(const PlanSize& size, const AttentionSpec& spec, int64_t rows);

}  // namespace denoised

#endif  // DENOISED_BACKENDS_ATTENTION_COST_H_
