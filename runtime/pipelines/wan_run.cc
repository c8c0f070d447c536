#include "runtime/pipelines/wan_run.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <utility>

#include "runtime/loaders/sha256.h"
#include "runtime/models/vae_decoding.h"
#include "runtime/pipelines/run_state.h"
#include "runtime/pipelines/tensor_convert.h"
#include "runtime/pipelines/wan_units.h"

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

std::map<std::string, HostTensor> ToHost(const std::map<std::string, at::Tensor>& tensors) {
  std::map<std::string, HostTensor> host;
  for (const auto& [name, tensor] : tensors) host[name] = FromTensor(tensor);
  return host;
}

std::map<std::string, at::Tensor> ToTensors(const std::map<std::string, HostTensor>& host) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : host) tensors[name] = ToTensor(tensor, "saved");
  return tensors;
}

Unit StepUnit(const WanPipeline& pipeline, const RunRequest& request) {
  const ResolvedParameters& p = request.parameters;
  return WanStepUnit(pipeline.parts(), pipeline.LatentShape(p), PassesOf(p.guidance_scale),
                     p.max_sequence_length, p.linear, request.planner->CostNow());
}

}  // namespace

WanRun::WanRun(const WanPipeline& pipeline, RunRequest request)
    : pipeline_(pipeline),
      request_(std::move(request)),
      scheduler_(pipeline.scheduler().Clone()),
      given_texts_(request_.given.encoder_hidden_states.has_value()),
      step_unit_(StepUnit(pipeline, request_)) {
  const c10::InferenceMode inference;
  const ResolvedParameters& p = request_.parameters;
  TakePrompts();
  if (request_.given.sigmas.empty()) {
    scheduler_->SetTimesteps(p.num_inference_steps, p.flow_shift);
  } else {
    scheduler_->SetSigmas(request_.given.sigmas);
  }
  latents_ = InitialLatents().to(pipeline_.device());
  if (!request_.saved.empty()) Restore(ParseRunState(request_.saved));
}

WanRun::WanRun(const WanRun& other, std::string id, AttentionPlanner* planner)
    : pipeline_(other.pipeline_),
      request_(other.request_),
      scheduler_(other.scheduler_->Copy()),
      given_texts_(other.given_texts_),
      step_unit_(other.step_unit_),
      prompts_(other.prompts_),
      contexts_(other.contexts_),
      embeddings_(other.embeddings_),
      saved_embeddings_(other.saved_embeddings_),
      latents_(other.latents_),
      step_(other.step_) {
  request_.job_id = std::move(id);
  request_.planner = planner;
  request_.latents.reset();
}

// Tensors are shared: nobody writes into them.
std::unique_ptr<GenerationRun> WanRun::Fork(std::string id, AttentionPlanner* planner) const {
  return std::make_unique<WanRun>(*this, std::move(id), planner);
}

// Those that the passes need and that are not there yet.
void WanRun::TakePrompts() {
  const ResolvedParameters& p = request_.parameters;
  const auto take = [&](const std::string& field, const std::string& prompt) {
    prompts_.push_back(pipeline_.Tokenize(field, prompt, p.max_sequence_length));
  };
  if (given_texts_) return;
  if (prompts_.empty()) take("prompt", request_.prompt);
  if (prompts_.size() < num_passes()) take("negative_prompt", p.negative_prompt);
}

void WanRun::SetGuidance(double scale) {
  request_.parameters.guidance_scale = scale;
  TakePrompts();
  step_unit_ = StepUnit(pipeline_, request_);
}

void WanRun::Write(const SessionWrite& write) {
  const c10::InferenceMode inference;
  const at::Tensor latents =
      write.latents ? ToTensor(*write.latents, "latents").to(at::kFloat).to(pipeline_.device())
                    : latents_;
  const int64_t step = write.step.value_or(step_);
  if (!write.keep_history) scheduler_->BeginAt(step);
  latents_ = latents;
  step_ = step;
}

