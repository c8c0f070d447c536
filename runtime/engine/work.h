// What the engine works on, from its acceptance to its end: jobs, Denoise calls and sessions.
#ifndef DENOISED_RUNTIME_ENGINE_WORK_H_
#define DENOISED_RUNTIME_ENGINE_WORK_H_

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/attention/attention_planner.h"
#include "runtime/engine.h"
#include "runtime/engine/checkpoint.h"
#include "runtime/engine/memory_admission.h"
#include "runtime/engine/recent_estimates.h"
#include "runtime/engine/work_queue.h"
#include "runtime/job_store.h"
#include "runtime/pipelines/pipeline.h"

namespace denoised {

// One tenant for all Denoise calls, beside those of jobs: neither holds the other up.
inline constexpr std::string_view kCallsTenant = "/calls";

// A unit that failed and is done once more, without what may have spoilt it.
struct Redo {
  struct Suspect {
    Wish lease;  // that layers of it ran under
    LeaseEnd cause;
    std::string what;  // that was wrong, in a sentence
  };
  struct Failure {
    AttnBackend backend;  // that threw in it
    std::string what;
  };
  Error first;  // why it failed at first
  int tries = 0;
  std::vector<Wish> under = {};        // leases: when it went wrong at first
  size_t next = 0;                     // of those, to be taken away by itself
  std::vector<Suspect> suspects = {};  // the last that were taken away: usually one
  std::vector<Failure> failures = {};
};

// Owned by the engine's table. What the comment does not give to the engine thread is constant, or
// guarded by the engine's mutex.
struct EngineWork {
  virtual ~EngineWork() = default;
  virtual Run* run() = 0;  // null before its first unit; engine thread
  virtual int64_t request_bytes() const = 0;
  virtual bool is_job() const = 0;
  virtual bool is_session() const { return false; }

  WorkId number = 0;
  // Of a job, while it has no run: changed by the engine thread under the mutex (following.cc).
  PipelinePtr pipeline;
  std::atomic<bool> unloaded{false};  // the model was taken away from it: it ends
  std::string tenant;
  Priority priority = Priority::kNormal;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::shared_ptr<CancelToken> cancel;
  std::chrono::steady_clock::time_point queued_at;  // by the machine's clock: waits are measured
  EstimatePtr estimate = RecentEstimates::None();
  AttnBackend backend = AttnBackend::kReference;  // of self-attention, as it was last seen
  bool begun = false;                             // its first unit runs or has run
  bool encodes = false;                           // its files are being written
  // A job that was running when a server died. Until it has ended no other suspect runs, so that
  // the next crash is laid to it alone; jobs that are none run beside it, and are not blamed.
  bool suspect = false;
  // Since when it waits, for its place in the order.
  std::chrono::steady_clock::time_point arrived;

  // The leases that it is pinned to (AttentionPlanner::pinned); of work that has begun.
  std::shared_ptr<const LeaseList> pinned;

  // Of its estimate; unset: all. Engine thread, under its mutex where it has not begun.
  std::optional<std::vector<PlannedUnits>> left;
  // Engine thread.
  std::unique_ptr<AttentionPlanner> planner;
  bool alone = false;          // its next step shares no forward: a shared one failed
  std::unique_ptr<Redo> redo;  // of its next unit

  const std::vector<PlannedUnits>& units_left() const { return left ? *left : estimate->units; }
};
using WorkPtr = std::shared_ptr<EngineWork>;

inline double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct UnitTime {
  double seconds;  // that the unit took
  double share;    // this work's part of it
};

// What previews of a model are made with.
struct Palette {
  const LatentColours* colours = nullptr;  // the pipeline's
  std::string why_not;                     // there are none; "" where there are
};

// A step of it, alone.
Unit StepUnitOf(const EngineWork& work);
// One of these is done.
void CountDown(UnitKind kind, EngineWork* work);
// Of a job that has so many of its steps behind it, and no other unit.
void LeaveSteps(int64_t steps_done, EngineWork* work);

// Work along a trajectory of its own: a job or a session.
struct TrajectoryWork : EngineWork {
  Run* run() override { return generation.get(); }

  std::string id;
  GenerationRequest request;
  ResolvedParameters parameters;
  bool has_prompts = true;  // to encode

  // What automatic selection is told, since it began first; set under the engine's mutex.
  std::shared_ptr<AutomaticOrder> order;
  std::unique_ptr<GenerationRun> generation;  // engine thread
};

// Where a job stands that waits.
struct JobPlace {
  int64_t position = 0;
  double starts_in = 0;  // seconds
};

struct JobWork : TrajectoryWork {
  int64_t request_bytes() const override { return BytesOf(request); }
  bool is_job() const override { return true; }

  std::atomic<bool> suspend{false};        // to be put aside at its next boundary
  bool closing = false;                    // ends, or has its results: too late to cancel
  bool started = false;                    // the store knows that it runs, here
  bool told_start = false;                 // engine thread
  std::optional<JobPlace> told_place;      // what its watchers know, all of them
  std::unique_ptr<Checkpoint> checkpoint;  // to go on from; null: from the start
  int64_t attempt = 0;

  // Engine thread.
  // To go on in this process, where nothing can differ but who chooses its backends: as of any job,
  // at any step.
  bool put_away = false;
  // It begins from step 0 although it had done so many steps, for this reason.
  std::optional<std::pair<int64_t, std::string>> begins_anew;
  JobStage stage = JobStage::kNone;
  double stage_seconds = 0;  // in units of the present stage
  std::optional<std::chrono::steady_clock::time_point> last_step_at;
  double step_pace = 0;  // seconds from one of its steps to the next, waits included
  std::chrono::steady_clock::time_point next_checkpoint;
  std::chrono::steady_clock::time_point next_preview;  // on the engine's clock
  std::atomic<int> previews_on_way{0};  // to the encoder thread, which takes them off
};

struct CallWork : EngineWork {
  Run* run() override { return call.get(); }
  int64_t request_bytes() const override { return BytesOf(request); }
  bool is_job() const override { return false; }

  DenoiseRequest request;
  std::function<void(Engine::DenoiseOutcome)> done;
  std::string fields;  // what the fingerprint has of the request

  // Engine thread.
  std::unique_ptr<DenoiseRun> call;
  double queue_seconds = 0;
};

// Whose attention it is.
PlannerSubject SubjectOf(const TrajectoryWork& work);
PlannerSubject SubjectOf(const CallWork& call);

// Refuses at once what could only fail later: parameters that do not fit, hidden by a force or not,
// and a strict request that the layers cannot have. Explain asks the same question. What serves
// self-attention.
AttnBackend CheckedAttention(const Pipeline& pipeline, const ResolvedParameters& parameters,
                             const PlannerSubject& subject);

// following.cc: as if it came now, for the model that it has; throws where that cannot do it.
// Whether that changes what it was told.
bool AskAnew(JobWork* job);

using JobPtr = std::shared_ptr<JobWork>;
using CallPtr = std::shared_ptr<CallWork>;

// Null where it is a call.
inline JobPtr JobOf(const WorkPtr& work) {
  return work->is_job() ? std::static_pointer_cast<JobWork>(work) : nullptr;
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_WORK_H_
