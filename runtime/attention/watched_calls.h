// Calls of attention whose output is held against another backend's. Torch-free plain values.
#ifndef DENOISED_RUNTIME_ATTENTION_WATCHED_CALLS_H_
#define DENOISED_RUNTIME_ATTENTION_WATCHED_CALLS_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/attention/forward_context.h"
#include "runtime/budget.h"
#include "runtime/scope.h"

namespace denoised {

// One side of a comparison: a backend with what its builder made. Null: what ran.
struct ComparedBackend {
  const AttentionBackend* backend = nullptr;
  AttnBackend id = AttnBackend::kReference;
  std::shared_ptr<const AttentionMetadata> metadata = nullptr;
};

struct Comparison {
  std::string id;                // of the shadow, or of the lease
  std::optional<Budget> budget;  // of the lease, which then is judged by it
  ComparedBackend candidate, baseline;
  Interval layers;
  double share = 1;  // of the calls
};

// What layers of one segment of a plan are watched for, at one step of one piece of work.
struct WatchedCalls {
  AttentionRole role = AttentionRole::kSelf;
  std::string_view sigma_band;       // SigmaBand
  std::shared_ptr<CallGuard> guard;  // of the model, which calls that are kept may outlive
  std::vector<Comparison> comparisons;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_WATCHED_CALLS_H_
