#include "runtime/engine.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <tuple>
#include <utility>

#include "backends/stop_point.h"
#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/receipt.h"
#include "runtime/loaders/sha256.h"
#include "runtime/media/artifacts.h"
#include "runtime/threads.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;
using SystemClock = std::chrono::system_clock;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

uint64_t RandomWord() {
  thread_local std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// 128 random bits, hex.
std::string NewJobId() {
  std::string id(32, '0');
  constexpr std::string_view kHex = "0123456789abcdef";
  for (size_t word = 0; word < 2; ++word) {
    uint64_t bits = RandomWord();
    for (size_t i = 0; i < 16; ++i, bits >>= 4) id[word * 16 + i] = kHex[bits & 15];
  }
  return id;
}

// Seeds stay within what a double holds, so that JSON clients can send them back.
int64_t DrawSeed() { return static_cast<int64_t>(RandomWord() >> 32); }

Error Cancelled() { return Error(StatusCode::kCancelled, "cancelled", "", "CANCELLED"); }

Error DeadlinePassed() {
  return Error(StatusCode::kDeadlineExceeded, "the deadline passed before the work was done", "",
               "DEADLINE_EXCEEDED");
}

Error Draining() {
  return Error(StatusCode::kUnavailable, "the server is draining and takes no new work", "",
               "DRAINING");
}

JobError ToJobError(const Error& error) {
  return {error.code(), error.what(), error.field(), error.reason()};
}

// What was asked for, each format once; mp4 where nothing was.
std::vector<ArtifactFormat> DistinctFormats(const std::vector<ArtifactFormat>& asked) {
  if (asked.empty()) return {ArtifactFormat::kMp4};
  std::vector<ArtifactFormat> formats;
  for (ArtifactFormat format : asked) {
    if (std::find(formats.begin(), formats.end(), format) == formats.end()) {
      formats.push_back(format);
    }
  }
  return formats;
}

void CheckFormats(const std::vector<ArtifactFormat>& formats) {
  for (ArtifactFormat format : formats) {
    const auto why_not = WhyNotWritten(format);
    if (!why_not) continue;
    throw Error(StatusCode::kUnimplemented, "formats: " + *why_not, "formats",
                "FORMAT_NOT_IN_BUILD");
  }
}

Receipt MakeReceipt(const Pipeline& pipeline, LinearNumerics linear,
                    const AttentionPlanner& planner) {
  Receipt receipt;
  receipt.entries = planner.Entries();
  receipt.notes = planner.Notes();
  StampReceipt(pipeline.info(), pipeline.planner_setting(), linear, &receipt);
  return receipt;
}

std::optional<std::string> WhyUnusable(AttnBackend backend, const Pipeline& pipeline,
                                       const AttentionSpec& spec) {
  if (std::find(spec.supported.begin(), spec.supported.end(), backend) == spec.supported.end()) {
    return "self-attention of " + pipeline.info().name + " does not list it";
  }
  const PlannerSetting& setting = pipeline.planner_setting();
  return setting.registry->WhyNot(backend, spec, setting.device);
}

// As the request of a force names it: "parameters.<key>", where jobs have "attention.parameters".
std::optional<Error> WhyParametersUnfit(AttnBackend backend, const Pipeline& pipeline,
                                        const AttentionSpec& spec,
                                        const std::string& parameters_json) {
  try {
    pipeline.planner_setting().registry->CanonicalParameters(backend, spec, parameters_json);
    return std::nullopt;
  } catch (const Error& error) {
    constexpr std::string_view kPrefix = "attention.";
    const auto shorter = [&](std::string text) {
      return text.starts_with(kPrefix) ? text.substr(kPrefix.size()) : text;
    };
    return Error(error.code(), shorter(error.what()), shorter(error.field()), error.reason());
  }
}

void StepAlone(Pipeline* pipeline, Run* run) {
  if (const auto error = pipeline->Step({run}).front()) throw *error;
}

}  // namespace