// The numbers of torch.randn with a CPU generator of the same seed, on every device.
at::Tensor WanRun::InitialLatents() const {
  if (request_.latents) return ToTensor(*request_.latents, "latents").to(at::kFloat);
  const at::Generator generator =
      at::detail::createCPUGenerator(static_cast<uint64_t>(request_.parameters.seed));
  return at::randn(pipeline_.LatentShape(request_.parameters), generator,
                   at::TensorOptions(at::kFloat));
}

Unit WanRun::Next() const {
  if (!given_texts_ && contexts_.size() < num_passes()) {
    return WanEncodeUnit(pipeline_.parts(), prompts_[contexts_.size()].tokens.length, linear());
  }
  if (step_ < request_.parameters.num_inference_steps) return step_unit_;
  if (request_.decode == RunRequest::Decode::kNothing || decoded_) return {};
  const int64_t bands = std::max<int64_t>(1, request_.decode_bands), height = latents_.size(3);
  const auto [frames, shown, rows, columns] =
      decoding_ ? decoding_->NextChunk()
                : VaeDecoding::Chunk{1, 1, (height + bands - 1) / bands, latents_.size(4)};
  return WanDecodeUnit(pipeline_.parts(), latents_.sizes().vec(), frames * rows * columns,
                       linear());
}

void WanRun::Advance() {
  const c10::InferenceMode inference;
  const ScopedLinearNumerics numerics(linear());
  switch (Next().kind) {
    case UnitKind::kEncodePrompt:
      EncodeNext();
      break;
    case UnitKind::kDecode:
      DecodeChunk();
      break;
    default:
      throw Error(StatusCode::kFailedPrecondition, "the run's next unit is not one to advance");
  }
  planner()->Complete();
}

void WanRun::EncodeNext() {
  const WanPipeline::Prompt& prompt = prompts_[contexts_.size()];
  at::Tensor embeds = pipeline_.EncodePrompt(prompt, planner(), observer());
  const std::string digest =
      Sha256Hex(embeddings_ + Sha256Hex({static_cast<const char*>(embeds.const_data_ptr()),
                                         static_cast<size_t>(embeds.nbytes())}));
  const bool last = contexts_.size() + 1 == num_passes();
  if (last && !saved_embeddings_.empty() && digest != saved_embeddings_) {
    throw Error(StatusCode::kFailedPrecondition,
                "the prompts' embeddings are not those that the saved steps were made with",
                "saved", "EMBEDDINGS_DIFFER");
  }
  contexts_.push_back(pipeline_.ContextOf(embeds, prompt));
  embeddings_ = digest;
  if (last && request_.release_text_encoder) pipeline_.ReleaseTextEncoder();
}

// All there are, for a guidance that may come later.
void WanRun::EncodeGiven() {
  const ScopedLinearNumerics numerics(linear());
  std::vector<TextContext> contexts;
  const auto encode = [&](const std::optional<HostTensor>& embeds, const std::string& field) {
    if (!embeds) return;
    const at::Tensor tensor = ToTensor(*embeds, field).to(pipeline_.device());
    contexts.push_back(pipeline_.transformer().EncodeText(tensor));
  };
  encode(request_.given.encoder_hidden_states, "encoder_hidden_states");
  encode(request_.given.negative_encoder_hidden_states, "negative_encoder_hidden_states");
  contexts_ = std::move(contexts);
  request_.given = {};
}

