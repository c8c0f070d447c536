#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "runtime/scope.h"
#include "server/metrics_series.h"

namespace denoised {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;

using Counters = Series<Counter>;
using GaugeSeries = Series<Gauge>;
using Histograms = Series<Histogram, Histogram::BucketBoundaries>;
using Names = std::vector<std::string>;

constexpr size_t kPieceBytes = 32 << 10;  // of a page

// Moves a counter on to a total that somebody else keeps.
void AdvanceTo(uint64_t total, const Counters::Held& counter) {
  counter->Increment(std::max(0.0, static_cast<double>(total) - counter->Value()));
}

}  // namespace

struct Metrics::Families {
  Counters Count(const std::string& name, const std::string& help, const Names& labels) {
    return {FamilyText(name, help, Counter::metric_type, labels), &all};
  }
  GaugeSeries Level(const std::string& name, const std::string& help, const Names& labels) {
    return {FamilyText(name, help, Gauge::metric_type, labels), &all};
  }
  Histograms Spread(const std::string& name, const std::string& help, const Names& labels,
                    const Histogram::BucketBoundaries& buckets) {
    return {FamilyText(name, help, Histogram::metric_type, labels, buckets), &all, buckets};
  }

  std::vector<const AnySeries*> all;  // in the order of the page

  Histograms forward_seconds =
      Spread("denoised_forward_seconds",
             "Time of one transformer forward, by the backend of its self-attention.",
             {"model", "backend", "branch"}, SecondsBuckets());
  Histograms forward_batch_size =
      Spread("denoised_forward_batch_size", "Rows of one forward.", {"model"}, BatchBuckets());
  Histograms forward_batch_tokens =
      Spread("denoised_forward_batch_tokens", "Tokens of one forward, over all its rows.",
             {"model"}, TokenBuckets());
  Histograms step_seconds =
      Spread("denoised_step_seconds", "Time of one denoising step.", {"model"}, SecondsBuckets());
  Histograms stage_seconds = Spread("denoised_stage_seconds", "Time of one stage of a job.",
                                    {"model", "stage"}, SecondsBuckets());
  Counters prompt_cache_hits =
      Count("denoised_prompt_cache_hits_total", "Prompts whose embeddings were kept.", {"model"});
  Counters prompt_cache_misses = Count("denoised_prompt_cache_misses_total",
                                       "Prompts that the text encoder had to run for.", {"model"});
  GaugeSeries prompt_cache_bytes =
      Level("denoised_prompt_cache_bytes", "Memory of kept embeddings.", {"model"});
  Histograms attention_seconds =
      Spread("denoised_attention_seconds", "Attention time of one forward, summed over its layers.",
             {"backend", "role"}, SecondsBuckets());
  Counters attention_calls =
      Count("denoised_attention_calls_total", "Attention calls.", {"backend", "role"});
  Counters attention_fallback =
      Count("denoised_attention_fallback_total",
            "Wishes for a backend that were refused, by who wished, and what ran instead.",
            {"from", "to", "reason"});
  Counters backend_switch =
      Count("denoised_backend_switch_total",
            "Changes of the self-attention backend between two steps of a job.", {"cause"});
  Counters rollback = Count("denoised_rollback_total",
                            "Units that were undone and done again without a backend, and why.",
                            {"backend", "cause"});
  Histograms shadow_relative_l2 = Spread(
      "denoised_shadow_relative_l2",
      "How far a candidate's output of an attention call was from the baseline's; of 100 and "
      "more, or not finite, as 100.",
      {"baseline", "candidate", "role", "sigma_band"}, ErrorBuckets());
  Counters shadow_seconds =
      Count("denoised_shadow_seconds_total",
            "Time that comparisons of backends have held work up by: within --shadow_budget.", {});
  // Those that have been open since the start.
  GaugeSeries breaker_open =
      Level("denoised_breaker_open", "1 while a circuit breaker of the backend is not closed.",
            {"model", "backend"});
  GaugeSeries lease_active =
      Level("denoised_lease_active",
            "Forces that are live now, by the kinds that their scopes name.", {"scope", "backend"});
  GaugeSeries queue_depth = Level("denoised_queue_depth", "Jobs that wait.", {});
  GaugeSeries jobs_running = Level("denoised_jobs_running", "Jobs that run.", {});
  GaugeSeries sessions = Level("denoised_sessions_open", "Sessions that are open.", {});
  GaugeSeries engine_hung =
      Level("denoised_engine_hung",
            "1 while a unit of work takes far longer than it should: the process ends soon where "
            "it does not.",
            {});
  GaugeSeries memory_pressure =
      Level("denoised_memory_pressure",
            "What requests, results, watchers and connections take of the memory that is left to "
            "them: from 0.85 new work is refused, from 0.92 watchers are sent away, from 0.95 new "
            "connections are closed.",
            {});
  Counters memory_shed =
      Count("denoised_memory_shed_total",
            "What was sent away because memory was short: work, watchers, connections.", {"what"});
  Histograms queue_wait_seconds =
      Spread("denoised_queue_wait_seconds", "Time of a job between its acceptance and its start.",
             {"priority"}, SecondsBuckets());
  Counters preemptions = Count("denoised_preemptions_total",
                               "Jobs that had begun and were passed over for another.", {"model"});
  Histograms checkpoint_seconds = Spread(
      "denoised_checkpoint_seconds", "Time that a checkpoint of a running job held the device up.",
      {"model"}, SecondsBuckets());
  Counters jobs_put_away =
      Count("denoised_jobs_put_away_total",
            "Jobs that were moved to their checkpoints to make room in memory.", {"model"});
  Counters jobs_resumed =
      Count("denoised_jobs_resumed_total",
            "Jobs that went on after they were put aside or their server ended, and from where.",
            {"model", "from"});
  Counters jobs = Count("denoised_jobs_total", "Ended jobs.", {"model", "outcome"});
  Histograms rpc_seconds = Spread("denoised_rpc_seconds", "Time of one call, streams included.",
                                  {"method", "code"}, SecondsBuckets());
  Histograms model_load_seconds =
      Spread("denoised_model_load_seconds", "Time to load a model.", {"model"}, SecondsBuckets());
  // At most as many as a repository may have models.
  GaugeSeries model_load_failed =
      Level("denoised_model_load_failed",
            "1 for a model folder whose last loading failed, and why; an earlier one may serve.",
            {"model", "reason"});
  GaugeSeries models_failed =
      Level("denoised_models_failed", "Model folders whose last loading failed.", {});
  Counters model_unloads =
      Count("denoised_model_unloads_total", "Models that an operator took away.", {"model"});
  GaugeSeries connections =
      Level("denoised_connections", "Connections that are open now.", {"listener"});
  Counters connections_refused =
      Count("denoised_connections_refused_total",
            "Connections that were closed because there were too many, or memory was short.",
            {"listener"});
  Counters log_lines_dropped =
      Count("denoised_log_lines_dropped_total",
            "Log lines that were dropped because stderr took nothing.", {});
  GaugeSeries build_info = Level("denoised_build_info", "Always 1; says what runs.", {"version"});