EngineImpl::EngineImpl(const EngineOptions& options, std::unique_ptr<SelectionPolicy> policy,
                       std::vector<std::unique_ptr<Pipeline>> pipelines,
                       std::unique_ptr<JobStore> store, Observer* observer, Logger* logger,
                       Clock clock, std::vector<FailedModel> failed_models)
    : options_(options),
      policy_(std::move(policy)),
      pipelines_(std::move(pipelines)),
      failed_models_(std::move(failed_models)),
      store_(std::move(store)),
      observer_(observer),
      logger_(logger),
      clock_(std::move(clock)),
      memory_(options.max_memory),
      thread_([this] { Loop(); }) {}

EngineImpl::~EngineImpl() { Shutdown(); }

Pipeline* EngineImpl::FindPipeline(const std::string& name) const {
  for (const auto& pipeline : pipelines_) {
    if (pipeline->info().name == name || (name.empty() && pipeline->info().is_default)) {
      return pipeline.get();
    }
  }
  std::string known;
  for (const auto& pipeline : pipelines_) known += " " + pipeline->info().name;
  throw Error(StatusCode::kNotFound,
              "model: no model is called \"" + name + "\"; there is:" + known, "model",
              "MODEL_NOT_FOUND");
}

// ---- the caller's side -------------------------------------------------------------------------

EngineImpl::QueuedJob EngineImpl::Admit(GenerationRequest request) const {
  Pipeline* pipeline = FindPipeline(request.model);
  ResolvedParameters parameters =
      ResolveRequest(request, pipeline->info().defaults, pipeline->rules());
  if (!request.seed) parameters.seed = DrawSeed();
  pipeline->CheckRun(request, parameters);
  request.formats = DistinctFormats(request.formats);
  CheckFormats(request.formats);
  QueuedJob job{NewJobId(),
                std::move(request),
                std::move(parameters),
                pipeline,
                std::make_shared<CancelToken>(),
                SteadyClock::now(),
                {}};
  // First without attention, so that no plan is made for what is too large anyway.
  job.estimate = EstimateOf(job, Attention::kLeftOut);
  RequireMemoryLater(job);
  CheckAttention(*pipeline, pipeline->DenoiseSpecs(job.parameters), job.request.attention);
  job.estimate = EstimateOf(job, Attention::kIncluded);
  RequireMemoryLater(job);
  return job;
}

// Refuses at once what could only fail later: parameters that do not fit, hidden by a force or not,
// and a strict request that the layers cannot have. Explain asks the same question.
void EngineImpl::CheckAttention(const Pipeline& pipeline, const std::vector<AttentionSpec>& specs,
                                const AttentionOptions& options) const {
  for (const AttentionSpec& spec : specs) ChooseNow(pipeline.planner_setting(), options, spec);
}

Engine::SubmitResult EngineImpl::Submit(GenerationRequest request) {
  std::optional<QueuedJob> job;
  if (auto error = Caught([&] { job = Admit(std::move(request)); })) return *error;
  JobSnapshot snapshot;
  snapshot.id = job->id;
  snapshot.prompt = job->request.prompt;
  snapshot.parameters = job->parameters;
  snapshot.num_steps = job->parameters.num_inference_steps;
  snapshot.created_at = SystemClock::now();
  snapshot.sequence = 1;
  if (queue_depth() >= options_.max_queued_jobs) ExpireQueued();  // late jobs hold no place
  {
    std::lock_guard lock(mutex_);
    if (draining_) return Draining();
    if (static_cast<int64_t>(jobs_.size()) >= options_.max_queued_jobs) {
      return Error(StatusCode::kResourceExhausted,
                   "the queue is full (" + std::to_string(jobs_.size()) + " jobs wait)", "",
                   "QUEUE_FULL");
    }
    snapshot.queue_position = static_cast<int64_t>(jobs_.size()) + (running_ ? 1 : 0);
    bool made = false;
    if (auto error =
            Caught([&] { std::tie(snapshot, made) = store_->Add(snapshot, job->request); })) {
      return *error;
    }
    if (!made) return snapshot;
    jobs_.push_back(std::move(*job));
  }
  wake_.notify_one();
  return snapshot;
}

