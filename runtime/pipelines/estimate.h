// What a piece of work will take: bytes for admission, seconds for the time that is left.
#ifndef DENOISED_RUNTIME_PIPELINES_ESTIMATE_H_
#define DENOISED_RUNTIME_PIPELINES_ESTIMATE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>

#include "backends/attention_cost.h"

namespace denoised {

// Bytes are of host memory, above what the loaded models hold: on a CUDA device that leaves frames
// and files. They come from formulas over the model's configuration; tests hold them against the
// measured peak of real runs.
struct WorkEstimate {
  int64_t peak_bytes = 0;              // at most at one moment
  int64_t held_bytes = 0;              // of those, what stays between two of its units
  double step_multiply_adds = 0;       // of one denoising step
  int64_t decode_bands = 1;            // bands of rows that the video is decoded in; more take less
  bool releases_text_encoder = false;  // after the prompts, so that the rest fits
};

// What one attention of the work takes with the backend that would serve it now.
using CostOfAttention = std::function<AttentionCost(const AttentionSpec&, int64_t rows)>;

// A first, rough model of time: multiplications over what the last steps made of them a second.
// It knows nothing before a first step was measured, and nothing of how shapes differ; a model that
// learns by shape takes its place. Any thread.
class RoughSpeed {
 public:
  void Observe(double multiply_adds, double seconds) {
    if (multiply_adds > 0 && seconds > 0) per_second_ = multiply_adds / seconds;
  }
  std::optional<double> Seconds(double multiply_adds) const {
    const double speed = per_second_;
    return speed > 0 ? std::optional(multiply_adds / speed) : std::nullopt;
  }

 private:
  std::atomic<double> per_second_{0};
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_ESTIMATE_H_
