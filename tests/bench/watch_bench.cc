// E8: what watchers of a job cost the thread that changes it: the whole server with real clients,
// around an engine that is nothing but its store.
//
//   watch_bench [--pairs=N] [ROW...]   prints a JSON line a row
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "server/server.h"
#include "tests/bench/rpc_growth.h"
#include "tests/median.h"
#include "tests/server/fake_engine.h"

namespace denoised {
namespace {

using Json = nlohmann::json;

// Of this thread: what a machine does beside is none of it.
double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

Config ConfigOf() {
  Config config;
  config.listen = config.admin_listen = config.http_listen = {"127.0.0.1", 0};
  return config;
}

class WatchedJob {
 public:
  WatchedJob() : server_(ConfigOf(), &logger_, OpenFiles()) {
    server_.Start([this](const EngineOptions&, Observer*, Logger*) {
      auto engine = std::make_unique<FakeEngine>();
      engine_ = engine.get();
      return engine;
    });
    GenerationRequest request;
    request.prompt = "a prompt";
    id_ = std::get<JobSnapshot>(engine_->Submit(std::move(request))).id;
    engine_->jobs().Start(id_);
  }

  // Of one step's change, beside so many watchers that hear of each; a step takes 20 ms.
  double SecondsOfEvent(int watchers) {
    constexpr int kEvents = 150;
    const IdleStreams streams({{"target", server_.address()},
                               {"job_id", id_},
                               {"streams", watchers},
                               {"streams_each", 64}});
    double seconds = 0;
    for (int i = 0; i < kEvents; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const double before = ThreadSeconds();
      engine_->jobs().Update(id_, [](JobSnapshot& job) { ++job.step; });
      seconds += ThreadSeconds() - before;
    }
    return seconds / kEvents;
  }

 private:
  static int64_t OpenFiles() {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    return static_cast<int64_t>(limit.rlim_cur);
  }

  std::FILE* const null_ = std::fopen("/dev/null", "w");
  Logger logger_{null_};
  FakeEngine* engine_ = nullptr;
  Server server_;
  std::string id_;
};

int Run(int argc, char** argv) {
  int pairs = 5;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--pairs=", 0) == 0) pairs = std::stoi(argument.substr(8));
  }
  WatchedJob job;
  job.SecondsOfEvent(1);
  std::vector<double> one, many, more;
  for (int i = 0; i < pairs; ++i) {
    one.push_back(job.SecondsOfEvent(1));
    many.push_back(job.SecondsOfEvent(512));
    more.push_back((many.back() - one.back()) * 1e6);
  }
  std::cout << Json({{"row", "E8"},
                     {"name", "an event at the thread that makes it, 512 watchers less one, us"},
                     {"value", Median(more)},
                     {"us", {{"1", Median(one) * 1e6}, {"512", Median(many) * 1e6}}}})
                   .dump()
            << std::endl;
  return 0;
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) { return denoised::Run(argc, argv); }
