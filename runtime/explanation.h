// Why a backend serves attention, or does not: the question and its answer. Torch-free plain
// values.
#ifndef DENOISED_RUNTIME_EXPLANATION_H_
#define DENOISED_RUNTIME_EXPLANATION_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backends/selector.h"
#include "runtime/job.h"
#include "runtime/measured_table.h"
#include "runtime/scope.h"
#include "runtime/selection_policy.h"

namespace denoised {

// Where nothing is said: of sizes the model's, of layers all, of the step where the job stands,
// else the first.
struct ExplainQuery {
  std::string model;
  std::optional<int64_t> height, width, num_frames;
  AttentionOptions attention;
  std::optional<AttentionRole> role;
  std::optional<int64_t> layer, step;
  std::optional<double> sigma;
  std::optional<std::string> tenant;
  // Of a job that has not ended, all that the query does not say is the job's.
  std::string job_id;
  std::optional<LeaseRequest> what_if;
};

// What becomes of a wish, the best first.
enum class WishOutcome : uint8_t {
  kGranted,
  kRefused,    // it cannot serve
  kHidden,     // a stronger one came first
  kElsewhere,  // it does not hold here
};
// "granted", "refused", "hidden", "elsewhere".
std::string_view WishOutcomeName(WishOutcome outcome);

// A wish, or a backend that automatic selection tries.
struct ExplainedWish {
  Wish wish;
  std::string scope = {};  // where it holds, as text; "" is everywhere
  WishOutcome outcome = WishOutcome::kElsewhere;
  std::string reason = {};  // a sentence
};
// "force force-3", "request rule 2", "automatic".
std::string SourceText(const Wish& wish);
// A line each: "force force-3 FLASH_ATTN: refused: takes head sizes up to 64, got 128".
std::string ToText(const std::vector<ExplainedWish>& wishes);

// Neighbouring layers that run alike. One of the two is there.
struct ExplainedLayers {
  Interval layers;
  std::optional<Selection> selection;
  std::optional<JobError> error;
};

// What would run for a role, and why each other candidate would not.
struct Explanation {
  AttentionRole role;
  AttentionSpec spec;
  Selection selection;            // of the most layers; meaningful when `error` is empty
  std::optional<JobError> error;  // e.g. strict mode refused: the work would fail
  struct Candidate {
    AttnBackend backend;
    bool listed;  // by the layer
    std::optional<std::string> why_not;
  };
  std::vector<Candidate> candidates;  // automatic order
  std::vector<ExplainedWish> wishes;  // in the order in which they decide, the automatic ones last
  std::vector<ExplainedLayers> layers;
  std::optional<MeasuredChoice> measured;  // of an automatic choice
  std::string what_if;  // what the query's lease changes, a sentence; "" without one
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_EXPLANATION_H_