  // Forces of everything have a series for each backend, which is 0 where there is none; other
  // kinds of scope have theirs for as long as there is one.
  void ShowLeases(std::map<std::pair<AttnBackend, std::string>, int> live) {
    const std::string server = KindsText({});
    for (AttnBackend backend : AllAttnBackends()) live.try_emplace({backend, server}, 0);
    std::set<Names> shown;
    for (const auto& [key, count] : live) {
      const std::string_view backend = AttnBackendName(key.first);
      lease_active.At({key.second, backend})->Set(count);
      shown.insert({key.second, std::string(backend)});
    }
    lease_active.KeepOnly(shown);
  }

  // A series that was 1 is 0 afterwards.
  void ShowBreakers(const std::set<std::pair<std::string, AttnBackend>>& open) {
    breakers.insert(open.begin(), open.end());
    for (const auto& [model, backend] : breakers) {
      breaker_open.At({model, AttnBackendName(backend)})
          ->Set(open.contains({model, backend}) ? 1 : 0);
    }
  }

  std::mutex source_mutex;
  std::set<std::pair<std::string, AttnBackend>> breakers;  // ever open; guarded by source_mutex
  std::function<Gauges()> source;                          // guarded by source_mutex
};

Metrics::Metrics(const std::string& version) : families_(std::make_unique<Families>()) {
  families_->build_info.At({version})->Set(1);
  // A series that never moved is 0, not absent: alerts and rates need the first point.
  families_->queue_depth.At({});
  families_->jobs_running.At({});
  families_->sessions.At({});
  families_->engine_hung.At({});
  families_->memory_pressure.At({});
  for (const char* what : {"work", "watchers", "connections"}) families_->memory_shed.At({what});
  for (Priority priority : {Priority::kBatch, Priority::kNormal, Priority::kUrgent}) {
    families_->queue_wait_seconds.At({PriorityName(priority)});
  }
  families_->models_failed.At({});
  families_->shadow_seconds.At({});
  StartCounters();
}

