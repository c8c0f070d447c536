#include "tests/runtime/fake_engine.h"

#include <gtest/gtest.h>

#include <cstring>

#include "backends/stop_point.h"

namespace denoised {
namespace {

std::optional<std::string> UpToHeadSize64(const AttentionSpec& spec, const DeviceInfo&) {
  if (spec.head_size <= 64) return std::nullopt;
  return "takes head sizes up to 64, got " + std::to_string(spec.head_size);
}

constexpr uint64_t kLayers = 2;

// As if each layer had called its backend once.
void PretendForward(const AttentionPlan& plan) {
  for (const AttentionSlot& slot : plan) {
    if (slot.tally == nullptr) continue;
    slot.tally->Of(slot.id).calls += kLayers;
    slot.tally->Of(slot.id).seconds += 0.5;
  }
}

class FakeRun : public GenerationRun {
 public:
  FakeRun(FakeModel* model, RunRequest request) : model_(model), request_(std::move(request)) {
    ++model_->live_runs;
  }
  ~FakeRun() override { --model_->live_runs; }

  void Begin() override {
    model_->NoteBegin(request_.prompt);
    if (model_->on_begin) model_->on_begin(request_);
  }

  void Step(int64_t i) override {
    PretendForward(
        request_.planner->Prepare(model_->specs, i, request_.parameters.num_inference_steps));
    request_.planner->BookForward();
    model_->steps.Pass();
    ++model_->steps_run;
    if (model_->on_step) model_->on_step(request_, i);
  }

  DecodedVideo Finish(bool keep_float) override {
    model_->finish.Pass();
    if (model_->on_finish) model_->on_finish(request_);
    StopPoint();
    DecodedVideo video;
    video.frames = {1, 2, 2, 16, std::vector<uint8_t>(12, Shade())};
    if (keep_float) video.values.assign(12, static_cast<float>(Shade()) / 255.0f);
    return video;
  }

  HostTensor Latents() const override {
    const float value = static_cast<float>(request_.parameters.seed);
    HostTensor latents{DType::kFloat32, {1, 1, 1, 1, 1}, std::string(sizeof value, '\0')};
    std::memcpy(latents.data.data(), &value, sizeof value);
    return latents;
  }

 private:
  uint8_t Shade() const { return static_cast<uint8_t>(request_.parameters.seed % 251); }

