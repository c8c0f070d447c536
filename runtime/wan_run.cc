#include "runtime/wan_run.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cstring>

#include "runtime/tensor_convert.h"

namespace denoised {
namespace {

// [1, 3, n, H, W] in [-1, 1] to [n, H, W, 3] float32 in [0, 1], on the CPU.
at::Tensor ToUnitRange(const at::Tensor& frames) {
  return frames.to(at::kFloat)
      .mul(0.5)
      .add_(0.5)
      .clamp_(0, 1)
      .squeeze(0)
      .permute({1, 2, 3, 0})
      .contiguous()
      .to(at::kCPU);
}

void Append(const at::Tensor& unit, bool keep_float, DecodedVideo* video) {
  // Half to even, as numpy's round does in diffusers' image path.
  const at::Tensor bytes = unit.mul(255).round_().to(at::kByte);
  const uint8_t* data = bytes.const_data_ptr<uint8_t>();
  std::vector<uint8_t>& rgb = video->frames.rgb;
  rgb.insert(rgb.end(), data, data + bytes.numel());
  if (!keep_float) return;
  const float* values = unit.const_data_ptr<float>();
  video->values.insert(video->values.end(), values, values + unit.numel());
}

}  // namespace

WanRun::WanRun(const WanPipeline& pipeline, RunRequest request)
    : pipeline_(pipeline), request_(std::move(request)), scheduler_(pipeline.scheduler().Clone()) {}

void WanRun::Begin() {
  const c10::InferenceMode inference;
  const ResolvedParameters& p = request_.parameters;
  const ScopedLinearNumerics numerics(p.linear);
  const auto encode = [&](const std::string& field, const std::string& prompt) {
    return pipeline_.EncodePrompt(field, prompt, p.max_sequence_length, request_.planner);
  };
  conditional_ = encode("prompt", request_.prompt);
  if (p.guidance_scale > 1) unconditional_ = encode("negative_prompt", p.negative_prompt);
  scheduler_->SetTimesteps(p.num_inference_steps, p.flow_shift);
  latents_ = InitialLatents().to(pipeline_.device());
}

// The numbers of torch.randn with a CPU generator of the same seed, on every device.
at::Tensor WanRun::InitialLatents() const {
  if (request_.latents) return ToTensor(*request_.latents, "latents").to(at::kFloat);
  const at::Generator generator =
      at::detail::createCPUGenerator(static_cast<uint64_t>(request_.parameters.seed));
  return at::randn(pipeline_.LatentShape(request_.parameters), generator,
                   at::TensorOptions(at::kFloat));
}

at::Tensor WanRun::Predict(int64_t i) {
  const ResolvedParameters& p = request_.parameters;
  const AttentionPlan& plan = request_.planner->Prepare(
      pipeline_.SpecsFor(latents_.sizes(), p.max_sequence_length), i, p.num_inference_steps);
  const at::Tensor timestep = scheduler_->TimestepTensor(i, 1, pipeline_.device());
  const auto forward = [&](const TextContext& text, Branch branch) {
    return pipeline_.Forward({latents_,
                              timestep,
                              &text,
                              branch,
                              i,
                              scheduler_->timesteps()[static_cast<size_t>(i)],
                              scheduler_->sigmas()[static_cast<size_t>(i)],
                              {request_.job_id}},
                             plan, request_.planner, request_.observer);
  };
  if (!unconditional_) return forward(conditional_, Branch::kNone);
  const at::Tensor wanted = forward(conditional_, Branch::kConditional);
  const at::Tensor unwanted = forward(*unconditional_, Branch::kUnconditional);
  return unwanted + p.guidance_scale * (wanted - unwanted);
}

void WanRun::Step(int64_t i) {
  const c10::InferenceMode inference;
  const ScopedLinearNumerics numerics(request_.parameters.linear);
  latents_ = scheduler_->Step(Predict(i), i, latents_);
  if (at::isfinite(latents_).all().item<bool>()) return;
  throw Error(StatusCode::kInternal,
              "the latents are no longer finite after step " + std::to_string(i + 1) + " of " +
                  std::to_string(request_.parameters.num_inference_steps),
              "", "NON_FINITE");
}

DecodedVideo WanRun::Finish(bool keep_float) {
  const c10::InferenceMode inference;
  const ResolvedParameters& p = request_.parameters;
  const ScopedLinearNumerics numerics(p.linear);
  const AttentionPlan& plan =
      request_.planner->Prepare({pipeline_.vae().Spec(latents_.size(3), latents_.size(4))}, 0, 1);
  DecodedVideo video;
  video.frames = {p.num_frames, p.height, p.width, static_cast<int>(p.fps), {}};
  const auto numbers = static_cast<size_t>(p.num_frames * p.height * p.width * 3);
  video.frames.rgb.reserve(numbers);
  if (keep_float) video.values.reserve(numbers);
  {
    ForwardContext context;
    context.attn_metadata = &plan;
    const ScopedForwardContext scope(context);
    pipeline_.vae().Decode(pipeline_.vae().Denormalize(latents_),
                           [&](const at::Tensor& frames, int64_t) {
                             Append(ToUnitRange(frames), keep_float, &video);
                           });
  }
  request_.planner->BookForward();
  return video;
}

HostTensor WanRun::Latents() const { return FromTensor(latents_); }

}  // namespace denoised
