// What a forward needs to know about the step that it is part of.
//
// Re-creates FastVideo's fastvideo/forward_context.py. One stack per thread instead of a module
// global; restored on every exit path; each frame has its own start time; leaving never throws.
#ifndef DENOISED_RUNTIME_ATTENTION_FORWARD_CONTEXT_H_
#define DENOISED_RUNTIME_ATTENTION_FORWARD_CONTEXT_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backends/attention_spec.h"
#include "runtime/job.h"

namespace denoised {

class AttentionBackend;
class AttentionMetadata;

// Calls of attention and their time. Seconds are those of the CPU's kernels: a CUDA call returns
// before it has run, and its time is not known.
struct AttentionCount {
  uint64_t calls = 0;
  double seconds = 0;
};

// Of one role, by the backend whose kernel ran (AttentionBackend::Runs); filled by the layers, read
// by the planner.
struct AttentionTally {
  std::array<AttentionCount, kNumAttnBackends> counts;
  AttentionCount& Of(AttnBackend backend) { return counts[static_cast<size_t>(backend)]; }
};

// The backend that was chosen for a role at this step, and what its builder made.
struct AttentionSlot {
  const AttentionBackend* backend = nullptr;
  AttnBackend id = AttnBackend::kReference;
  std::shared_ptr<const AttentionMetadata> metadata;
  AttentionTally* tally = nullptr;  // may be null
};
// The backend that most of the slot's calls since the last booking ran; the slot's own before any.
AttnBackend MostCalled(const AttentionSlot& slot);
using AttentionPlan = std::array<AttentionSlot, kNumAttentionRoles>;

// The rows that share a forward.
struct ForwardBatch {
  std::vector<std::string> request_ids;  // one per row
  std::vector<double> timesteps;         // one per row
  bool is_cfg_negative = false;
};

struct ForwardContext {
  int64_t current_timestep = 0;  // step index, 0-based, as FastVideo's loops pass it
  double timestep = 0;           // the model's time input, 0..1000
  double sigma = 0;
  Branch branch = Branch::kNone;
  int expert = 0;  // 0 = transformer, 1 = transformer_2
  const AttentionPlan* attn_metadata = nullptr;
  const ForwardBatch* forward_batch = nullptr;
};

// True inside a ScopedForwardContext of this thread.
bool HasForwardContext();

// The innermost context of this thread. Throws FAILED_PRECONDITION outside of one.
const ForwardContext& GetForwardContext();

// set_forward_context as RAII. `done` (may be empty) gets the seconds that the scope took, after
// `synchronize` (may be empty) has waited for the device; whatever they throw is swallowed, and
// neither runs while an exception unwinds the scope.
class ScopedForwardContext {
 public:
  using Done = std::function<void(const ForwardContext&, double seconds)>;
  explicit ScopedForwardContext(ForwardContext context, Done done = {},
                                std::function<void()> synchronize = {});
  ~ScopedForwardContext();
  ScopedForwardContext(const ScopedForwardContext&) = delete;
  ScopedForwardContext& operator=(const ScopedForwardContext&) = delete;

 private:
  friend bool HasForwardContext();
  friend const ForwardContext& GetForwardContext();

  const ForwardContext context_;
  const Done done_;
  const std::function<void()> synchronize_;
  const ScopedForwardContext* const previous_;
  const int exceptions_at_entry_;
  const std::chrono::steady_clock::time_point start_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_FORWARD_CONTEXT_H_