void Metrics::StartCounters() {
  constexpr std::array kRoles = {AttentionRole::kSelf, AttentionRole::kCross,
                                 AttentionRole::kTextEncoder, AttentionRole::kVae};
  for (SelectionSource source : kSelectionSources) {
    families_->backend_switch.At({SelectionSourceName(source)});
  }
  for (AttnBackend backend : AllAttnBackends()) {
    for (AttentionRole role : kRoles) {
      families_->attention_calls.At({AttnBackendName(backend), AttentionRoleName(role)});
    }
    StartFallbacks(backend);
  }
}

// To what automatic selection may take here: the rest is open, and would be a thousand zeros.
void Metrics::StartFallbacks(AttnBackend from) {
  for (const BackendRegistry::Entry& to : BackendRegistry::Default().entries()) {
    if (!to.automatic || to.backend == nullptr || to.id == from) continue;
    for (SelectionSource source : kSelectionSources) {
      if (source == SelectionSource::kAutomatic) continue;
      families_->attention_fallback.At(
          {AttnBackendName(from), AttnBackendName(to.id), SelectionSourceName(source)});
    }
  }
}

Metrics::~Metrics() = default;

void Metrics::OnForward(const std::string& model, AttnBackend self_attention, Branch branch,
                        int64_t batch_size, int64_t batch_tokens, double seconds) {
  families_->forward_seconds.At({model, AttnBackendName(self_attention), BranchName(branch)})
      ->Observe(seconds);
  families_->forward_batch_size.At({model})->Observe(static_cast<double>(batch_size));
  families_->forward_batch_tokens.At({model})->Observe(static_cast<double>(batch_tokens));
}

void Metrics::OnStep(const std::string& model, double seconds) {
  families_->step_seconds.At({model})->Observe(seconds);
}

void Metrics::OnStage(const std::string& model, JobStage stage, double seconds) {
  families_->stage_seconds.At({model, JobStageName(stage)})->Observe(seconds);
}

void Metrics::OnPrompt(const std::string& model, bool cached, int64_t cache_bytes) {
  (cached ? families_->prompt_cache_hits : families_->prompt_cache_misses).At({model})->Increment();
  families_->prompt_cache_bytes.At({model})->Set(static_cast<double>(cache_bytes));
}

void Metrics::OnAttention(AttnBackend backend, AttentionRole role, uint64_t calls,
                          std::optional<double> seconds) {
  const std::string_view name = AttnBackendName(backend), place = AttentionRoleName(role);
  if (seconds) families_->attention_seconds.At({name, place})->Observe(*seconds);
  families_->attention_calls.At({name, place})->Increment(static_cast<double>(calls));
}

void Metrics::OnFallback(AttnBackend from, AttnBackend to, SelectionSource source) {
  families_->attention_fallback
      .At({AttnBackendName(from), AttnBackendName(to), SelectionSourceName(source)})
      ->Increment();
}

void Metrics::OnBackendSwitch(SelectionSource cause) {
  families_->backend_switch.At({SelectionSourceName(cause)})->Increment();
}

void Metrics::OnRollback(AttnBackend backend, std::string_view cause) {
  families_->rollback.At({AttnBackendName(backend), cause})->Increment();
}

void Metrics::OnShadow(AttnBackend baseline, AttnBackend candidate, AttentionRole role,
                       std::string_view sigma_band, double relative_l2) {
  constexpr double kFar = 100;  // an infinity would be the sum for ever
  families_->shadow_relative_l2
      .At({AttnBackendName(baseline), AttnBackendName(candidate), AttentionRoleName(role),
           sigma_band})
      ->Observe(std::min(relative_l2, kFar));
}

void Metrics::OnShadowSeconds(double seconds) {
  families_->shadow_seconds.At({})->Increment(seconds);
}

void Metrics::OnJobStarted(const std::string& model, Priority priority, double queue_wait_seconds) {
  families_->queue_wait_seconds.At({PriorityName(priority)})->Observe(queue_wait_seconds);
}

