#include "runtime/pipelines/wan_denoise_run.h"

#include <c10/core/InferenceMode.h>

#include "runtime/pipelines/tensor_convert.h"

namespace denoised {

WanDenoiseRun::WanDenoiseRun(const WanPipeline& pipeline, const DenoiseRequest& request,
                             const Unit& step, AttentionPlanner* planner, Observer* observer)
    : pipeline_(pipeline),
      request_(request),
      planner_(planner),
      observer_(observer),
      linear_(LinearOf(request, pipeline)),
      latents_(ToTensor(request.latents, "latents").to(pipeline.device())),
      timestep_(ToTensor(request.timestep, "timestep")),
      guided_(request.guidance_scale > 1),
      step_(step) {}

void WanDenoiseRun::Advance() {
  throw Error(StatusCode::kFailedPrecondition, "the run's next unit is not one to advance");
}

const AttentionPlan& WanDenoiseRun::Prepare(std::vector<StepPass>* passes) {
  const int64_t text_length = request_.encoder_hidden_states.shape[1];
  const AttentionPlan& plan =
      planner_->Prepare(pipeline_.SpecsFor(latents_.sizes(), text_length), 0, 1);
  EncodeTexts();
  const auto add = [&](const TextContext& text, Branch branch) {
    passes->push_back({latents_, timestep_, &text, RowsOf(branch)});
  };
  add(contexts_[0], guided_ ? Branch::kConditional : Branch::kNone);
  if (guided_) add(contexts_[1], Branch::kUnconditional);
  return plan;
}

void WanDenoiseRun::EncodeTexts() {
  if (!contexts_.empty()) return;
  const ScopedLinearNumerics numerics(linear_);
  std::vector<TextContext> contexts;
  const auto encode = [&](const HostTensor& embeds, const std::string& field) {
    contexts.push_back(
        pipeline_.transformer().EncodeText(ToTensor(embeds, field).to(pipeline_.device())));
  };
  encode(request_.encoder_hidden_states, "encoder_hidden_states");
  if (guided_) encode(*request_.negative_encoder_hidden_states, "negative_encoder_hidden_states");
  contexts_ = std::move(contexts);
}

std::vector<ForwardRow> WanDenoiseRun::RowsOf(Branch branch) const {
  const at::Tensor times = timestep_.to(at::kDouble);
  std::vector<ForwardRow> rows;
  for (int64_t row = 0; row < times.size(0); ++row) {
    rows.push_back({"", branch, 0, times.const_data_ptr<double>()[row], request_.sigma});
  }
  return rows;
}

void WanDenoiseRun::Take(const std::vector<at::Tensor>& predictions, double seconds) {
  at::Tensor result = predictions[0];
  if (guided_) {
    result = predictions[1] + request_.guidance_scale * (predictions[0] - predictions[1]);
  }
  if (request_.output == DenoiseRequest::Output::kNextLatents) {
    result =
        latents_.to(at::kFloat) + (request_.sigma_next - request_.sigma) * result.to(at::kFloat);
  }
  if (const auto unsound = WhyUnsound(result, *planner_, "the step's result is", ""))
    throw *unsound;
  result_.tensor = FromTensor(result);
  result_.forward_seconds = seconds;
  done_ = true;
}

}  // namespace denoised