Engine::CancelResult EngineImpl::Cancel(const std::string& job_id) {
  const auto snapshot = store_->Get(job_id);
  if (!snapshot) return CancelResult::kNotFound;
  if (IsTerminal(snapshot->state)) return CancelResult::kAlreadyFinished;
  std::optional<QueuedJob> waiting;
  {
    std::lock_guard lock(mutex_);
    if (running_ && running_->id == job_id) {
      if (closing_) return CancelResult::kAlreadyFinished;
      running_->cancel->cancelled = true;
      return CancelResult::kCancelling;
    }
    auto found = std::find_if(jobs_.begin(), jobs_.end(),
                              [&](const QueuedJob& job) { return job.id == job_id; });
    if (found == jobs_.end()) return CancelResult::kAlreadyFinished;
    waiting = std::move(*found);
    jobs_.erase(found);
  }
  FinishJob(*waiting, Cancelled(), {});
  RefreshQueuePositions();
  return CancelResult::kCancelling;
}

void EngineImpl::Denoise(DenoiseRequest request, std::shared_ptr<CancelToken> cancel,
                         std::function<void(DenoiseOutcome)> done) {
  DenoiseCall call{std::move(request), nullptr, std::move(cancel), std::move(done),
                   SteadyClock::now()};
  auto refusal = Caught([&] {
    call.pipeline = FindPipeline(call.request.model);
    call.pipeline->CheckDenoise(call.request);
    RequireMemory(call);
    std::lock_guard lock(mutex_);
    if (draining_) throw Draining();
    if (static_cast<int64_t>(calls_.size()) >= options_.max_queued_denoise_calls) {
      throw Error(StatusCode::kResourceExhausted, "too many Denoise calls wait", "", "QUEUE_FULL");
    }
    calls_.push_back(std::move(call));
  });
  if (refusal) return call.done(*refusal);
  wake_.notify_one();
}

std::vector<ModelInfo> EngineImpl::ListModels() const {
  std::vector<ModelInfo> models;
  for (const auto& pipeline : pipelines_) models.push_back(pipeline->info());
  return models;
}

std::optional<Error> EngineImpl::CheckForce(AttnBackend backend,
                                            const std::string& parameters_json) const {
  std::string sentence = "no model has self-attention";
  std::set<std::string> usable;
  std::optional<Error> unfit;  // the backend could serve, but not with these parameters
  for (const auto& pipeline : pipelines_) {
    for (const AttentionSpec& spec : pipeline->DenoiseSpecs(pipeline->info().defaults)) {
      if (spec.role != AttentionRole::kSelf) continue;
      const auto why_not = WhyUnusable(backend, *pipeline, spec);
      if (!why_not) {
        unfit = WhyParametersUnfit(backend, *pipeline, spec, parameters_json);
        if (!unfit) return std::nullopt;
        continue;
      }
      sentence = *why_not;
      for (AttnBackend other : spec.supported) {
        if (!WhyUnusable(other, *pipeline, spec)) usable.emplace(AttnBackendName(other));
      }
    }
  }
  if (unfit) return unfit;
  std::string names;
  for (const std::string& name : usable) names += " " + name;
  return Error(StatusCode::kFailedPrecondition,
               std::string(AttnBackendName(backend)) +
                   " cannot serve any loaded model: " + sentence + ". Usable:" + names,
               "backend", "BACKEND_UNUSABLE");
}

std::vector<BackendInfo> EngineImpl::ListBackends() const {
  const Pipeline& pipeline = *FindPipeline("");
  const PlannerSetting& setting = pipeline.planner_setting();
  AttentionSpec self;
  for (const AttentionSpec& spec : pipeline.DenoiseSpecs(pipeline.info().defaults)) {
    if (spec.role == AttentionRole::kSelf) self = spec;
  }
  std::vector<BackendInfo> backends;
  for (const BackendRegistry::Entry& entry : setting.registry->entries()) {
    backends.push_back({entry.id, std::string(setting.registry->Summary(entry.id)),
                        entry.automatic && entry.backend != nullptr,
                        setting.registry->WhyNot(entry.id, self, setting.device)});
  }
  return backends;
}

