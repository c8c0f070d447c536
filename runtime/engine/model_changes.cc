// What operators change of the models while others serve: one change at a time, on a thread of its
// own. The engine's thread sees nothing of it but other models in the table.
#include <algorithm>
#include <utility>

#include "backends/intra_op.h"
#include "backends/stop_point.h"
#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/refusals.h"
#include "runtime/loaders/visible_text.h"
#include "runtime/threads.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr std::chrono::seconds kAnotherChange(5);

// Weights are read and packed beside the work: with few threads.
int ThreadsToLoad() { return std::max(1, IntraOpThreads() / 4); }

// Not the folder's fault: nothing is said of it, and nothing was tried.
bool IsRefusal(const Error& error) {
  return error.code() == StatusCode::kUnavailable || error.reason() == "MEMORY";
}

// Then the name is the caller's alone.
bool IsOfNoFolder(const Error& error) {
  return error.reason() == "MODEL_NOT_FOUND" || error.reason() == "REPOSITORY_UNREADABLE";
}

std::string Counted(int64_t count, const std::string& one, const std::string& many) {
  return std::to_string(count) + " " + (count == 1 ? one : many);
}

}  // namespace

void EngineImpl::PostChange(const std::string& name, std::function<void()> change) {
  if (name.empty()) throw InvalidField("name", "must not be empty");
  const std::lock_guard lock(mutex_);
  if (draining_) throw Draining();
  if (!changing_.empty()) {
    throw Error(StatusCode::kAborted,
                "model " + changing_ + " is being loaded or unloaded: one change at a time", "",
                "MODEL_CHANGING")
        .RetryAfter(kAnotherChange);
  }
  changing_ = name;
  changes_.Post(std::move(change));
}

void EngineImpl::EndChange() {
  ReturnUnusedMemory();
  const std::lock_guard lock(mutex_);
  changing_.clear();
}

// ---- load --------------------------------------------------------------------------------------

void EngineImpl::LoadModel(ModelChange change, LoadDone done) {
  const auto refusal = Caught([&] {
    if (source_ == nullptr) {
      throw Error(StatusCode::kUnimplemented, "this engine has no model repository");
    }
    PostChange(change.name, [this, change, done] {
      ModelLoaded loaded;
      auto error = Caught([&] {
        loaded = Load(change.name);
        ForgetFailed(change.name);
        AuditLoad(change, loaded.previous_digest, loaded.model.model_digest);
      });
      if (error) error = NotLoaded(change, *error);
      EndChange();
      error ? done(*error) : done(std::move(loaded));
    });
  });
  if (refusal) done(*refusal);
}

ModelLoaded EngineImpl::Load(const std::string& name) {
  const auto start = SteadyClock::now();
  auto passing = std::make_unique<PassingBytes>(models_.bytes());
  std::unique_ptr<Pipeline> pipeline;
  RunOnPassingThread(ThreadsToLoad(), [&] {
    const ScopedStopCheck stop(
        [this] { return draining_ ? std::optional(Draining()) : std::nullopt; });
    pipeline = source_->Load(name, [&](int64_t bytes) {
      RequireMemoryToLoad(name, bytes);
      passing->Set(bytes);
    });
  });
  ModelLoaded loaded;
  loaded.model = pipeline->info();
  const auto before = models_.Served(name);
  if (before) loaded.previous_digest = before->model_digest;
  // Elsewhere they are swapped in all the same: the place of the older ones may go.
  loaded.unchanged = before && before->model_digest == loaded.model.model_digest &&
                     before->folder == loaded.model.folder;
  if (!loaded.unchanged) loaded.on_previous = Serve(std::move(pipeline), std::move(passing));
  if (auto served = models_.Served(name)) loaded.model = *std::move(served);
  loaded.seconds = SecondsSince(start);
  return loaded;
}