void Metrics::OnCheckpoint(const std::string& model, double seconds) {
  families_->checkpoint_seconds.At({model})->Observe(seconds);
}

void Metrics::OnPreemption(const std::string& model) {
  families_->preemptions.At({model})->Increment();
}

void Metrics::OnPutAway(const std::string& model, double) {
  families_->jobs_put_away.At({model})->Increment();
}

void Metrics::OnJobResumed(const std::string& model, bool from_checkpoint) {
  families_->jobs_resumed.At({model, from_checkpoint ? "checkpoint" : "beginning"})->Increment();
}

void Metrics::OnJobFinished(const std::string& model, JobState outcome) {
  families_->jobs.At({model, JobStateName(outcome)})->Increment();
}

void Metrics::OnModelLoaded(const std::string& model, double seconds) {
  families_->model_load_seconds.At({model})->Observe(seconds);
  families_->model_unloads.At({model});
  ForgetFailures(model);
  for (JobState outcome : {JobState::kSucceeded, JobState::kFailed, JobState::kCancelled}) {
    families_->jobs.At({model, JobStateName(outcome)});
  }
  families_->prompt_cache_hits.At({model});
  families_->prompt_cache_misses.At({model});
  families_->prompt_cache_bytes.At({model});
  families_->preemptions.At({model});
  families_->checkpoint_seconds.At({model});
  families_->jobs_put_away.At({model});
  for (const char* from : {"checkpoint", "beginning"}) families_->jobs_resumed.At({model, from});
}

void Metrics::OnModelFailed(const std::string& model, const std::string& reason) {
  families_->model_load_failed.At({model, reason})->Set(1);
  ForgetFailures(model, reason);
}

void Metrics::OnModelUnloaded(const std::string& model) {
  families_->model_unloads.At({model})->Increment();
  families_->prompt_cache_bytes.At({model})->Set(0);
}

// A folder has one, of its last loading: the others go.
void Metrics::ForgetFailures(const std::string& model, const std::string& but) {
  const size_t left = families_->model_load_failed.Forget(
      [&](const Names& values) { return values[0] == model && values[1] != but; });
  families_->models_failed.At({})->Set(static_cast<double>(left));
}

void Metrics::OnRpc(std::string_view method, std::string_view code, double seconds) {
  families_->rpc_seconds.At({method, code})->Observe(seconds);
}

void Metrics::SetGaugeSource(std::function<Gauges()> source) {
  std::lock_guard lock(families_->source_mutex);
  families_->source = std::move(source);
}

std::function<bool(std::string*)> Metrics::Page() {
  ReadGauges();
  return [families = families_.get(), family = size_t{0},
          place = AnySeries::Place()](std::string* piece) mutable {
    const size_t full = piece->size() + kPieceBytes;  // more of the page may be in it
    for (; family < families->all.size(); ++family, place = {}) {
      if (!families->all[family]->Append(&place, full, piece)) return true;
    }
    return false;
  };
}

void Metrics::ReadGauges() {
  // Held while the source runs, so that SetGaugeSource({}) ends its use for good.
  std::lock_guard lock(families_->source_mutex);
  const Gauges gauges = families_->source ? families_->source() : Gauges{};
  families_->queue_depth.At({})->Set(static_cast<double>(gauges.queue_depth));
  families_->jobs_running.At({})->Set(static_cast<double>(gauges.jobs_running));
  families_->sessions.At({})->Set(static_cast<double>(gauges.sessions));
  families_->engine_hung.At({})->Set(gauges.hung ? 1 : 0);
  families_->memory_pressure.At({})->Set(gauges.memory_pressure);
  for (const auto& [what, count] : gauges.memory_shed) {
    AdvanceTo(static_cast<uint64_t>(count), families_->memory_shed.At({what}));
  }
  AdvanceTo(gauges.log_lines_dropped, families_->log_lines_dropped.At({}));
  for (const auto& [listener, connections] : gauges.connections) {
    families_->connections.At({listener})->Set(static_cast<double>(connections.open));
    AdvanceTo(static_cast<uint64_t>(connections.refused),
              families_->connections_refused.At({listener}));
  }
  families_->ShowLeases(gauges.leases);
  families_->ShowBreakers(gauges.breakers);
}

}  // namespace denoised
