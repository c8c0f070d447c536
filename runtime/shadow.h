// Comparisons of backends beside the work, as operators ask for them and see them. Torch-free plain
// values.
#ifndef DENOISED_RUNTIME_SHADOW_H_
#define DENOISED_RUNTIME_SHADOW_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/attention_spec.h"
#include "runtime/scope.h"

namespace denoised {

// A share of the attention calls in scope is also given to `candidate`, whose output is held
// against that of `baseline`. No result depends on it.
struct ShadowRequest {
  AttnBackend candidate = AttnBackend::kReference;
  std::string parameters = {};                         // the candidate's; "" = its defaults
  std::optional<AttnBackend> baseline = std::nullopt;  // unset: what ran
  LeaseScope scope = {};                               // its share is of work, as a lease's
  double share = 1;                                    // of the calls in scope, above 0, at most 1
  std::optional<std::chrono::milliseconds> ttl = std::nullopt;  // unset: until it is stopped
  std::string reason = {};
};

// What was found for one pair, role and range of noise levels, over the last samples.
struct ShadowStatistics {
  AttnBackend baseline = AttnBackend::kReference;  // what ran, or the one that was asked for
  AttentionRole role = AttentionRole::kSelf;
  std::string sigma_band;  // SigmaBand
  int64_t samples = 0;     // ever
  double relative_l2_p50 = 0, relative_l2_p99 = 0, relative_l2_max = 0;
  double max_abs = 0, cosine_distance = 0;  // the largest
};

// What comparisons of all shadows and of leases' budgets have cost since the server's start.
struct ShadowCost {
  double added_seconds = 0;   // that they held work up by
  double device_seconds = 0;  // that work took, without them
  double budget = 0;          // the most that the first may be of the second
};

struct ShadowInfo {
  std::string id;
  ShadowRequest request;
  std::optional<std::chrono::milliseconds> remaining;  // unset: no end; 0: it has ended
  std::string end;                                     // why it has, in some words; "" where not
  std::vector<ShadowStatistics> statistics;
  ShadowCost cost;
};

// A label: "0.2-0.4", of fifths; "above 1"; "none" outside of the denoising loop.
std::string_view SigmaBand(std::optional<double> sigma);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_SHADOW_H_
