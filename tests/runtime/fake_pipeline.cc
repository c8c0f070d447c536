#include "tests/runtime/fake_pipeline.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "backends/stop_point.h"
#include "runtime/caught.h"

namespace denoised {
namespace {

std::optional<std::string> UpToHeadSize64(const AttentionSpec& spec, const DeviceInfo&) {
  if (spec.head_size <= 64) return std::nullopt;
  return "takes head sizes up to 64, got " + std::to_string(spec.head_size);
}

// As if each layer had called its backend once.
void PretendForward(const AttentionPlan& plan, const FakeModel& model) {
  for (size_t role = 0; role < plan.size(); ++role) {
    int64_t first = 0;
    for (const AttentionSlot& slot : plan[role].slots) {
      const int64_t layers = slot.last_layer + 1 - std::exchange(first, slot.last_layer + 1);
      Guarded(slot, static_cast<AttentionRole>(role), [&] {
        if (model.on_attention) model.on_attention(slot.id);
        slot.tally->Of(slot.id).calls += static_cast<uint64_t>(layers);
        slot.tally->Of(slot.id).seconds += 0.25 * static_cast<double>(layers);
      });
    }
  }
}

void Judge(const AttentionPlan& plan, const AttentionPlanner& planner, const FakeModel& model) {
  for (const RolePlan& role : plan) {
    if (!std::ranges::any_of(role.slots, GivesNan)) continue;
    throw Error(StatusCode::kInternal, "the latents are not finite", "", "NON_FINITE");
  }
  if (model.on_result) model.on_result(plan, planner);
}

// Noise levels fall evenly from 1.
double SigmaOf(int64_t step, int64_t num_steps) {
  return 1 - static_cast<double>(step) / static_cast<double>(num_steps);
}

std::string SizeOf(const ResolvedParameters& p) {
  return std::to_string(p.num_frames) + "x" + std::to_string(p.height) + "x" +
         std::to_string(p.width);
}

int64_t TokensOf(const ResolvedParameters& p) { return p.num_frames * p.height * p.width / 64; }

Unit PromptUnit() { return {UnitKind::kEncodePrompt, 1, 8, "fake text", 8}; }

Unit StepUnit(const ResolvedParameters& p) {
  const int64_t tokens = TokensOf(p);
  return {UnitKind::kStep, p.guidance_scale > 1 ? 2 : 1, tokens, "fake step " + SizeOf(p),
          static_cast<double>(tokens)};
}

Unit FramesUnit(const ResolvedParameters& p) {
  const int64_t tokens = TokensOf(p);
  return {UnitKind::kDecode, 1, tokens, "fake frames " + SizeOf(p), static_cast<double>(tokens)};
}

Unit CallUnit(const DenoiseRequest& request) {
  const int64_t rows = request.latents.shape.empty() ? 1 : request.latents.shape[0];
  return {UnitKind::kStep, rows * (request.guidance_scale > 1 ? 2 : 1), 1,
          "fake call " + std::string(DTypeName(request.latents.dtype)), 1};
}

// What a run turns to FakePipeline::Step.
class FakeStepRun {
 public:
  virtual ~FakeStepRun() = default;
  virtual const std::string& prompt() const = 0;
  virtual AttentionPlanner* planner() const = 0;
  virtual const AttentionPlan& Prepare() = 0;
  virtual void Check() = 0;  // throws
  virtual void Take() = 0;
};

class FakeRun : public GenerationRun, public FakeStepRun {
 public:
  FakeRun(FakeModel* model, RunRequest request)
      : model_(model),
        request_(std::move(request)),
        begun_(request_.given.encoder_hidden_states.has_value()),
        value_(request_.latents && request_.latents->data.size() == sizeof(float)
                   ? FloatOf(*request_.latents)
                   : static_cast<float>(request_.parameters.seed)) {
    ++model_->live_runs;
    if (!request_.saved.empty()) Restore();
  }
  FakeRun(const FakeRun& other, std::string id, AttentionPlanner* planner) : FakeRun(other) {
    ++model_->live_runs;
    request_.job_id = std::move(id);
    request_.planner = planner;
  }
  ~FakeRun() override { --model_->live_runs; }

  Unit Next() const override {
    const ResolvedParameters& p = request_.parameters;
    if (!begun_) return PromptUnit();
    if (step_ < p.num_inference_steps) return StepUnit(p);
    if (request_.decode == RunRequest::Decode::kNothing || finished_) return {};
    return FramesUnit(p);
  }

  void Advance() override {
    const Unit unit = Next();
    if (model_->on_unit) model_->on_unit(unit, 1);
    if (unit.kind == UnitKind::kEncodePrompt) {
      model_->NoteBegin(request_.prompt);
      if (model_->on_begin) model_->on_begin(request_);
      begun_ = true;
    } else {
      Finish();
    }
    planner()->Complete();
  }

