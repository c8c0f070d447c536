// The step of many Wan runs: what each brings to a forward, and what it takes from it.
#ifndef DENOISED_RUNTIME_PIPELINES_WAN_STEP_H_
#define DENOISED_RUNTIME_PIPELINES_WAN_STEP_H_

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <vector>

#include "runtime/attention/attention_planner.h"
#include "runtime/attention/forward_context.h"
#include "runtime/models/wan_transformer.h"
#include "runtime/numerics.h"
#include "runtime/observer.h"

namespace denoised {

// Rows that go through the transformer together, as one pass of a run's step: with a prompt, or
// away from one.
struct StepPass {
  at::Tensor latents;            // [b, C, f, h, w]
  at::Tensor timestep;           // [b], on any device
  const TextContext* text;       // of b rows
  std::vector<ForwardRow> rows;  // b
};

// The side that a Wan run turns to Pipeline::Step, at kStep. Engine thread.
class WanStepRun {
 public:
  virtual ~WanStepRun() = default;

  virtual LinearNumerics linear() const = 0;
  virtual AttentionPlanner* planner() const = 0;
  virtual Observer* observer() const = 0;

  // Has the planner prepare its plan, which is good until the step's end, and says what to run.
  // What it throws concerns this run alone, or is a stop point's.
  virtual const AttentionPlan& Prepare(std::vector<StepPass>* passes) = 0;
  // What the transformer gave, one tensor a pass; `seconds` of the step, this run's part by rows.
  // Throws NON_FINITE, and is then where it was.
  virtual void Take(const std::vector<at::Tensor>& predictions, double seconds) = 0;
};

// Why the latents that a step gave are no result: "<what> <where>", NON_FINITE, or DEGENERATE where
// those of a row are all equal and the planner suspects a lease.
std::optional<Error> WhyUnsound(const at::Tensor& latents, const AttentionPlanner& planner,
                                const std::string& what, const std::string& where);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_WAN_STEP_H_