std::vector<Explanation> EngineImpl::Explain(const ExplainQuery& query) const {
  const Pipeline& pipeline = *FindPipeline(query.model);
  GenerationRequest request;
  request.height = query.height;
  request.width = query.width;
  request.num_frames = query.num_frames;
  const ResolvedParameters parameters =
      ResolveRequest(request, pipeline.info().defaults, pipeline.rules());
  std::vector<Explanation> explanations;
  for (const AttentionSpec& spec : pipeline.DenoiseSpecs(parameters)) {
    explanations.push_back(ExplainSpec(pipeline.planner_setting(), spec, query.attention));
  }
  return explanations;
}

Explanation EngineImpl::ExplainSpec(const PlannerSetting& setting, const AttentionSpec& spec,
                                    const AttentionOptions& options) const {
  Explanation explanation;
  explanation.role = spec.role;
  explanation.spec = spec;
  const auto error = Caught([&] { explanation.selection = ChooseNow(setting, options, spec); });
  // What is wrong with the query itself is the caller's to mend, as at Submit.
  if (error && error->code() == StatusCode::kInvalidArgument) throw *error;
  if (error) explanation.error = ToJobError(*error);
  for (const BackendRegistry::Entry& entry : setting.registry->entries()) {
    const bool listed =
        std::find(spec.supported.begin(), spec.supported.end(), entry.id) != spec.supported.end();
    explanation.candidates.push_back(
        {entry.id, listed, setting.registry->WhyNot(entry.id, spec, setting.device)});
  }
  return explanation;
}

int64_t EngineImpl::queue_depth() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(jobs_.size());
}

int64_t EngineImpl::running_jobs() const {
  std::lock_guard lock(mutex_);
  return running_ ? 1 : 0;
}

void EngineImpl::Drain() {
  std::lock_guard lock(mutex_);
  draining_ = true;
}

bool EngineImpl::draining() const {
  std::lock_guard lock(mutex_);
  return draining_;
}

bool EngineImpl::Idle() const { return jobs_.empty() && calls_.empty() && !running_ && !calling_; }

bool EngineImpl::WaitIdle(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, timeout, [this] { return Idle(); });
}

void EngineImpl::CancelAll() {
  std::deque<QueuedJob> jobs;
  std::deque<DenoiseCall> calls;
  {
    std::lock_guard lock(mutex_);
    draining_ = cancelling_ = true;
    jobs.swap(jobs_);
    calls.swap(calls_);
    if (running_) running_->cancel->cancelled = true;
  }
  for (QueuedJob& job : jobs) FinishJob(job, Cancelled(), {});
  for (DenoiseCall& call : calls) call.done(Draining());
  idle_.notify_all();
}