  int64_t steps_done() const override { return step_; }

  DecodedVideo TakeVideo() override {
    DecodedVideo video;
    if (request_.decode == RunRequest::Decode::kNothing) return video;
    video.frames = {1, 2, 2, 16, std::vector<uint8_t>(12, Shade())};
    if (request_.decode == RunRequest::Decode::kFramesAndValues) {
      video.values.assign(12, static_cast<float>(Shade()) / 255.0f);
    }
    return video;
  }

  HostTensor Latents() const override {
    if (model_->on_read) model_->on_read();
    HostTensor latents{DType::kFloat32, {1, 1, 1, 1, 1}, std::string(sizeof value_, '\0')};
    std::memcpy(latents.data.data(), &value_, sizeof value_);
    return latents;
  }

  // From 1 to 0 in equal parts.
  std::vector<double> Sigmas() const override {
    std::vector<double> sigmas = request_.given.sigmas;
    const int64_t steps = request_.parameters.num_inference_steps;
    for (int64_t i = 0; sigmas.size() < static_cast<size_t>(steps); ++i) {
      sigmas.push_back(1 - static_cast<double>(i) / static_cast<double>(steps));
    }
    sigmas.push_back(0);
    return sigmas;
  }
  void SetGuidance(double scale) override { request_.parameters.guidance_scale = scale; }
  void Write(const SessionWrite& write) override {
    if (write.latents) value_ = FloatOf(*write.latents);
    step_ = write.step.value_or(step_);
    if (!write.keep_history) before_ = 0;
  }
  std::unique_ptr<GenerationRun> Fork(std::string id, AttentionPlanner* planner) const override {
    return std::unique_ptr<GenerationRun>(new FakeRun(*this, std::move(id), planner));
  }

  // "step prompt", and a line of what the test adds.
  std::string Save() const override {
    return std::to_string(step_) + ' ' + request_.prompt +
           (model_->on_save ? '\n' + model_->on_save() : "");
  }

  const std::string& prompt() const override { return request_.prompt; }
  AttentionPlanner* planner() const override { return request_.planner; }
  const AttentionPlan& Prepare() override {
    const int64_t steps = request_.parameters.num_inference_steps;
    return planner()->Prepare(model_->specs, step_, steps, SigmaOf(step_, steps));
  }
  void Check() override {
    ++model_->steps_run;
    if (model_->on_step) model_->on_step(request_, step_);
  }
  // A solver that remembers one step.
  void Take() override {
    const float next = value_ / 2 + before_ / 4 + static_cast<float>(step_) +
                       static_cast<float>(request_.parameters.guidance_scale);
    before_ = std::exchange(value_, next);
    ++step_;
  }

 private:
  FakeRun(const FakeRun&) = default;

  static float FloatOf(const HostTensor& tensor) {
    float value = 0;
    std::memcpy(&value, tensor.data.data(), sizeof value);
    return value;
  }

  uint8_t Shade() const { return static_cast<uint8_t>(request_.parameters.seed % 251); }

  void Restore() {
    const size_t space = request_.saved.find(' ');
    const std::string rest = space == std::string::npos ? "" : request_.saved.substr(space + 1);
    const bool own = space != std::string::npos &&
                     (rest == request_.prompt || rest.starts_with(request_.prompt + '\n'));
    if (!own) throw InvalidField("saved", "belongs to another request");
    const int64_t step = std::atoi(request_.saved.c_str());
    while (step_ < step) Take();
  }

  void Finish() {
    model_->finish.Pass();
    if (model_->on_finish) model_->on_finish(request_);
    StopPoint();
    finished_ = true;
  }

  FakeModel* const model_;
  RunRequest request_;
  bool begun_ = false, finished_ = false;
  int64_t step_ = 0;
  float value_, before_ = 0;
};

class FakeDenoiseRun : public DenoiseRun, public FakeStepRun {
 public:
  FakeDenoiseRun(FakeModel* model, const DenoiseRequest& request, AttentionPlanner* planner)
      : model_(model), request_(request), planner_(planner) {}

  Unit Next() const override { return done_ ? Unit{} : CallUnit(request_); }
  void Advance() override {
    throw Error(StatusCode::kFailedPrecondition, "a call has nothing but its step");
  }
  DenoiseResult TakeResult() override {
    DenoiseResult result;
    result.tensor = request_.latents;
    return result;
  }

  const std::string& prompt() const override { return none_; }
  AttentionPlanner* planner() const override { return planner_; }
  const AttentionPlan& Prepare() override { return planner_->Prepare(model_->specs, 0, 1); }
  void Check() override {
    ++model_->denoise_calls;
    if (model_->on_denoise) model_->on_denoise();
  }
  void Take() override { done_ = true; }

