// Rows of the scheduler: the traffic of tests/runtime/simulated_traffic.h through queue and cost
// model on a simulated device, against first come, first served and a schedule that knows
// everything; what a unit's time is predicted with; what a decision costs.
//
//   queue_bench [--pairs=N] [ROW...]   prints a JSON line a row; N traffics of different seeds
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/median.h"
#include "tests/runtime/queue_runner.h"
#include "tests/runtime/simulated_traffic.h"

namespace denoised {
namespace {

using Json = nlohmann::json;
using End = SimulatedOutcome::End;

Json WithSpread(Json row, const std::vector<double>& values) {
  row["value"] = Median(values);
  row["min"] = *std::min_element(values.begin(), values.end());
  row["max"] = *std::max_element(values.begin(), values.end());
  return row;
}

double Share(int64_t count, const std::vector<SimulatedJob>& jobs) {
  return static_cast<double>(count) / static_cast<double>(jobs.size());
}

// Load 0.8, 70/20/10 short, medium and long jobs, three times what each takes alone.
void Attainment(int seeds, const std::function<void(Json)>& emit) {
  for (const bool bursts : {false, true}) {
    std::vector<double> points, of_bound, met;
    for (int seed = 1; seed <= seeds; ++seed) {
      const auto jobs = MakeTraffic({.jobs = 1000, .bursts = bursts, .seed = uint64_t(seed)});
      const int64_t ours = Simulate(jobs, {}).Met(jobs);
      met.push_back(Share(ours, jobs));
      points.push_back(100 * Share(ours - Simulate(jobs, Fifo()).Met(jobs), jobs));
      of_bound.push_back(static_cast<double>(ours) / static_cast<double>(OfflineBound(jobs)));
    }
    const std::string traffic = bursts ? "bursts" : "Poisson arrivals";
    emit(WithSpread({{"row", "B1"},
                     {"name", "deadlines met at load 0.8, " + traffic +
                                  ", more of a hundred than first come, first served"},
                     {"met", Median(met)}},
                    points));
    emit(WithSpread(
        {{"row", "B1b"},
         {"name", "the same, share of what a schedule meets that knows everything, " + traffic}},
        of_bound));
  }
}

// Jobs a second that end in time: against the plain server, which takes one after the other, on a
// device as fast as ours. `most`: what a schedule would give that knows everything, at load 0.8.
void Goodput(int seeds, const std::function<void(Json)>& emit) {
  const auto rate = [](const std::vector<SimulatedJob>& jobs, const SimulationOptions& options) {
    const SimulationResult result = Simulate(jobs, options);
    return static_cast<double>(result.Met(jobs)) / result.ended;
  };
  Json by_load = Json::object();
  std::vector<double> ratios, most;
  for (const double load : {0.5, 0.8, 0.95}) {
    std::vector<double> ours, plain, of;
    for (int seed = 1; seed <= seeds; ++seed) {
      const auto jobs = MakeTraffic({.jobs = 1000, .load = load, .seed = uint64_t(seed)});
      ours.push_back(rate(jobs, {}));
      plain.push_back(rate(jobs, Fifo()));
      of.push_back(ours.back() / plain.back());
      if (load != 0.8) continue;
      most.push_back(static_cast<double>(OfflineBound(jobs)) /
                     static_cast<double>(Simulate(jobs, Fifo()).Met(jobs)));
    }
    by_load[Json(load).dump()] = {
        {"ours", Median(ours)}, {"plain", Median(plain)}, {"ratio", Median(of)}};
    if (load == 0.8) ratios = of;
  }
  emit(WithSpread({{"row", "B3"},
                   {"name", "jobs a second in time at load 0.8, over first come, first served"},
                   {"most", Median(most)},
                   {"loads", by_load}},
                  ratios));
}

double SlowestOf100(const std::vector<SimulatedJob>& jobs, const SimulationResult& result) {
  std::vector<double> seconds;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (jobs[i].kind == 0) seconds.push_back(result.outcomes[i].ended - jobs[i].arrives);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() * 99 / 100];
}

void ShortJobs(int seeds, const std::function<void(Json)>& emit) {
  Json samples = Json::array();
  for (int seed = 1; seed <= seeds; ++seed) {
    const auto jobs =
        MakeTraffic({.jobs = 1000, .deadlines = Deadlines::kNone, .seed = uint64_t(seed)});
    samples.push_back(
        {SlowestOf100(jobs, Simulate(jobs, {})), SlowestOf100(jobs, Simulate(jobs, Fifo()))});
  }
  emit(
      {{"row", "B2"},
       {"name", "p99 of short jobs without deadlines at load 0.8, first come, first served / ours"},
       {"samples", samples}});
}

// The highest load at which 99 of 100 jobs end in time, to a hundredth.
double HighestLoad(const SimulationOptions& options, uint64_t seed) {
  double fine = 0, late = 1.5;
  while (late - fine > 0.01) {
    const double load = (fine + late) / 2;
    const auto jobs = MakeTraffic({.jobs = 1000, .load = load, .seed = seed});
    const bool met = Share(Simulate(jobs, options).Met(jobs), jobs) >= 0.99;
    (met ? fine : late) = load;
  }
  return fine;
}

void Loads(int seeds, const std::function<void(Json)>& emit) {
  std::vector<double> ratios, ours, fifo;
  for (int seed = 1; seed <= seeds; ++seed) {
    ours.push_back(HighestLoad({}, static_cast<uint64_t>(seed)));
    fifo.push_back(HighestLoad(Fifo(), static_cast<uint64_t>(seed)));
    ratios.push_back(ours.back() / std::max(fifo.back(), 0.01));
  }
  emit(WithSpread({{"row", "B4"},
                   {"name",
                    "the highest load at which 99 of 100 deadlines are met, over that of "
                    "first come, first served"},
                   {"ours", Median(ours)},
                   {"fifo", Median(fifo)}},
                  ratios));
}

// Unit times by a law that has all terms, noise of 6 % and stalls; shapes that never ran.
void Prediction(int seeds, const std::function<void(Json)>& emit) {
  const auto truth = [](double rows, double n) {
    return 0.01 + rows * (0.002 + n * 2e-4 + n * n * 1e-7);
  };
  const auto key = [](double n) {
    return UnitKey{"m", "step", std::to_string(n), "b", n * 7e6 + n * n * 12e3, n};
  };
  std::vector<double> medians;
  for (int seed = 1; seed <= seeds; ++seed) {
    std::mt19937_64 random(static_cast<uint64_t>(seed));
    CostModel model;
    for (const double n : {96.0, 320.0, 1560.0, 3120.0}) {
      for (int i = 0; i < 24; ++i) {
        const double noise = std::exp(0.06 * std::normal_distribution<double>()(random));
        const int64_t rows = 1 + i % 2;
        model.Observe(key(n), rows, truth(static_cast<double>(rows), n) * noise * (i == 7 ? 5 : 1));
      }
    }
    std::vector<double> errors;
    for (const double n : {160.0, 240.0, 520.0, 780.0, 1040.0, 2080.0, 2600.0, 4680.0, 6240.0}) {
      for (const int64_t rows : {1, 2, 4}) {
        const double right = truth(static_cast<double>(rows), n);
        errors.push_back(std::abs(model.Seconds(key(n), rows) / right - 1));
      }
    }
    medians.push_back(Median(errors));
  }
  emit(WithSpread({{"row", "B5"}, {"name", "median error of a step's time on unseen shapes"}},
                  medians));
}

// One decision with what follows from it, in seconds.
class Decision {
 public:
  explicit Decision(int64_t queued) {
    std::mt19937_64 random(1);
    std::uniform_real_distribution<double> length(1, 100);
    for (int64_t id = 0; id < queued; ++id) {
      Work work = Arrives(static_cast<WorkId>(id), static_cast<double>(id) * 1e-3, length(random));
      work.tenant = std::to_string(id % 5);
      work.batch = std::to_string(id % 2);
      queue_.Add(id % 2 == 0 ? work : WithDeadline(work, 1e8 + length(random)));
    }
    room_.rows = 4;  // both have as many
    room_.may_begin = 4;
    room_.seconds = [](int64_t rows) { return 0.5 + 0.1 * static_cast<double>(rows); };
  }
  int64_t rows() {
    return std::ssize(queue_.Companions(*queue_.Lead(At(1000), true), room_, At(1000)));
  }
  double Seconds() {
    constexpr int kTimes = 100;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kTimes; ++i) {
      const auto lead = queue_.Lead(At(1000), true);
      for (WorkId id : queue_.Companions(*lead, room_, At(1000))) {
        WorkProgress progress = Begun(10);
        progress.batch = std::to_string(id % 2);
        queue_.Charge(std::to_string(id % 5), 0.1);
        queue_.Update(id, progress);
      }
    }
    const auto took = std::chrono::steady_clock::now() - start;
    return std::chrono::duration<double>(took).count() / kTimes;
  }

