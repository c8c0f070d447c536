// One step for a client's latents inside WanPipeline.
#ifndef DENOISED_RUNTIME_PIPELINES_WAN_DENOISE_RUN_H_
#define DENOISED_RUNTIME_PIPELINES_WAN_DENOISE_RUN_H_

#include <ATen/ATen.h>

#include <utility>
#include <vector>

#include "runtime/pipelines/pipeline.h"
#include "runtime/pipelines/wan_pipeline.h"
#include "runtime/pipelines/wan_step.h"

namespace denoised {

// Engine thread.
class WanDenoiseRun : public DenoiseRun, public WanStepRun {
 public:
  WanDenoiseRun(const WanPipeline& pipeline, const DenoiseRequest& request, const Unit& step,
                AttentionPlanner* planner, Observer* observer);

  Unit Next() const override { return done_ ? Unit{} : step_; }
  void Advance() override;
  DenoiseResult TakeResult() override { return std::move(result_); }

  LinearNumerics linear() const override { return linear_; }
  AttentionPlanner* planner() const override { return planner_; }
  Observer* observer() const override { return observer_; }
  const AttentionPlan& Prepare(std::vector<StepPass>* passes) override;
  void Take(const std::vector<at::Tensor>& predictions, double seconds) override;

 private:
  void EncodeTexts();
  std::vector<ForwardRow> RowsOf(Branch branch) const;

  const WanPipeline& pipeline_;
  const DenoiseRequest& request_;
  AttentionPlanner* const planner_;
  Observer* const observer_;
  const LinearNumerics linear_;
  const at::Tensor latents_, timestep_;
  const bool guided_;
  const Unit step_;
  std::vector<TextContext> contexts_;  // of the embeddings, then of the negative ones
  bool done_ = false;
  DenoiseResult result_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_PIPELINES_WAN_DENOISE_RUN_H_