 private:
  FakeModel* const model_;
  const DenoiseRequest& request_;
  AttentionPlanner* const planner_;
  const std::string none_;
  bool done_ = false;
};

struct PreparedRun {
  FakeStepRun* run;
  const AttentionPlan* plan;  // null where its selection was refused
};

std::vector<PreparedRun> Prepared(const std::vector<Run*>& runs,
                                  std::vector<std::optional<Error>>* errors) {
  std::vector<PreparedRun> prepared;
  for (size_t i = 0; i < runs.size(); ++i) {
    PreparedRun& one = prepared.emplace_back(dynamic_cast<FakeStepRun*>(runs[i]), nullptr);
    (*errors)[i] = Caught([&] { one.plan = &one.run->Prepare(); });
  }
  return prepared;
}

std::vector<BackendRegistry::Entry> Entries(const InventedBackends& b) {
  return {{AttnBackend::kCudnnAttn, nullptr, "not in this build: invented absence", true},
          {AttnBackend::kFlashAttn, &b.flash, "", true},
          {AttnBackend::kTorchSdpa, &b.sdpa, "", true},
          {AttnBackend::kReference, &b.reference, "", true},
          {AttnBackend::kSageAttn, &b.sage, "", false},
          {AttnBackend::kSlidingTileAttn, &b.sliding, "", false}};
}

}  // namespace

void Gate::Pass() {
  std::unique_lock lock(mutex_);
  ++arrivals_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return allowed_ > 0; });
  if (allowed_ != INT64_MAX) --allowed_;
}

void Gate::Allow(int64_t passes) {
  const std::lock_guard lock(mutex_);
  if (allowed_ != INT64_MAX) allowed_ += passes;
  changed_.notify_all();
}

void Gate::Open() { SetAllowed(INT64_MAX); }

void Gate::SetAllowed(int64_t passes) {
  const std::lock_guard lock(mutex_);
  allowed_ = passes;
  changed_.notify_all();
}

bool Gate::AwaitArrival(int64_t n) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, [&] { return arrivals_ >= n; });
}

int64_t Gate::arrivals() const {
  const std::lock_guard lock(mutex_);
  return arrivals_;
}

class BuildingBackend::Builder : public AttentionMetadataBuilder {
 public:
  explicit Builder(std::shared_ptr<Record> record) : record_(std::move(record)) {}
  std::string Canonical(const MetadataRequest& request) override {
    if (request.parameters_json == "bad") throw InvalidField("attention.parameters", "are bad");
    return request.parameters_json.empty() ? "{}" : request.parameters_json;
  }
  std::shared_ptr<const AttentionMetadata> Build(const MetadataRequest& request) override {
    Canonical(request);
    const std::lock_guard lock(record_->mutex);
    record_->requests.push_back(request);
    return std::make_shared<const AttentionMetadata>();
  }

 private:
  const std::shared_ptr<Record> record_;
};

std::unique_ptr<AttentionMetadataBuilder> BuildingBackend::MakeBuilder() const {
  return std::make_unique<Builder>(record_);
}

std::vector<MetadataRequest> BuildingBackend::built() const {
  const std::lock_guard lock(record_->mutex);
  return record_->requests;
}

InventedBackends::InventedBackends()
    : flash(AttnBackend::kFlashAttn, UpToHeadSize64),
      sdpa(AttnBackend::kTorchSdpa,
           [this](const AttentionSpec&, const DeviceInfo&) -> std::optional<std::string> {
             if (sdpa_refuses) return "was told to refuse";
             return std::nullopt;
           }),
      reference(AttnBackend::kReference),
      sage(AttnBackend::kSageAttn),
      sliding(AttnBackend::kSlidingTileAttn),
      registry(Entries(*this)) {}

AttentionSpec SelfSpec() {
  AttentionSpec spec;
  spec.role = AttentionRole::kSelf;
  spec.head_size = 128;
  spec.q_len = spec.kv_len = 8;
  spec.supported = {AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa, AttnBackend::kReference,
                    AttnBackend::kSageAttn, AttnBackend::kSlidingTileAttn};
  return spec;
}

AttentionSpec CrossSpec() {
  AttentionSpec spec;
  spec.role = AttentionRole::kCross;
  spec.head_size = 128;
  spec.q_len = 8;
  spec.kv_len = 32;
  spec.supported = {AttnBackend::kTorchSdpa, AttnBackend::kReference};
  return spec;
}

std::vector<std::string> FakeModel::began() const {
  const std::lock_guard lock(mutex_);
  return began_;
}

void FakeModel::NoteBegin(const std::string& prompt) {
  const std::lock_guard lock(mutex_);
  began_.push_back(prompt);
}

std::vector<std::vector<std::string>> FakeModel::forwards() const {
  const std::lock_guard lock(mutex_);
  return forwards_;
}

