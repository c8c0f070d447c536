#include "tests/runtime/simulated_engine.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

namespace denoised {
namespace {

TimePoint At(double seconds) {
  return TimePoint(std::chrono::nanoseconds(std::llround(seconds * 1e9)));
}

enum class Stage : uint8_t { kEncode, kStep, kChunk };

class Simulation {
 public:
  Simulation(const std::vector<SimulatedJob>& jobs, const SimulationOptions& options)
      : jobs_(jobs), options_(options), queue_(options.queue), random_(options.seed) {
    result_.outcomes.resize(jobs.size());
    done_.resize(jobs.size());
  }

  SimulationResult Run() {
    while (!options_.until || now_ < *options_.until) {
      Arrive();
      for (WorkId id : queue_.Expired(At(now_))) End(id, SimulatedOutcome::End::kExpired);
      const auto lead = queue_.Lead(At(now_), queue_.resident() < options_.max_running);
      if (lead) {
        RunUnit(NextUnit(*lead));
      } else if (next_ < jobs_.size()) {
        now_ = jobs_[next_].arrives;
      } else {
        break;
      }
    }
    result_.ended = now_;
    return std::move(result_);
  }

 private:
  // Units done of each job: encode, steps, chunks.
  int64_t UnitsOf(WorkId id) const { return 1 + jobs_[id].steps + jobs_[id].chunks; }
  Stage StageOf(WorkId id) const {
    if (done_[id] == 0) return Stage::kEncode;
    return done_[id] <= jobs_[id].steps ? Stage::kStep : Stage::kChunk;
  }

  static UnitKey KeyOf(const SimulatedJob& job, Stage stage) {
    const SimulatedShape& shape = *job.shape;
    switch (stage) {
      case Stage::kEncode:
        return {.model = "m", .kind = "encode", .group = "", .backend = "", .tokens = 32};
      case Stage::kStep:
        return {.model = "m",
                .kind = "step",
                .group = shape.group,
                .backend = "b",
                .multiply_adds = shape.multiply_adds,
                .tokens = shape.tokens};
      default:
        return {.model = "m",
                .kind = "chunk",
                .group = shape.group,
                .backend = "",
                .tokens = shape.tokens};
    }
  }

  double Predicted(WorkId id) const {
    const SimulatedJob& job = jobs_[id];
    const int64_t steps = std::min(job.steps, UnitsOf(id) - job.chunks - done_[id]);
    const int64_t chunks = std::min(job.chunks, UnitsOf(id) - done_[id]);
    double seconds = done_[id] == 0 ? cost_.Seconds(KeyOf(job, Stage::kEncode), 1) : 0;
    seconds += static_cast<double>(steps) * cost_.Seconds(KeyOf(job, Stage::kStep), job.rows);
    return seconds + static_cast<double>(chunks) * cost_.Seconds(KeyOf(job, Stage::kChunk), 1);
  }

  WorkProgress ProgressOf(WorkId id) const {
    WorkProgress progress;
    progress.seconds_left = Predicted(id);
    if (StageOf(id) != Stage::kChunk) progress.batch = jobs_[id].shape->group;
    progress.rows = jobs_[id].rows;
    if (StageOf(id) == Stage::kEncode) {
      progress.seconds_to_step = cost_.Seconds(KeyOf(jobs_[id], Stage::kEncode), 1);
    }
    progress.resident = result_.outcomes[id].began.has_value();
    return progress;
  }

  void Arrive() {
    for (; next_ < jobs_.size() && jobs_[next_].arrives <= now_; ++next_) {
      const SimulatedJob& job = jobs_[next_];
      Work work;
      static_cast<WorkProgress&>(work) = ProgressOf(next_);
      work.id = next_;
      work.tenant = job.tenant;
      work.priority = job.priority;
      work.arrived = At(job.arrives);
      if (job.deadline) work.deadline = At(*job.deadline);
      const bool refused = options_.admits && job.deadline &&
                           now_ + queue_.PredictedFinish(work, At(now_)) > *job.deadline;
      if (refused) {
        result_.outcomes[next_] = {
            .end = SimulatedOutcome::End::kRefused, .began = {}, .ended = now_};
        continue;
      }
      queue_.Add(work);
      result_.outcomes[next_].predicted_begin = queue_.SecondsAhead(next_);
    }
  }

  void End(WorkId id, SimulatedOutcome::End end) {
    result_.outcomes[id].end = end;
    result_.outcomes[id].ended = now_;
    queue_.Remove(id);
  }

  double Noise() {
    const double stall = std::uniform_real_distribution<double>(0, 1)(random_) < 0.01;
    return std::exp(options_.noise * std::normal_distribution<double>()(random_)) *
           (stall != 0 ? options_.stall : 1);
  }

  // The lead's unit, with whom it is shared; or the unit of one that is brought to its step first.
  std::vector<WorkId> NextUnit(WorkId lead) const {
    if (StageOf(lead) != Stage::kStep) return {lead};
    const UnitKey key = KeyOf(jobs_[lead], Stage::kStep);
    const Room room = {.rows = cost_.WorthRows(key, options_.max_rows),
                       .may_begin = options_.max_running - queue_.resident(),
                       .seconds = [&](int64_t rows) { return cost_.Seconds(key, rows); }};
    const std::vector<WorkId> sharers = queue_.Companions(lead, room, At(now_));
    for (WorkId id : sharers) {
      if (StageOf(id) != Stage::kStep) return {id};
    }
    return sharers;
  }