 private:
  WorkQueue queue_;
  Room room_;
};

// In turns of a millisecond, because whoever shares the machine shares its caches.
void DecisionCost(int pairs, const std::function<void(Json)>& emit) {
  Decision few(10), many(100000);
  std::vector<double> ratios, seconds;
  for (int i = 0; i < 40 * pairs; ++i) {
    seconds.push_back(many.Seconds());
    ratios.push_back(seconds.back() / few.Seconds());
  }
  emit(WithSpread({{"row", "B15"},
                   {"name", "a decision of 4 rows at 100,000 queued jobs over one at 10"},
                   {"seconds", Median(seconds)},
                   {"rows", {many.rows(), few.rows()}}},
                  ratios));
}

// A minute of ten times what the device can do: jobs done, over what it does when it has always
// one to do and never a queue.
void Overload(int seeds, const std::function<void(Json)>& emit) {
  std::vector<double> shares;
  for (int seed = 1; seed <= seeds; ++seed) {
    const auto jobs = MakeTraffic(
        {.jobs = 1000, .load = 10, .deadlines = Deadlines::kNone, .seed = uint64_t(seed)});
    SimulationOptions minute;
    minute.until = 60;
    const SimulationResult flood = Simulate(jobs, minute);
    const auto done = std::count_if(flood.outcomes.begin(), flood.outcomes.end(),
                                    [](const auto& outcome) { return outcome.end == End::kDone; });
    double alone = 0;
    for (const SimulatedJob& job : jobs) alone += job.AloneSeconds();
    const double without = 60 * static_cast<double>(jobs.size()) / alone;
    shares.push_back(static_cast<double>(done) / without);
  }
  emit(WithSpread({{"row", "B16"}, {"name", "jobs done in a minute at ten times the load"}},
                  shares));
}

int Run(int argc, char** argv) {
  int pairs = 5;
  std::set<std::string> rows;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--pairs=", 0) == 0) {
      pairs = std::stoi(argument.substr(8));
    } else if (argument.rfind("--", 0) != 0) {  // threads and instruction sets are nothing to it
      rows.insert(argument);
    }
  }
  const auto emit = [&](const Json& row) {
    if (rows.empty() || rows.count(row.at("row")) > 0) std::cout << row.dump() << std::endl;
  };
  const auto wants = [&](const char* row) { return rows.empty() || rows.count(row) > 0; };
  if (wants("B1") || wants("B1b")) Attainment(pairs, emit);
  if (wants("B2")) ShortJobs(pairs, emit);
  if (wants("B3")) Goodput(pairs, emit);
  if (wants("B4")) Loads(pairs, emit);
  if (wants("B5")) Prediction(pairs, emit);
  if (wants("B15")) DecisionCost(pairs, emit);
  if (wants("B16")) Overload(pairs, emit);
  return 0;
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) { return denoised::Run(argc, argv); }