void FakeModel::NoteForward(std::vector<std::string> prompts) {
  const std::lock_guard lock(mutex_);
  forwards_.push_back(std::move(prompts));
}

FakePipeline::FakePipeline(FakeModel* model, const SelectionPolicy* policy, Breakers::Clock clock)
    : model_(model) {
  ++model->live_pipelines;
  info_.name = model->name;
  info_.dtype = info_.vae_dtype = "float32";
  info_.weights_digest = "digest of " + model->name + model->weights;
  info_.model_digest = "model digest of " + model->name + model->weights;
  info_.weight_bytes = model->weight_bytes;
  info_.scheduler = "FakeScheduler";
  ResolvedParameters& d = info_.defaults;
  d.model = model->name;
  d.height = d.width = 64;
  d.num_frames = 5;
  d.fps = 16;
  d.num_inference_steps = 3;
  d.guidance_scale = 5;
  d.flow_shift = model->flow_shift;
  d.max_sequence_length = 512;
  d.negative_prompt = "the model's own";
  setting_.registry = &model->backends.registry;
  setting_.policy = policy;
  setting_.model = model->name;
  setting_.layers = {model->num_layers, model->num_layers, 1, 1};
  setting_.guard = std::make_shared<CallGuard>(std::move(clock));
  setting_.device.type = model->device;
  setting_.device.name = model->device == DeviceInfo::Type::kCpu ? "an invented CPU" : "a GPU";
}

void FakePipeline::CheckRun(const GenerationRequest& request, const ResolvedParameters&) const {
  if (request.latents) CheckHostTensor(*request.latents, "latents");
}

void FakePipeline::CheckSession(const SessionRequest& request,
                                const ResolvedParameters& parameters) const {
  CheckRun(request.generation, parameters);
}

void FakePipeline::CheckLatents(const HostTensor& latents, const ResolvedParameters& p) const {
  CheckHostTensor(latents, "latents");
  if (latents.shape != LatentShape(p)) throw InvalidField("latents.shape", "wanted another");
}

void FakePipeline::CheckDenoise(const DenoiseRequest& request) const {
  CheckHostTensor(request.latents, "latents");
}

WorkEstimate FakePipeline::EstimateRun(const GenerationRequest& request,
                                       const ResolvedParameters& p, int64_t,
                                       const CostOfAttention&) const {
  WorkEstimate estimate = model_->estimate;
  estimate.units = {{PromptUnit(), 1}, {StepUnit(p), p.num_inference_steps}};
  if (WantsFrames(request.formats)) estimate.units.push_back({FramesUnit(p), 1});
  return estimate;
}

WorkEstimate FakePipeline::EstimateDenoise(const DenoiseRequest& request,
                                           const CostOfAttention&) const {
  WorkEstimate estimate = model_->estimate;
  estimate.units = {{CallUnit(request), 1}};
  return estimate;
}

std::unique_ptr<GenerationRun> FakePipeline::NewRun(RunRequest request) {
  if (model_->on_new_run) model_->on_new_run();
  return std::make_unique<FakeRun>(model_, std::move(request));
}

std::unique_ptr<DenoiseRun> FakePipeline::NewDenoiseRun(const DenoiseRequest& request, const Unit&,
                                                        AttentionPlanner* planner, Observer*) {
  return std::make_unique<FakeDenoiseRun>(model_, request, planner);
}

std::vector<std::optional<Error>> FakePipeline::Step(const std::vector<Run*>& runs) {
  std::vector<std::optional<Error>> errors(runs.size());
  const std::vector<PreparedRun> prepared = Prepared(runs, &errors);
  std::vector<std::string> prompts;
  int64_t rows = 0;
  for (Run* run : runs) {
    rows += run->Next().rows;
    prompts.push_back(dynamic_cast<FakeStepRun*>(run)->prompt());
  }
  const bool has_job =
      std::ranges::any_of(runs, [](Run* run) { return dynamic_cast<FakeRun*>(run) != nullptr; });
  model_->NoteForward(prompts);
  if (model_->on_unit) model_->on_unit(runs.front()->Next(), rows);
  (has_job ? model_->steps : model_->denoise).Pass();
  for (const PreparedRun& one : prepared) {
    if (one.plan != nullptr) PretendForward(*one.plan, *model_);
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto& [run, plan] = prepared[i];
    if (plan == nullptr) continue;
    run->planner()->BookForward();
    errors[i] = Caught([&, run = run, plan = plan] {
      Judge(*plan, *run->planner(), *model_);
      run->Check();
    });
    if (errors[i]) StopPoint();  // what stops one stops all
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    if (errors[i]) continue;
    prepared[i].run->Take();
    prepared[i].run->planner()->Complete();
  }
  return errors;
}

}  // namespace denoised