// Work stays admitted: it lives beside both of them until the older one goes.
void EngineImpl::RequireMemoryToLoad(const std::string& name, int64_t bytes) {
  WorkEstimate estimate;
  estimate.peak_bytes = bytes;
  int64_t held = 0;
  {
    const std::lock_guard lock(mutex_);
    held = HeldBesideResults() + table_.resident_bytes() + table_.largest_excess();
  }
  const auto error = Caught([&] { RequireBesideResults("loading model " + name, estimate, held); });
  if (!error) return;
  throw Error(error->code(),
              std::string(error->what()) +
                  ". To unload a model first makes room, as does a larger --max_memory",
              "", error->reason());
}

// How many jobs and sessions go on with the model that it takes the place of.
int64_t EngineImpl::Serve(std::unique_ptr<Pipeline> pipeline,
                          std::unique_ptr<PassingBytes> passing) {
  Guard(*pipeline);
  const std::string name = pipeline->info().name;
  int64_t on_previous = 0;
  PipelinePtr before;  // goes without the lock
  {
    const std::lock_guard lock(mutex_);
    if (draining_) throw Draining();
    before = models_.Serve(std::move(pipeline), std::move(passing));
    follows_ = true;
    for (const JobPtr& job : table_.Jobs()) {
      on_previous += job->started && table_.InQueue(job->number) && job->parameters.model == name;
    }
    for (const SessionPtr& session : table_.Sessions()) {
      on_previous += session->parameters.model == name;
    }
  }
  wake_.notify_one();
  return on_previous;
}

// What the caller is told. The model that served goes on.
Error EngineImpl::NotLoaded(const ModelChange& change, const Error& error) {
  if (IsRefusal(error)) return error;
  const auto serving = models_.Served(change.name);
  if (!serving && IsOfNoFolder(error)) {
    if (error.reason() == "MODEL_NOT_FOUND") ForgetFailed(change.name);
    return error;
  }
  const std::string digest = serving ? serving->model_digest : "";
  const FailedModel failed = FailureOf(change.name, error);
  models_.NoteFailed(failed);
  observer_->OnModelFailed(failed.name, failed.reason);
  logger_->Error("model_failed", {{"model", failed.name},
                                  {"reason", failed.reason},
                                  {"message", failed.message},
                                  {"serves", digest}});
  AuditLoad(change, digest, "not loaded: " + failed.reason + ": " + failed.message);
  const bool gone = error.reason() == "MODEL_NOT_FOUND";
  return Error(gone ? StatusCode::kNotFound : StatusCode::kFailedPrecondition, failed.message,
               gone ? "name" : "", failed.reason);
}

void EngineImpl::ForgetFailed(const std::string& name) {
  const std::string shown = VisibleText(name);
  models_.ForgetFailed(shown);
  observer_->OnModelFailureGone(shown);
}

void EngineImpl::AuditLoad(const ModelChange& change, const std::string& before,
                           const std::string& after) {
  audit_.Write({.who = change.who,
                .what = "load_model",
                .subject = change.name,
                .old_value = before,
                .new_value = after,
                .reason = change.reason});
}

// ---- unload ------------------------------------------------------------------------------------

void EngineImpl::UnloadModel(ModelChange change, UnloadDone done) {
  const auto refusal = Caught([&] {
    PostChange(change.name, [this, change, done] {
      ModelUnloaded unloaded;
      const auto error = Caught([&] { unloaded = Unload(change); });
      EndChange();
      error ? done(*error) : done(unloaded);
    });
  });
  if (refusal) done(*refusal);
}