void EngineImpl::Shutdown() {
  CancelAll();
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  std::lock_guard join(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

// ---- the engine thread -------------------------------------------------------------------------

void EngineImpl::Loop() {
  SetIntraOpThreads(options_.threads);
  for (;;) {
    std::unique_lock lock(mutex_);
    idle_.notify_all();
    wake_.wait(lock, [this] { return stopping_ || !jobs_.empty() || !calls_.empty(); });
    if (stopping_) break;
    lock.unlock();
    RunDenoiseCalls();
    if (!TakeJob()) continue;
    RunJob(&*running_);
    memory_.ReturnUnused(static_cast<int64_t>(store_->artifact_bytes()) + HeldBesideResults());
    lock.lock();
    running_.reset();
    closing_ = false;
  }
}

bool EngineImpl::TakeJob() {
  std::lock_guard lock(mutex_);
  if (stopping_ || jobs_.empty()) return false;
  running_ = std::move(jobs_.front());
  jobs_.pop_front();
  return true;
}

// Those that wait by now; later ones wait for the next pause, so that a flood starves no job.
void EngineImpl::RunDenoiseCalls() {
  size_t left = SIZE_MAX;
  for (;;) {
    DenoiseCall call;
    if (!TakeDenoiseCall(&call, &left)) return;
    call.done(RunDenoise(call));
  }
}

// `left` is what may still be taken; the first call sets it.
bool EngineImpl::TakeDenoiseCall(DenoiseCall* call, size_t* left) {
  std::lock_guard lock(mutex_);
  *left = std::min(*left, calls_.size());
  calling_ = *left > 0 && !stopping_;
  if (!calling_) return false;
  --*left;
  *call = std::move(calls_.front());
  calls_.pop_front();
  return true;
}

Engine::DenoiseOutcome EngineImpl::RunDenoise(const DenoiseCall& call) {
  const double queued = SecondsSince(call.queued_at);
  DenoiseResult result;
  auto error = Caught([&] {
    const ScopedStopCheck stop([&] { return WhyStop(call); });
    StopPoint();
    AttentionPlanner planner(call.pipeline->planner_setting(), call.request.attention, observer_);
    const auto run = call.pipeline->NewDenoiseRun(call.request, &planner, observer_);
    StepAlone(call.pipeline, run.get());
    result = run->TakeResult();
    result.receipt = MakeReceipt(*call.pipeline, LinearOf(call.request, *call.pipeline), planner);
    result.receipt.fingerprint = Fingerprint(result.receipt, call.request);
  });
  if (error) return *error;
  result.queue_seconds = queued;
  return result;
}

void EngineImpl::RunJob(QueuedJob* taken) {
  const QueuedJob& job = *taken;
  if (const auto stop = WhyStop(job)) return FinishJob(job, stop, {});  // ended in the queue
  observer_->OnJobStarted(job.parameters.model, SecondsSince(job.queued_at));
  if (const auto error = Caught([&] { store_->Start(job.id); })) return FinishJob(job, error, {});
  RefreshQueuePositions();
  Receipt receipt;
  auto error = Caught([&] {
    AttentionPlanner planner(job.pipeline->planner_setting(), job.request.attention, observer_);
    auto run_error = Caught([&] {
      const ScopedStopCheck stop([&] { return WhyStop(job); });
      RequireMemoryNow(taken);
      DriveRun(job, &planner);
    });
    receipt = MakeReceipt(*job.pipeline, job.parameters.linear, planner);
    receipt.fingerprint = Fingerprint(receipt, job.request, job.parameters);
    if (run_error) throw *run_error;
  });
  FinishJob(job, error, std::move(receipt));
}

void EngineImpl::DriveRun(const QueuedJob& job, AttentionPlanner* planner) {
  Interlude(job);
  const auto wants = [&](ArtifactFormat format) {
    return std::find(job.request.formats.begin(), job.request.formats.end(), format) !=
           job.request.formats.end();
  };
  const bool only_latents = job.request.formats.size() == 1 && wants(ArtifactFormat::kSafetensors);
  using Decode = RunRequest::Decode;
  const Decode decode = only_latents                  ? Decode::kNothing
                        : wants(ArtifactFormat::kNpy) ? Decode::kFramesAndValues
                                                      : Decode::kFrames;
  auto run = job.pipeline->NewRun({job.request.prompt, job.id, job.parameters, job.request.latents,
                                   planner, observer_, job.estimate.decode_bands, decode, "",
                                   job.estimate.releases_text_encoder});
  const auto advance = [&](UnitKind kind) {
    for (; run->Next().kind == kind; Interlude(job)) run->Advance();
  };
  Stage(job, JobStage::kTextEncode, [&] { advance(UnitKind::kEncodePrompt); });
  Stage(job, JobStage::kDenoise, [&] { Denoising(job, run.get()); });
  Interlude(job);
  DecodedVideo video;
  if (!only_latents) {
    Stage(job, JobStage::kDecode, [&] {
      advance(UnitKind::kDecode);
      video = run->TakeVideo();
    });
  }
  const HostTensor latents = wants(ArtifactFormat::kSafetensors) ? run->Latents() : HostTensor{};
  std::vector<EncodedResult> results;
  Stage(job, JobStage::kEncode, [&] { results = EncodeResults(job, video, latents); });
  CloseToCancels(job);
  StoreResults(job, std::move(results));
}

void EngineImpl::Denoising(const QueuedJob& job, GenerationRun* run) {
  const int64_t steps = job.parameters.num_inference_steps;
  double spent = 0;
  if (const auto seconds = speed_.Seconds(job.estimate.step_multiply_adds)) {
    store_->Update(job.id, [&](JobSnapshot& snapshot) {
      snapshot.eta_seconds = *seconds * static_cast<double>(steps);
    });
  }
  for (int64_t i = 0; i < steps; ++i) {
    Interlude(job);
    const auto start = SteadyClock::now();
    StepAlone(job.pipeline, run);
    const double seconds = SecondsSince(start);
    observer_->OnStep(job.parameters.model, seconds);
    speed_.Observe(job.estimate.step_multiply_adds, seconds);
    spent += seconds;
    store_->Update(job.id, [&](JobSnapshot& snapshot) {
      snapshot.step = i + 1;
      snapshot.eta_seconds =
          spent / static_cast<double>(i + 1) * static_cast<double>(steps - i - 1);
    });
  }
}

std::vector<EngineImpl::EncodedResult> EngineImpl::EncodeResults(const QueuedJob& job,
                                                                 const DecodedVideo& video,
                                                                 const HostTensor& latents) const {
  std::vector<EncodedResult> results;
  for (ArtifactFormat format : job.request.formats) {
    StopPoint();
    std::string bytes = EncodeArtifact(format, video, latents);
    ArtifactInfo info = {format, "video." + std::string(ArtifactFormatName(format)), bytes.size(),
                         Sha256Hex(bytes)};
    results.push_back({std::move(info), std::move(bytes)});
  }
  return results;
}

// A cancel that was accepted is kept: from here on the job can only succeed, and is told so.
void EngineImpl::CloseToCancels(const QueuedJob& job) {
  std::lock_guard lock(mutex_);
  if (job.cancel->cancelled) throw Cancelled();
  closing_ = true;
}

void EngineImpl::StoreResults(const QueuedJob& job, std::vector<EncodedResult> results) {
  for (EncodedResult& result : results) {
    store_->PutArtifact(job.id, result.info, std::move(result.bytes));
    store_->Update(job.id,
                   [&](JobSnapshot& snapshot) { snapshot.artifacts.push_back(result.info); });
  }
}

void EngineImpl::Stage(const QueuedJob& job, JobStage stage, const std::function<void()>& work) {
  store_->Update(job.id, [&](JobSnapshot& snapshot) { snapshot.stage = stage; });
  const auto start = SteadyClock::now();
  work();
  const double seconds = SecondsSince(start);
  observer_->OnStage(job.parameters.model, stage, seconds);
  store_->Update(job.id, [&](JobSnapshot& snapshot) {
    snapshot.stage_seconds.emplace_back(stage, seconds);
    snapshot.eta_seconds.reset();
  });
}

bool EngineImpl::Late(const std::optional<SteadyClock::time_point>& deadline) const {
  return deadline && clock_() >= *deadline;
}

std::optional<Error> EngineImpl::WhyStop(const QueuedJob& job) const {
  if (job.cancel->cancelled) return Cancelled();
  if (Late(job.request.deadline)) return DeadlinePassed();
  return std::nullopt;
}

std::optional<Error> EngineImpl::WhyStop(const DenoiseCall& call) const {
  if (call.cancel && call.cancel->cancelled) return Cancelled();
  if (Late(call.request.deadline)) return DeadlinePassed();
  const std::lock_guard lock(mutex_);
  if (!cancelling_) return std::nullopt;
  return Error(StatusCode::kUnavailable, "the server stopped before the step was done", "",
               "DRAINING");
}

// Between two steps: cancels, deadlines, and Denoise calls that wait.
void EngineImpl::Interlude(const QueuedJob& job) {
  if (job.cancel->cancelled) throw Cancelled();
  ExpireQueued();
  RunDenoiseCalls();
  if (const auto stop = WhyStop(job)) throw *stop;
}

void EngineImpl::ExpireQueued() {
  std::vector<QueuedJob> expired;
  {
    std::lock_guard lock(mutex_);
    for (auto it = jobs_.begin(); it != jobs_.end();) {
      const bool late = Late(it->request.deadline);
      if (late) expired.push_back(std::move(*it));
      it = late ? jobs_.erase(it) : it + 1;
    }
  }
  for (QueuedJob& job : expired) FinishJob(job, DeadlinePassed(), {});
  if (!expired.empty()) RefreshQueuePositions();
}

void EngineImpl::RefreshQueuePositions() {
  std::lock_guard one_at_a_time(positions_mutex_);  // else an older view could be written last
  std::vector<std::string> ids;
  {
    std::lock_guard lock(mutex_);
    for (const QueuedJob& job : jobs_) ids.push_back(job.id);
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    store_->Update(ids[i], [&](JobSnapshot& snapshot) {
      if (snapshot.state == JobState::kQueued) {
        snapshot.queue_position = static_cast<int64_t>(i) + 1;
      }
    });
  }
}

void EngineImpl::FinishJob(const QueuedJob& job, const std::optional<Error>& error,
                           Receipt receipt) {
  const JobState outcome = !error                                    ? JobState::kSucceeded
                           : error->code() == StatusCode::kCancelled ? JobState::kCancelled
                                                                     : JobState::kFailed;
  store_->Update(job.id, [&](JobSnapshot& snapshot) {
    snapshot.state = outcome;
    snapshot.finished_at = SystemClock::now();
    snapshot.eta_seconds.reset();
    snapshot.queue_position = 0;
    snapshot.receipt = std::move(receipt);
    if (error) snapshot.error = ToJobError(*error);
  });
  observer_->OnJobFinished(job.parameters.model, outcome);
  if (error) {
    logger_->Warning("job_ended", {{"job", job.id},
                                   {"state", std::string(JobStateName(outcome))},
                                   {"reason", error->reason()},
                                   {"message", error->what()}});
  } else {
    logger_->Info("job_ended", {{"job", job.id}, {"state", "SUCCEEDED"}});
  }
}

namespace {

std::unique_ptr<JobStore> OpenStore(const EngineOptions& options, Logger* logger) {
  const auto max_finished = static_cast<size_t>(options.max_finished_jobs);
  const auto max_bytes = static_cast<size_t>(options.max_artifact_bytes);
  if (options.state_dir.empty()) return MakeMemoryJobStore(max_finished, max_bytes);
  return OpenJobStore({options.state_dir, max_finished, max_bytes, options.keep_results, nullptr},
                      logger);
}

}  // namespace

std::unique_ptr<Engine> Engine::Create(const EngineOptions& options, Observer* observer,
                                       Logger* logger) {
  auto store = OpenStore(options, logger);  // first: a folder in use is found before any load
  auto policy = std::make_unique<SelectionPolicy>(options.environment_backend);
  SetIntraOpThreads(options.threads);
  auto loaded = LoadPipelines(
      {options.model_repository, options.device, options.dtype, options.admit_unmeasured,
       options.variant, options.strict_repository, options.state_dir, options.linear,
       options.vae_dtype, options.keep_text_encoder},
      policy.get(), observer, logger);
  return std::make_unique<EngineImpl>(options, std::move(policy), std::move(loaded.pipelines),
                                      std::move(store), observer, logger,
                                      std::chrono::steady_clock::now, std::move(loaded.failed));
}

}  // namespace denoised
