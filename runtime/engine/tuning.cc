#include "runtime/engine/tuning.h"

#include <algorithm>
#include <set>
#include <utility>

#include "backends/cpu_isa.h"
#include "backends/intra_op.h"
#include "runtime/caught.h"
#include "runtime/engine/refusals.h"
#include "runtime/threads.h"
#include "runtime/version.h"

namespace denoised {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr char kDocument[] = "measurements";
constexpr int kRest = 4;  // times as long as a call took
// Of a call that nobody waits for: a job that comes meanwhile does.
constexpr double kMostOwnSeconds = 1;
// Clients that make one call after the other have none of those in between.
constexpr std::chrono::seconds kQuiet(1);

// What a measurement depends on beside the kind of call.
MeasuredOn HereOf(const DeviceInfo& device) {
  if (device.type == DeviceInfo::Type::kCpu) {
    return {Version(), device.name,
            KernelIdentity() + " threads=" + std::to_string(IntraOpThreads())};
  }
  return {Version(), device.name,
          "cuda " + std::to_string(device.major) + "." + std::to_string(device.minor) +
              " libtorch=" + LibTorchVersion()};
}

MeasuredTable TableFrom(const ControlStore& store, Logger* logger) {
  MeasuredTable table;
  const std::optional<std::string> kept = store.Find(kDocument);
  if (!kept) return table;
  if (const auto error = Caught([&] { table = MeasuredTable::Parse(*kept); })) {
    logger->Warning("measurements_unreadable", {{"reason", error->what()}});
  }
  return table;
}

void CheckList(const std::string& field, const std::vector<int64_t>& values, size_t count,
               int64_t most) {
  if (values.size() > count) {
    throw InvalidField(
        field, "at most " + std::to_string(count) + ", got " + std::to_string(values.size()));
  }
  for (const int64_t value : values) {
    if (value >= 1 && value <= most) continue;
    throw InvalidField(field,
                       "from 1 to " + std::to_string(most) + ", got " + std::to_string(value));
  }
}

// The layer's spec for a video of so many tokens: of frames like its own where they fill it.
AttentionSpec WithLength(AttentionSpec spec, int64_t tokens) {
  spec.q_len = tokens;
  if (spec.role != AttentionRole::kSelf) return spec;
  spec.kv_len = tokens;
  const int64_t frame = spec.grid[1] * spec.grid[2];
  const bool whole = frame > 0 && tokens % frame == 0;
  spec.grid = whole ? std::array<int64_t, 3>{tokens / frame, spec.grid[1], spec.grid[2]}
                    : std::array<int64_t, 3>{0, 0, 0};
  return spec;
}

// Of self-attention, cross-attention.
std::vector<MeasureShape> ShapesOf(const Pipeline& pipeline, const TuneQuery& query) {
  std::vector<AttentionSpec> specs;
  for (const AttentionSpec& own : pipeline.DenoiseSpecs(pipeline.info().defaults)) {
    if (query.lengths.empty()) specs.push_back(own);
    for (const int64_t length : query.lengths) specs.push_back(WithLength(own, length));
  }
  const std::vector<int64_t> rows = query.rows.empty() ? std::vector<int64_t>{1, 2} : query.rows;
  std::vector<MeasureShape> shapes;
  for (const AttentionSpec& spec : specs) {
    for (const int64_t count : rows) shapes.push_back({spec, count});
  }
  return shapes;
}

// Backends of this build that the layer lists, in the registry's order.
std::vector<AttnBackend> ListedOf(const AttentionSpec& spec, const BackendRegistry& registry) {
  std::vector<AttnBackend> listed;
  for (const BackendRegistry::Entry& entry : registry.entries()) {
    if (entry.backend != nullptr && spec.Lists(entry.id)) {
      listed.push_back(entry.id);
    }
  }
  return listed;
}

std::string BackendsOf(const MeasuredGroup& group) {
  std::string text;
  for (const MeasuredRow& row : group.rows) {
    text += (text.empty() ? "" : " ") + std::string(AttnBackendName(row.backend)) + "=" +
            std::to_string(row.seconds);
  }
  return text;
}

}  // namespace

// Of the engine's thread, but for `ended`.
struct Tuning::Run {
  bool own = false;  // nobody asked: what the engine measures when it has nothing else to do
  std::string who = "server";
  std::vector<MeasureShape> shapes;
  std::shared_ptr<CancelToken> cancel;  // may be null
  std::function<void(const TuneProgress&)> progress;
  std::function<void(std::optional<Error>)> done;
  std::atomic<bool> ended{false};

  size_t shape = 0;                    // that is measured
  std::vector<AttnBackend> backends;   // that are yet to be measured for it, the next one last
  std::optional<MeasuredGroup> group;  // of it; none: it has not begun
  MeasureLimits limits;
  std::string why_no_call;               // no call of it can be made; "" = one can
  std::unique_ptr<MeasuredCall> call;    // null: it has not begun, or none can be made
  std::unique_ptr<Measuring> measuring;  // of the next backend; null: it has not begun
  int64_t measured = 0, total = 0;