  double TrueSeconds(WorkId id, Stage stage, int64_t rows) const {
    const SimulatedShape& shape = *jobs_[id].shape;
    if (stage == Stage::kStep) return shape.StepSeconds(rows);
    return stage == Stage::kEncode ? shape.encode : shape.chunk;
  }

  void RunUnit(const std::vector<WorkId>& sharers) {
    const WorkId lead = sharers.front();
    const Stage stage = StageOf(lead);
    const UnitKey key = KeyOf(jobs_[lead], stage);
    if (last_ && *last_ != lead && done_[*last_] < UnitsOf(*last_)) ++result_.switches;
    last_ = lead;
    for (WorkId id : sharers) {
      if (!result_.outcomes[id].began) result_.outcomes[id].began = now_;
    }
    const int64_t rows = std::accumulate(
        sharers.begin(), sharers.end(), int64_t{0},
        [&](int64_t sum, WorkId id) { return sum + (stage == Stage::kStep ? jobs_[id].rows : 1); });
    const double seconds = TrueSeconds(lead, stage, rows) * Noise();
    now_ += seconds;
    result_.busy_seconds += seconds;
    result_.forwards += stage == Stage::kStep ? 1 : 0;
    result_.forward_rows += stage == Stage::kStep ? rows : 0;
    cost_.Observe(key, rows, seconds);
    for (WorkId id : sharers) {
      const double share = stage == Stage::kStep ? static_cast<double>(jobs_[id].rows) : 1;
      queue_.Charge(jobs_[id].tenant, seconds * share / static_cast<double>(rows));
      if (++done_[id] == UnitsOf(id)) {
        End(id, SimulatedOutcome::End::kDone);
      } else {
        queue_.Update(id, ProgressOf(id));
      }
    }
  }

  const std::vector<SimulatedJob>& jobs_;
  const SimulationOptions& options_;
  WorkQueue queue_;
  CostModel cost_;
  std::mt19937_64 random_;
  SimulationResult result_;
  std::vector<int64_t> done_;
  std::optional<WorkId> last_;
  size_t next_ = 0;
  double now_ = 0;
};

// Whether earliest deadline first meets a job's deadline, for each of `chosen`, preempting at any
// moment; a job is dropped when its deadline comes. Jobs in the order of arrival.
int64_t MetByDeadline(const std::vector<SimulatedJob>& jobs, const std::vector<size_t>& chosen) {
  std::set<std::pair<double, size_t>> waiting;  // (deadline, job)
  std::map<size_t, double> left;
  int64_t met = 0;
  double now = 0;
  size_t next = 0;
  while (next < chosen.size() || !waiting.empty()) {
    if (waiting.empty()) now = std::max(now, jobs[chosen[next]].arrives);
    for (; next < chosen.size() && jobs[chosen[next]].arrives <= now; ++next) {
      waiting.insert({*jobs[chosen[next]].deadline, chosen[next]});
      left[chosen[next]] = jobs[chosen[next]].AloneSeconds();
    }
    const auto [deadline, job] = *waiting.begin();
    const double pause = next < chosen.size() ? jobs[chosen[next]].arrives - now : 1e300;
    const double runs = std::min({left[job], pause, std::max(0.0, deadline - now)});
    now += runs;
    left[job] -= runs;
    const bool done = left[job] <= 1e-9;
    if (done) ++met;
    if (done || now >= deadline) waiting.erase(waiting.begin());
  }
  return met;
}

}  // namespace

double SimulatedShape::StepSeconds(int64_t rows) const {
  return call + row * static_cast<double>(std::max(rows, free_rows));
}

double SimulatedJob::AloneSeconds() const {
  return shape->encode + static_cast<double>(steps) * shape->StepSeconds(rows) +
         static_cast<double>(chunks) * shape->chunk;
}

int64_t SimulationResult::Met(const std::vector<SimulatedJob>& jobs) const {
  int64_t met = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const bool done = outcomes[i].end == SimulatedOutcome::End::kDone;
    met += done && (!jobs[i].deadline || outcomes[i].ended <= *jobs[i].deadline) ? 1 : 0;
  }
  return met;
}

SimulationResult Simulate(const std::vector<SimulatedJob>& jobs, const SimulationOptions& options) {
  return Simulation(jobs, options).Run();
}

int64_t OfflineBound(const std::vector<SimulatedJob>& jobs) {
  std::vector<size_t> all(jobs.size());
  std::iota(all.begin(), all.end(), size_t{0});
  std::vector<size_t> shortest = all, taken;
  std::stable_sort(shortest.begin(), shortest.end(), [&](size_t a, size_t b) {
    return jobs[a].AloneSeconds() < jobs[b].AloneSeconds();
  });
  for (size_t job : shortest) {
    std::vector<size_t> more = taken;
    more.insert(std::upper_bound(more.begin(), more.end(), job), job);
    if (MetByDeadline(jobs, more) == static_cast<int64_t>(more.size())) taken = std::move(more);
  }
  return std::max(static_cast<int64_t>(taken.size()), MetByDeadline(jobs, all));
}

}  // namespace denoised
