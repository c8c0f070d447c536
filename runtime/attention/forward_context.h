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
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/attention_spec.h"
#include "runtime/job.h"

namespace denoised {

class AttentionBackend;
class AttentionMetadata;
class CallGuard;
struct WatchedCalls;

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
  // A piece of work's part of calls that it shared: each counts as one for each of its `passes`,
  // of the seconds it has `share`.
  void AddShare(const AttentionTally& shared, uint64_t passes, double share);
};

// Batch rows of a call that are watched (watched_calls.h).
struct WatchedRows {
  std::shared_ptr<const WatchedCalls> calls;
  int64_t first = 0, count = -1;  // below 0: all rows
};

// The backend that was chosen for neighbouring layers of a role at this step, and what its builder
// made.
struct AttentionSlot {
  const AttentionBackend* backend = nullptr;
  AttnBackend id = AttnBackend::kReference;
  std::shared_ptr<const AttentionMetadata> metadata;
  AttentionTally* tally = nullptr;                           // may be null
  int64_t last_layer = std::numeric_limits<int64_t>::max();  // from where the slot before it ends
  CallGuard* guard = nullptr;                                // may be null
  std::vector<WatchedRows> watched = {};                     // of its calls
};

// What a role has at this step: slots in the order of their layers, the last of which serves all
// that follow. Empty where the role is not planned.
struct RolePlan {
  RolePlan() = default;
  RolePlan(AttentionSlot slot) : slots{std::move(slot)} {}  // NOLINT: one for all layers

  // Null where the role is not planned.
  const AttentionSlot* Of(int64_t layer) const;
  // Whether the other one runs the same, layer by layer.
  bool Equals(const RolePlan& other) const;
  // The backend that most calls since the last booking ran; before any, the first slot's own.
  AttnBackend MostCalled() const;

  std::vector<AttentionSlot> slots;
};
using AttentionPlan = std::array<RolePlan, kNumAttentionRoles>;

// A row of a forward: where its piece of work stands.
struct ForwardRow {
  std::string request_id;  // "" of a Denoise call
  Branch branch = Branch::kNone;
  int64_t step = 0;     // 0-based
  double timestep = 0;  // the model's time input, 0..1000
  double sigma = 0;
};

// The rows that share a forward.
struct ForwardBatch {
  std::vector<ForwardRow> rows;
  bool is_cfg_negative = false;  // all of them
};

// Of one forward, or of one attention call in it. What is said once is so of every row; where rows
// differ it is kMixedStep, NaN or Branch::kMixed, and forward_batch has the truth.
struct ForwardContext {
  static constexpr int64_t kMixedStep = -1;

  int64_t current_timestep = 0;  // step index, 0-based, as FastVideo's loops pass it
  double timestep = 0;           // the model's time input, 0..1000
  double sigma = 0;
  Branch branch = Branch::kNone;
  int expert = 0;  // 0 = transformer, 1 = transformer_2
  const AttentionPlan* attn_metadata = nullptr;
  const ForwardBatch* forward_batch = nullptr;
};

// The context of a forward of these rows, which outlive it.
ForwardContext ContextOf(const ForwardBatch& batch);

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