  bool cancelled() const { return cancel && cancel->cancelled; }
  void Tell(AttnBackend backend, const Measured& result) {
    TuneProgress said{ToText(group->key), backend, {}, {}, result.why_not, ++measured, total};
    if (result.row) said.seconds = result.row->seconds;
    if (result.row) said.relative_l2 = result.row->relative_l2;
    if (progress && !ended) progress(said);
  }
};

Tuning::Tuning(const Models& models, const Options& options, With with)
    : models_(models),
      registry_(*models.Find("")->planner_setting().registry),
      device_(models.Find("")->planner_setting().device),
      measurements_(models.Find("")->planner_setting().measurements),
      options_(options),
      with_(std::move(with)) {
  measurements().Open(HereOf(device_), options_.auto_error, TableFrom(*with_.store, with_.logger));
  const Measurements::Taken kept = measurements().Ignored();
  if (kept.ignored == 0) return;
  with_.logger->Warning("measurements_ignored", {{"count", std::to_string(kept.ignored)},
                                                 {"of", std::to_string(kept.groups)},
                                                 {"why", kept.why_ignored}});
}

Tuning::~Tuning() { Stop(); }

// ---- the callers' side

void Tuning::Tune(TuneQuery query, std::shared_ptr<CancelToken> cancel,
                  std::function<void(const TuneProgress&)> progress,
                  std::function<void(std::optional<Error>)> done) {
  const auto run = std::make_shared<Run>();
  run->who = query.who;
  run->cancel = std::move(cancel);
  run->progress = std::move(progress);
  run->done = std::move(done);
  const auto error = Caught([&] {
    run->shapes = WantedBy(query);
    for (const MeasureShape& shape : run->shapes) {
      run->total += static_cast<int64_t>(ListedOf(shape.spec, registry_).size());
    }
    const std::lock_guard lock(mutex_);
    if (stopped_) throw Draining();
    runs_.insert(std::ranges::find_if(runs_, [](const auto& other) { return other->own; }), run);
  });
  if (error) return run->done(error);
  with_.wake();
}

std::vector<MeasureShape> Tuning::WantedBy(const TuneQuery& query) const {
  CheckList("lengths", query.lengths, TuneQuery::kMaxLengths, TuneQuery::kLongest);
  CheckList("rows", query.rows, TuneQuery::kMaxRows, TuneQuery::kMostRows);
  const std::vector<PipelinePtr> pipelines =
      query.model.empty() ? models_.All() : std::vector<PipelinePtr>{models_.Find(query.model)};
  std::vector<MeasureShape> shapes;
  std::set<MeasuredKey> keys;  // each once: models may be alike
  for (const PipelinePtr& pipeline : pipelines) {
    for (MeasureShape& shape : ShapesOf(*pipeline, query)) {
      if (keys.insert(KeyOf(shape.spec, shape.rows)).second) shapes.push_back(std::move(shape));
    }
  }
  if (shapes.size() <= MeasuredTable::kMaxGroups) return shapes;
  throw InvalidField("lengths", "with all roles and rows at most " +
                                    std::to_string(MeasuredTable::kMaxGroups) +
                                    " kinds of calls, got " + std::to_string(shapes.size()));
}

std::string Tuning::Export() const { return measurements().table().ToJson(); }

ImportedMeasurements Tuning::Import(const std::string& json, const std::string& who) {
  const Measurements::Taken taken = measurements().Take(MeasuredTable::Parse(json));
  KeepTable();
  with_.audit->Write({.who = who,
                      .what = "tune",
                      .subject = "import",
                      .new_value = std::to_string(taken.groups) + " kinds of calls",
                      .reason = taken.why_ignored});
  return {taken.groups, taken.ignored, taken.why_ignored};
}

void Tuning::Stop() {
  std::deque<RunPtr> runs;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    runs = std::exchange(runs_, {});
  }
  for (const RunPtr& run : runs) End(run, Stopped());
}

void Tuning::KeepTable() {
  const std::lock_guard lock(keep_mutex_);
  with_.store->Keep(kDocument, Export());
}

// ---- the engine's thread

bool Tuning::Due(bool idle) const {
  if (stopped_) return false;
  const auto now = SteadyClock::now();
  {
    const std::lock_guard lock(mutex_);
    const bool asked = !runs_.empty() && !runs_.front()->own;
    if (asked) return idle || now >= rests_until_;
  }
  return idle && now >= quiet_since_ + kQuiet && HasOwn();
}

bool Tuning::HasOwn() const {
  if (stopped_ || !options_.when_idle) return false;
  {
    const std::lock_guard lock(mutex_);
    if (!runs_.empty() && runs_.back()->own) return true;
  }
  return measurements().HasMissing();
}

bool Tuning::RunDue(bool idle) {
  for (const RunPtr& run : Runs()) {  // who is cancelled does not wait for those before it
    if (run->cancelled()) End(run, Cancelled());
  }
  const RunPtr run = Due(idle) ? Current() : nullptr;
  if (run == nullptr) return false;
  Advance(run);
  if (!idle && run->call) run->call->LetGo();
  return run->call == nullptr;
}

