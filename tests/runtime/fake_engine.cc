#include "tests/runtime/fake_engine.h"

#include <gtest/gtest.h>

#include <utility>

#include "backends/stop_point.h"

namespace denoised {

void RecordingStore::Accept(const JobSnapshot& job, const GenerationRequest& request,
                            std::function<void(Added)> done) {
  if (on_add) on_add(request);
  inner().Accept(job, request, [this, done = std::move(done)](Added added) {
    if (const auto* kept = std::get_if<std::pair<JobSnapshot, bool>>(&added)) Record(kept->first);
    done(std::move(added));
  });
}

std::vector<JobStore::Started> RecordingStore::StartAll(const std::vector<std::string>& ids) {
  const auto before = Sequences(ids);
  auto started = inner().StartAll(ids);
  RecordAfter(before);
  return started;
}

void RecordingStore::Interrupt(const std::string& id) {
  const auto before = Sequences({id});
  inner().Interrupt(id);
  RecordAfter(before);
}

std::optional<JobSnapshot> RecordingStore::Update(const std::string& id,
                                                  const std::function<void(JobSnapshot&)>& change) {
  auto after = inner().Update(id, change);
  if (after) Record(*after);
  if (after && on_change) on_change(*after);
  return after;
}

void RecordingStore::PutArtifact(const std::string& id, ArtifactInfo info, std::string bytes) {
  if (on_artifact) on_artifact(info);
  inner().PutArtifact(id, std::move(info), std::move(bytes));
}

uint64_t RecordingStore::Touch(const std::string& id) {
  auto job = inner().Get(id);
  const uint64_t sequence = inner().Touch(id);
  if (!job || sequence == 0) return sequence;
  job->sequence = sequence;
  Record(*job);
  return sequence;
}

void RecordingStore::Record(const JobSnapshot& job) {
  const std::lock_guard lock(mutex_);
  events_[job.id][job.sequence] = job;
}

std::map<std::string, uint64_t> RecordingStore::Sequences(const std::vector<std::string>& ids) {
  std::map<std::string, uint64_t> sequences;
  for (const std::string& id : ids) {
    if (const auto job = inner().Get(id)) sequences[id] = job->sequence;
  }
  return sequences;
}

void RecordingStore::RecordAfter(const std::map<std::string, uint64_t>& sequences) {
  for (const auto& [id, sequence] : sequences) {
    const std::vector<JobSnapshot> states = Replay(inner(), id, sequence);
    const std::lock_guard lock(mutex_);
    for (const JobSnapshot& job : states) events_[id].try_emplace(job.sequence, job);
  }
}

std::vector<JobSnapshot> RecordingStore::History(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  std::vector<JobSnapshot> history;
  if (const auto found = events_.find(id); found != events_.end()) {
    for (const auto& [sequence, job] : found->second) history.push_back(job);
  }
  return history;
}

FakeEngine::FakeEngine(EngineOptions options, bool steps_open, int64_t num_layers,
                       const std::function<void(FakeModel*)>& set_up)
    : log_stream(std::tmpfile()), logger(log_stream) {
  if (!steps_open) model.steps.Close();
  model.num_layers = num_layers;
  if (set_up) set_up(&model);
  auto policy = std::make_unique<SelectionPolicy>(options.environment_backend, clock.function());
  LoadedRepository loaded;
  loaded.pipelines.push_back(
      std::make_unique<FakePipeline>(&model, policy.get(), clock.function()));
  loaded.default_model = model.name;
  auto folders = std::make_unique<FakeSource>(policy.get());
  source = folders.get();
  loaded.source = std::move(folders);
  auto inner = options.state_dir.empty()
                   ? MakeMemoryJobStore(static_cast<size_t>(options.max_finished_jobs),
                                        static_cast<size_t>(options.max_artifact_bytes))
                   : OpenJobStore({.state_dir = options.state_dir,
                                   .max_finished = static_cast<size_t>(options.max_finished_jobs),
                                   .hooks = model.store_hooks},
                                  &logger);
  auto recording = std::make_unique<RecordingStore>(std::move(inner));
  recording->on_kept_bytes = model.on_kept_bytes;
  store = recording.get();
  engine = std::make_unique<EngineImpl>(options, std::move(policy), std::move(loaded),
                                        std::move(recording), &observer, &logger, clock.function(),
                                        model.unit_clock);
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

std::string FakeEngine::StartBlocked(const std::string& prompt,
                                     std::function<void(GenerationRequest&)> edit) {
  model.steps.Close();
  const int64_t before = model.steps.arrivals();
  const std::string id = Submit(prompt, std::move(edit));
  EXPECT_TRUE(model.steps.AwaitArrival(before + 1));
  return id;
}

bool FakeEngine::Await(const std::string& id,
                       const std::function<bool(const JobSnapshot&)>& condition) {
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
        ADD_FAILURE() << "job " << id << " did not come so far";
        return false;
      }
      bell->news = false;
    }
    if (condition(Get(id))) return true;
  }
}

JobSnapshot FakeEngine::AwaitEnd(const std::string& id) {
  Await(id, [](const JobSnapshot& job) { return IsTerminal(job.state); });
  return Get(id);
}

std::unique_ptr<Pipeline> FakeSource::Load(const std::string& name, const AdmitWeights& admit) {
  const auto found = folders.find(name);
  if (found == folders.end()) {
    throw Error(StatusCode::kNotFound, "name: no folder " + name, "name", "MODEL_NOT_FOUND");
  }
  admit(found->second->weight_bytes);
  loads.Pass();
  StopPoint();
  if (on_load) on_load();
  return std::make_unique<FakePipeline>(found->second, policy_);
}

std::variant<ModelLoaded, Error> FakeEngine::Load(const std::string& name) {
  Promised<std::variant<ModelLoaded, Error>> outcome;
  engine->LoadModel({name, false, "a test", ""}, [&](auto came) { outcome.Set(std::move(came)); });
  EXPECT_TRUE(outcome.Await());
  return outcome.value();
}

std::variant<ModelUnloaded, Error> FakeEngine::Unload(const std::string& name, bool force) {
  Promised<std::variant<ModelUnloaded, Error>> outcome;
  engine->UnloadModel({name, force, "a test", ""},
                      [&](auto came) { outcome.Set(std::move(came)); });
  EXPECT_TRUE(outcome.Await());
  return outcome.value();
}

GenerationRequest SmallRequest(const std::string& prompt) {
  GenerationRequest request;
  request.prompt = prompt;
  request.seed = 7;
  request.formats = {ArtifactFormat::kSafetensors};
  return request;
}

}  // namespace denoised