ModelUnloaded EngineImpl::Unload(const ModelChange& change) {
  const std::string& name = change.name;
  std::vector<WorkPtr> waiting;
  Going going;
  ModelUnloaded unloaded;
  PipelinePtr pipeline;
  {
    const std::lock_guard lock(mutex_);
    if (draining_) throw Draining();
    models_.RequireRemovable(name);
    if (!change.force) RequireUnused(name);
    pipeline = models_.Remove(name);
    going = {Models::PresenceOf(pipeline)};
    unloaded = TakeFrom(name, &waiting, &going);
    session_news_ = true;
  }
  wake_.notify_one();
  for (const WorkPtr& work : waiting) EndWaiting(work, Unloaded(name));
  waiting.clear();
  const std::string digest = pipeline->info().model_digest;
  pipeline.reset();
  AwaitGone(going);
  observer_->OnModelUnloaded(name);
  logger_->Info("model_unloaded", {{"model", name}, {"model_digest", digest}});
  audit_.Write({.who = change.who,
                .what = "unload_model",
                .subject = name,
                .old_value = digest,
                .new_value = Counted(unloaded.ended_jobs, "job", "jobs") + " and " +
                             Counted(unloaded.ended_sessions, "session", "sessions") + " ended",
                .reason = change.reason});
  return unloaded;
}

// Jobs that are done with the device need it no longer.
void EngineImpl::RequireUnused(const std::string& model) const {
  int64_t waiting = 0, running = 0, suspended = 0, calls = 0, sessions = 0;
  for (const JobPtr& job : table_.Jobs()) {
    if (job->parameters.model != model || job->closing) continue;
    const bool queued = table_.InQueue(job->number) != nullptr;
    (job->begun ? running : queued ? waiting : suspended) += queued || !job->begun;
  }
  for (const auto& [job, work] : entering_) waiting += job->parameters.model == model;
  for (const WorkPtr& work : table_.All()) {
    calls += !work->is_job() && !work->is_session() && work->pipeline->info().name == model;
  }
  for (const SessionPtr& session : table_.Sessions()) {
    sessions += session->parameters.model == model;
  }
  if (waiting + running + suspended + calls + sessions == 0) return;
  throw Error(StatusCode::kFailedPrecondition,
              "model " + model + " has work: " + Counted(waiting, "job waits", "jobs wait") + ", " +
                  Counted(running, "runs", "run") + ", " +
                  Counted(suspended, "is suspended", "are suspended") + ", and " +
                  Counted(sessions, "session", "sessions") + " and " +
                  Counted(calls, "Denoise call", "Denoise calls") + "; with force they end",
              "", "MODEL_BUSY");
}

// Begun work ends at its next stop point; what waits is the caller's to end.
ModelUnloaded EngineImpl::TakeFrom(const std::string& model, std::vector<WorkPtr>* waiting,
                                   Going* going) {
  ModelUnloaded taken;
  const auto end = [&](const WorkPtr& work) {
    work->unloaded = true;
    going->push_back(Models::PresenceOf(work->pipeline));
    if (work->begun) {
      asked_.push_back(work->number);
    } else {
      Close(work);
      waiting->push_back(work);
    }
  };
  for (const JobPtr& job : table_.Jobs()) {
    const bool encodes = job->begun && table_.InQueue(job->number) == nullptr;
    if (job->parameters.model != model || job->closing || encodes) continue;
    end(job);
    ++taken.ended_jobs;
  }
  for (const WorkPtr& work : table_.All()) {
    const bool is_call = !work->is_job() && !work->is_session();
    if (is_call && work->pipeline->info().name == model) end(work);
  }
  for (const SessionPtr& session : table_.Sessions()) {
    if (session->parameters.model != model) continue;
    session->ended = true;
    end(session);
    ++taken.ended_sessions;
  }
  return taken;
}

// Whoever loads another one next counts on its memory.
void EngineImpl::AwaitGone(const Going& models) {
  constexpr std::chrono::milliseconds kLook(10);
  std::unique_lock lock(mutex_);
  const auto used = [&] {
    return std::ranges::any_of(models, [](const auto& one) { return !one.expired(); });
  };
  while (used() && !draining_) idle_.wait_for(lock, kLook);
}

}  // namespace denoised
