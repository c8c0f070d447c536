// Rows about the engine's queue under traffic: E9 and E16.
#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "tests/bench/engine_bench.h"
#include "tests/median.h"

namespace denoised {
namespace {

using WallClock = std::chrono::system_clock;

// ---- E9 ----------------------------------------------------------------------------------------

constexpr double kUnit = 0.001;

// A prompt and 3, 15 or 63 steps: 1 : 4 : 16, 70, 20 and 10 of 100.
std::vector<int64_t> StepsOfJobs(size_t jobs, std::mt19937_64* random) {
  std::discrete_distribution<size_t> kind({70, 20, 10});
  constexpr int64_t kSteps[] = {3, 15, 63};
  std::vector<int64_t> steps;
  for (size_t i = 0; i < jobs; ++i) steps.push_back(kSteps[kind(*random)]);
  return steps;
}

// What jobs took from arrival to end, as they did and as a queue would that costs nothing: the same
// arrivals, and the same units in the time that each of them took.
struct Sojourns {
  void Add(const std::vector<JobSnapshot>& jobs, const std::vector<int64_t>& steps,
           const std::vector<double>& units);

  std::vector<double> ours, bare;
};

void Sojourns::Add(const std::vector<JobSnapshot>& jobs, const std::vector<int64_t>& steps,
                   const std::vector<double>& units) {
  double free = 0;  // since the first arrival
  size_t unit = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const double arrives = Seconds(jobs[i].created_at - jobs.front().created_at).count();
    free = std::max(free, arrives);
    for (int64_t left = 1 + steps[i]; left > 0; --left) free += units.at(unit++);
    bare.push_back(free - arrives);
    ours.push_back(Seconds(*jobs[i].finished_at - jobs[i].created_at).count());
  }
}

// Poisson arrivals for `length` seconds, served one after the other.
void ServeAt(double load, double length, uint64_t seed, Sojourns* all) {
  EngineOptions options;
  options.policy = EngineOptions::Policy::kFifo;
  options.batching = false;
  options.max_queued_jobs = options.max_finished_jobs = 100000;
  BenchEngine bench(options);
  std::vector<double> units;
  bench.model.on_unit = [&](const Unit&, int64_t) {
    const auto start = SteadyClock::now();
    Spin(kUnit);
    units.push_back(Since(start));
  };
  std::mt19937_64 random(seed);
  const double mean = kUnit * (1 + 0.7 * 3 + 0.2 * 15 + 0.1 * 63);
  const auto steps = StepsOfJobs(static_cast<size_t>(length * load / mean), &random);
  std::exponential_distribution<double> gap(load / mean);
  std::vector<std::string> ids;
  const auto start = SteadyClock::now();
  double arrives = 0;
  for (const int64_t count : steps) {
    arrives += gap(random);
    std::this_thread::sleep_until(start + Seconds(arrives));
    ids.push_back(bench.Submit(JobOf(count)));
  }
  bench.AwaitIdle();
  std::vector<JobSnapshot> jobs;
  for (const std::string& id : ids) jobs.push_back(bench.engine->jobs().Get(id).value());
  all->Add(jobs, steps, units);
}

// ---- E16 ---------------------------------------------------------------------------------------

// Steps a second of the jobs that nobody cancels, by the time that the others did not use. Beside
// each come so many that are cancelled after up to 50 ms, as they wait or run.
double RateOfTheRest(int doomed_each) {
  constexpr int64_t kSteps = 5, kJobs = 300, kWaiting = 64;
  constexpr double kStep = 0.002, kPatience = 0.05;
  EngineOptions options;
  options.max_queued_jobs = 100000;
  BenchEngine bench(options);
  std::atomic<int64_t> done = 0;
  double lost = 0;  // engine thread, until it is idle
  bench.model.on_step = [&](const RunRequest& run, int64_t) {
    const auto start = SteadyClock::now();
    Spin(kStep);
    run.prompt == "doomed" ? void(lost += Since(start)) : void(++done);
  };
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> patience(0, kPatience);
  std::multimap<double, std::string> leaving;
  const auto start = SteadyClock::now();
  for (int64_t sent = 0; sent < kJobs || !leaving.empty();) {
    while (!leaving.empty() && leaving.begin()->first <= Since(start)) {
      bench.engine->Cancel(leaving.begin()->second);
      leaving.erase(leaving.begin());
    }
    if (sent == kJobs || sent - done / kSteps >= kWaiting) {
      std::this_thread::sleep_for(Seconds(0.0005));
      continue;
    }
    for (int i = 0; i < doomed_each; ++i) {
      GenerationRequest request = JobOf(kSteps);
      request.prompt = "doomed";
      leaving.emplace(Since(start) + patience(random), bench.Submit(std::move(request)));
    }
    bench.Submit(JobOf(kSteps));
    ++sent;
  }
  bench.AwaitIdle();
  return static_cast<double>(kJobs * kSteps) / (Since(start) - lost);
}

}  // namespace

Json QueueOverhead() {
  Json loads = Json::object();
  double worst = 0;
  for (const double load : {0.1, 0.5, 0.9}) {
    Sojourns all;  // of several runs: a median between two lengths of jobs stands on few of them
    for (uint64_t seed = 1; seed <= 4; ++seed) ServeAt(load, 12, seed, &all);
    const double ours = Median(std::move(all.ours)), bare = Median(std::move(all.bare));
    worst = std::max(worst, ours / bare - 1);
    loads[Json(load).dump()] = {{"seconds", ours}, {"without_cost", bare}};
  }
  return {{"row", "E9"},
          {"name",
           "p50 from arrival to end over that of a queue that costs nothing, less 1: the worst "
           "of loads 0.1, 0.5 and 0.9"},
          {"value", worst},
          {"loads", loads}};
}

Json CancelledShare(int pairs) {
  std::vector<double> ratios, with, without;
  for (int i = 0; i < pairs; ++i) {
    with.push_back(RateOfTheRest(9));
    without.push_back(RateOfTheRest(0));
    ratios.push_back(with.back() / without.back());
  }
  return {{"row", "E16"},
          {"name", "steps a second of the other jobs where 90 of 100 are cancelled, over none"},
          {"value", Median(ratios)},
          {"min", *std::ranges::min_element(ratios)},
          {"max", *std::ranges::max_element(ratios)},
          {"steps_a_second", {{"90", Median(with)}, {"0", Median(without)}}}};
}

}  // namespace denoised
