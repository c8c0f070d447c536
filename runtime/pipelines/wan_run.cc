#include "runtime/pipelines/wan_run.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>

#include "runtime/models/vae_decoding.h"
#include "runtime/pipelines/tensor_convert.h"

namespace denoised {
namespace {

// [1, 3, n, rows, W] in [-1, 1] to [n, rows, W, 3] float32 in [0, 1], on the CPU.
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

// Where a part of the video goes: [n, rows, W, 3] of a whole [frames, H, W, 3].
template <typename T>
void CopyPart(const at::Tensor& part, const WanVaeDecoder::Part& place, int64_t height,
              std::vector<T>* whole) {
  const int64_t row = part.size(2) * part.size(3), block = part.size(1) * row;
  const T* from = part.const_data_ptr<T>();
  for (int64_t n = 0; n < part.size(0); ++n, from += block) {
    T* to = whole->data() + ((place.first_frame + n) * height + place.first_row) * row;
    std::copy(from, from + block, to);
  }
}

void Store(const WanVaeDecoder::Part& part, bool keep_float, DecodedVideo* video) {
  const at::Tensor unit = ToUnitRange(part.frames);
  // Half to even, as numpy's round does in diffusers' image path.
  const int64_t height = video->frames.height;
  CopyPart(unit.mul(255).round_().to(at::kByte), part, height, &video->frames.rgb);
  if (keep_float) CopyPart(unit, part, height, &video->values);
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
  video.frames.rgb.resize(numbers);
  if (keep_float) video.values.resize(numbers);
  {
    ForwardContext context;
    context.attn_metadata = &plan;
    const ScopedForwardContext scope(context);
    const auto decoding =
        pipeline_.vae().Begin(pipeline_.vae().Denormalize(latents_), request_.decode_bands);
    while (!decoding->done()) {
      decoding->Next([&](const WanVaeDecoder::Part& part) { Store(part, keep_float, &video); });
    }
  }
  request_.planner->BookForward();
  return video;
}

HostTensor WanRun::Latents() const { return FromTensor(latents_); }

}  // namespace denoised