const AttentionPlan& WanRun::Prepare(std::vector<StepPass>* passes) {
  const ResolvedParameters& p = request_.parameters;
  const auto i = static_cast<size_t>(step_);
  const AttentionPlan& plan =
      planner()->Prepare(pipeline_.SpecsFor(latents_.sizes(), p.max_sequence_length), step_,
                         p.num_inference_steps, scheduler_->sigmas()[i]);
  if (given_texts_ && contexts_.empty()) EncodeGiven();
  const at::Tensor timestep = scheduler_->TimestepTensor(step_, 1, pipeline_.device());
  for (size_t pass = 0; pass < num_passes(); ++pass) {
    const Branch branch = num_passes() == 1 ? Branch::kNone
                          : pass == 0       ? Branch::kConditional
                                            : Branch::kUnconditional;
    passes->push_back(
        {latents_,
         timestep,
         &contexts_[pass],
         {{request_.job_id, branch, step_, scheduler_->timesteps()[i], scheduler_->sigmas()[i]}}});
  }
  return plan;
}

void WanRun::Take(const std::vector<at::Tensor>& predictions, double) {
  const ResolvedParameters& p = request_.parameters;
  const at::Tensor prediction =
      predictions.size() == 1
          ? predictions[0]
          : predictions[1] + p.guidance_scale * (predictions[0] - predictions[1]);
  std::unique_ptr<Scheduler> next = scheduler_->Copy();
  at::Tensor latents = next->Step(prediction, step_, latents_);
  const std::string where =
      " after step " + std::to_string(step_ + 1) + " of " + std::to_string(p.num_inference_steps);
  if (const auto unsound = WhyUnsound(latents, *planner(), "the latents are", where))
    throw *unsound;
  scheduler_ = std::move(next);
  latents_ = latents.to(at::kFloat);  // Euler gives them in the dtype of the prediction
  ++step_;
}

void WanRun::DecodeChunk() {
  const bool keep_float = request_.decode == RunRequest::Decode::kFramesAndValues;
  const AttentionPlan& plan =
      planner()->Prepare({pipeline_.vae().Spec(latents_.size(3), latents_.size(4))}, 0, 1);
  if (!decoding_) BeginDecode();
  {
    ForwardContext context;
    context.attn_metadata = &plan;
    const ScopedForwardContext scope(context);
    decoding_->Next([&](const WanVaeDecoder::Part& part) { Store(part, keep_float, &video_); });
  }
  planner()->BookForward();
  decoded_ = decoding_->done();
  if (decoded_) decoding_.reset();
}

void WanRun::BeginDecode() {
  const ResolvedParameters& p = request_.parameters;
  decoding_ = pipeline_.vae().Begin(pipeline_.vae().Denormalize(latents_), request_.decode_bands);
  const auto numbers = static_cast<size_t>(p.num_frames * p.height * p.width * 3);
  video_.frames = {p.num_frames, p.height, p.width, static_cast<int>(p.fps), {}};
  video_.frames.rgb.resize(numbers);
  if (request_.decode == RunRequest::Decode::kFramesAndValues) video_.values.resize(numbers);
}

HostTensor WanRun::Latents() const { return FromTensor(latents_); }

std::string WanRun::Save() const {
  const SolverState solver = scheduler_->Save();
  const bool encoded = contexts_.size() == num_passes();
  return SerializeRunState({RequestDigest(request_), encoded ? embeddings_ : saved_embeddings_,
                            step_, FromTensor(latents_), solver.solver, ToHost(solver.tensors)});
}

void WanRun::Restore(const RunState& state) {
  if (state.request != RequestDigest(request_)) {
    throw InvalidField("saved", "belongs to another request");
  }
  const at::Tensor latents = ToTensor(state.latents, "saved").to(pipeline_.device());
  if (latents.sizes() != latents_.sizes() || latents.scalar_type() != at::kFloat) {
    throw InvalidField("saved", "has latents of another size");
  }
  CheckFinite(latents, "saved");
  try {
    scheduler_->Restore({state.solver, state.step, ToTensors(state.history)}, latents);
  } catch (const Error& error) {
    throw InvalidField("saved", error.what());
  }
  latents_ = latents;
  step_ = state.step;
  saved_embeddings_ = state.embeddings;
}

}  // namespace denoised