  FakeModel* const model_;
  const RunRequest request_;
};

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
  spec.supported = {AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa, AttnBackend::kReference,
                    AttnBackend::kSageAttn, AttnBackend::kSlidingTileAttn};
  return spec;
}

AttentionSpec CrossSpec() {
  AttentionSpec spec;
  spec.role = AttentionRole::kCross;
  spec.head_size = 128;
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

FakePipeline::FakePipeline(FakeModel* model, const SelectionPolicy* policy, bool is_default)
    : model_(model) {
  info_.name = model->name;
  info_.is_default = is_default;
  info_.dtype = info_.vae_dtype = "float32";
  info_.weights_digest = "digest of " + model->name;
  info_.model_digest = "model digest of " + model->name;
  info_.scheduler = "FakeScheduler";
  ResolvedParameters& d = info_.defaults;
  d.model = model->name;
  d.height = d.width = 64;
  d.num_frames = 5;
  d.fps = 16;
  d.num_inference_steps = 3;
  d.guidance_scale = 5;
  d.flow_shift = 3;
  d.max_sequence_length = 512;
  d.negative_prompt = "the model's own";
  setting_.registry = &model->backends.registry;
  setting_.policy = policy;
  setting_.device.name = "an invented CPU";
}

void FakePipeline::CheckRun(const GenerationRequest& request, const ResolvedParameters&) const {
  if (request.latents) CheckHostTensor(*request.latents, "latents");
}

void FakePipeline::CheckDenoise(const DenoiseRequest& request) const {
  CheckHostTensor(request.latents, "latents");
}

std::unique_ptr<GenerationRun> FakePipeline::NewRun(RunRequest request) {
  return std::make_unique<FakeRun>(model_, std::move(request));
}

DenoiseResult FakePipeline::Denoise(const DenoiseRequest& request, AttentionPlanner* planner,
                                    Observer*) {
  PretendForward(planner->Prepare(model_->specs, 0, 1));
  planner->BookForward();
  model_->denoise.Pass();
  ++model_->denoise_calls;
  if (model_->on_denoise) model_->on_denoise();
  DenoiseResult result;
  result.tensor = request.latents;
  return result;
}

std::pair<JobSnapshot, bool> RecordingStore::Add(const JobSnapshot& job,
                                                 const GenerationRequest& request) {
  auto added = inner_->Add(job, request);
  Record(added.first);
  return added;
}

int64_t RecordingStore::Start(const std::string& id) {
  const int64_t attempt = inner_->Start(id);
  if (const auto job = inner_->Get(id)) Record(*job);
  return attempt;
}

void RecordingStore::Interrupt(const std::string& id) {
  inner_->Interrupt(id);
  if (const auto job = inner_->Get(id)) Record(*job);
}

std::optional<JobSnapshot> RecordingStore::Update(const std::string& id,
                                                  const std::function<void(JobSnapshot&)>& change) {
  auto after = inner_->Update(id, change);
  if (after) Record(*after);
  return after;
}

void RecordingStore::Record(const JobSnapshot& job) {
  const std::lock_guard lock(mutex_);
  events_[job.id][job.sequence] = job;
}

std::vector<JobSnapshot> RecordingStore::History(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  std::vector<JobSnapshot> history;
  if (const auto found = events_.find(id); found != events_.end()) {
    for (const auto& [sequence, job] : found->second) history.push_back(job);
  }
  return history;
}

FakeEngine::FakeEngine(EngineOptions options) : log_stream(std::tmpfile()), logger(log_stream) {
  auto policy = std::make_unique<SelectionPolicy>(options.environment_backend, clock.function());
  std::vector<std::unique_ptr<Pipeline>> pipelines;
  pipelines.push_back(std::make_unique<FakePipeline>(&model, policy.get()));
  auto recording = std::make_unique<RecordingStore>(
      MakeMemoryJobStore(static_cast<size_t>(options.max_finished_jobs),
                         static_cast<size_t>(options.max_artifact_bytes)));
  store = recording.get();
  engine = std::make_unique<EngineImpl>(options, std::move(policy), std::move(pipelines),
                                        std::move(recording), &observer, &logger, clock.function());
}

FakeEngine::~FakeEngine() {
  model.steps.Open();
  model.denoise.Open();
  model.finish.Open();
  engine.reset();
  logger.Flush(std::chrono::seconds(20));  // it writes to the stream from a thread of its own
  std::fclose(log_stream);
}

std::string FakeEngine::Submit(const std::string& prompt,
                               std::function<void(GenerationRequest&)> edit) {
  GenerationRequest request = SmallRequest(prompt);
  if (edit) edit(request);
  const auto result = engine->Submit(std::move(request));
  if (const auto* error = std::get_if<Error>(&result)) {
    ADD_FAILURE() << prompt << " was refused: " << error->what();
    return "";
  }
  return std::get<JobSnapshot>(result).id;
}

JobSnapshot FakeEngine::AwaitEnd(const std::string& id) {
  struct Bell {
    std::mutex mutex;
    std::condition_variable rung;
    bool news = true;
  };
  auto bell = std::make_shared<Bell>();
  const auto handle = engine->jobs().Watch(id, [bell] {
    const std::lock_guard lock(bell->mutex);
    bell->news = true;
    bell->rung.notify_all();
  });
  for (;;) {
    {
      std::unique_lock lock(bell->mutex);
      if (!bell->rung.wait_for(lock, kPatience, [&] { return bell->news; })) {
        ADD_FAILURE() << "job " << id << " did not end";
        return Get(id);
      }
      bell->news = false;
    }
    JobSnapshot job = Get(id);
    if (IsTerminal(job.state)) return job;
  }
}

GenerationRequest SmallRequest(const std::string& prompt) {
  GenerationRequest request;
  request.prompt = prompt;
  request.seed = 7;
  request.formats = {ArtifactFormat::kSafetensors};
  return request;
}

}  // namespace denoised
