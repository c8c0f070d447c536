// What a piece of work will take: bytes for admission, seconds for the time that is left.
#ifndef DENOISED_RUNTIME_PIPELINES_ESTIMATE_H_
#define DENOISED_RUNTIME_PIPELINES_ESTIMATE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "backends/attention_cost.h"
#include "runtime/pipelines/unit.h"

namespace denoised {

// Bytes are of host memory, above what the loaded models hold: on a CUDA device that leaves frames
// and files. They come from formulas over the model's configuration; tests hold them against the
// measured peak of real runs.
struct WorkEstimate {
  int64_t peak_bytes = 0;              // at most at one moment
  int64_t held_bytes = 0;              // of those, what stays between two of its units
  int64_t row_bytes = 0;               // that each further row of a shared forward adds
  int64_t decode_bands = 1;            // bands of rows that the video is decoded in; more take less
  bool releases_text_encoder = false;  // after the prompts, so that the rest fits
  std::vector<PlannedUnits> units;     // what it does, in order

  bool operator==(const WorkEstimate&) const = default;
};

// What one attention of the work takes with the backend that would serve it now.
using CostOfAttention = std::function<AttentionCost(const AttentionSpec&, int64_t rows)>;

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_ESTIMATE_H_