void Tuning::MakeWay() {
  quiet_since_ = SteadyClock::now();
  for (const RunPtr& run : Runs()) {
    if (run->call) run->call->LetGo();
  }
}

void Tuning::Advance(const RunPtr& run) {
  const auto start = SteadyClock::now();
  const auto error = Caught([&] {
    if (run->shape < run->shapes.size()) Step(run.get());
  });
  rests_until_ = SteadyClock::now() + kRest * (SteadyClock::now() - start);
  // What nobody asked for shall not end the next server as well: it is missing no more.
  if (error && IsDeviceLost(*error) && run->own && run->measuring) {
    Caught([&] { Keep(*run, std::move(*run->group), error->what()); });
  }
  if (error || run->shape == run->shapes.size()) End(run, error);
  RethrowDeviceLost(error);
}

std::vector<Tuning::RunPtr> Tuning::Runs() const {
  const std::lock_guard lock(mutex_);
  return {runs_.begin(), runs_.end()};
}

Tuning::RunPtr Tuning::Current() {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return nullptr;
    if (!runs_.empty()) return runs_.front();
  }
  return options_.when_idle ? NewOwn() : nullptr;
}

Tuning::RunPtr Tuning::NewOwn() {
  auto missing = measurements().TakeMissing();
  if (!missing) return nullptr;
  const auto run = std::make_shared<Run>();
  run->own = true;
  run->shapes = {std::move(*missing)};
  const std::lock_guard lock(mutex_);
  if (stopped_) return nullptr;
  runs_.push_back(run);
  return run;
}

std::optional<Error> Tuning::WhyStop(const Run& run) const {
  if (run.cancelled()) return Cancelled();
  return stopped_ ? std::optional(Stopped()) : std::nullopt;
}

// One call; with the last one of a kind of call that kind counts.
void Tuning::Step(Run* run) {
  if (!run->group) BeginGroup(run);
  if (!run->backends.empty()) {
    const AttnBackend backend = run->backends.back();
    const auto measured = MeasureOn(run, backend);
    if (!measured) return;
    run->measuring.reset();
    run->backends.pop_back();
    if (measured->row) run->group->rows.push_back(*measured->row);
    run->Tell(backend, *measured);
  }
  if (run->backends.empty()) EndGroup(run);
}

std::optional<Measured> Tuning::MeasureOn(Run* run, AttnBackend backend) {
  if (!run->why_no_call.empty()) return Measured{std::nullopt, run->why_no_call};
  if (!run->measuring) {
    run->measuring = std::make_unique<Measuring>(backend, run->call.get(), registry_, run->limits);
  }
  return run->measuring->Advance();
}

void Tuning::BeginGroup(Run* run) {
  const MeasureShape& shape = run->shapes[run->shape];
  run->backends = ListedOf(shape.spec, registry_);
  std::ranges::reverse(run->backends);
  run->limits = {};
  if (run->own) run->limits.most_seconds = kMostOwnSeconds;
  run->limits.most_bytes = std::min(run->limits.most_bytes, with_.bytes_at_hand() / 3);
  run->limits.why_stop = [this, run] { return WhyStop(*run); };
  run->group = MeasuredGroup{};
  const auto error = Caught([&] {
    run->call = std::make_unique<MeasuredCall>(shape, device_, run->limits);
    run->group = run->call->Group();
  });
  RethrowDeviceLost(error);
  run->why_no_call = error ? error->what() : "";
  run->group->key = KeyOf(shape.spec, shape.rows);
}

void Tuning::EndGroup(Run* run) {
  MeasuredGroup group = std::move(*run->group);
  run->group.reset();
  run->call.reset();
  ++run->shape;
  if (group.rows.empty()) return;
  Keep(*run, std::move(group), run->own ? "measured when idle" : "measured");
}

void Tuning::Keep(const Run& run, MeasuredGroup group, const std::string& why) {
  const MeasuredKey key = group.key;
  with_.logger->Info("measured", {{"key", ToText(key)}, {"seconds", BackendsOf(group)}});
  const std::string before = FirstFor(key);
  measurements().Put(std::move(group));
  KeepTable();
  with_.audit->Write({.who = run.who,
                      .what = "tune",
                      .subject = ToText(key),
                      .old_value = before,
                      .new_value = FirstFor(key),
                      .reason = why});
}

// "FLASH_ATTN, 0.00021 s a call, error 1.6e-07"; "" = nothing is measured.
std::string Tuning::FirstFor(const MeasuredKey& key) const {
  const auto fastest = measurements().OrderOf(key, registry_).fastest_first;
  if (fastest.empty()) return "";
  return std::string(AttnBackendName(fastest.front().backend)) + ", " + ToText(fastest.front());
}

void Tuning::End(const RunPtr& run, const std::optional<Error>& error) {
  {
    const std::lock_guard lock(mutex_);
    std::erase(runs_, run);
  }
  if (!run->ended.exchange(true) && run->done) run->done(error);
}

}  // namespace denoised
