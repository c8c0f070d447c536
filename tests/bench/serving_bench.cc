// The engine with a real model, in one process: jobs, and a session's steps between theirs. Answers
// a JSON line for each JSON line, for serving_model_rows.py.
//
//   serving_bench [--cpu_isa=LEVEL]
//   {"do": "load", "repository": .., "dtype": .., "threads": ..}
//   {"do": "run", "jobs": [{"height", "width", "frames", "steps", "decode"}, ..],
//    "session": {"every", "height", ..}}    to the end of all jobs, sent at once; after each so
//                                           many forwards a step of a session, whose first steps
//                                           came before and are told as session_forwards
#include <algorithm>
#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "backends/cpu_isa.h"
#include "backends/error.h"
#include "runtime/engine.h"
#include "runtime/log.h"
#include "runtime/threads.h"
#include "runtime/waited.h"
#include "tests/allocated.h"
#include "tests/bench/answers.h"

namespace denoised {
namespace {

using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// When forwards ended, how long they took, and the most that was allocated at one's end. Engine
// thread, then whoever finds it idle.
class Forwards final : public Observer {
 public:
  void OnForward(const std::string&, AttnBackend, Branch, int64_t rows, int64_t tokens,
                 double seconds) override {
    const double end = Seconds(SteadyClock::now().time_since_epoch()).count();
    all_.push_back({{"end", end}, {"seconds", seconds}, {"rows", rows}, {"tokens", tokens}});
    most_bytes = std::max(most_bytes, AllocatedBytes());
    ++count;
  }
  Json Take() {
    count = most_bytes = 0;
    return std::exchange(all_, Json::array());
  }
  std::atomic<int64_t> count = 0;
  int64_t most_bytes = 0;

 private:
  Json all_ = Json::array();
};

GenerationRequest JobOf(const Json& request) {
  GenerationRequest job;
  job.prompt = "a red circle moving left";
  job.seed = 7;
  job.height = request.at("height").get<int64_t>();
  job.width = request.at("width").get<int64_t>();
  job.num_frames = request.at("frames").get<int64_t>();
  job.num_inference_steps = request.at("steps").get<int64_t>();
  job.guidance_scale = 1.0;
  const bool decode = request.value("decode", false);
  job.formats = {decode ? ArtifactFormat::kNpy : ArtifactFormat::kSafetensors};
  return job;
}

class Bench {
 public:
  Json Answer(const Json& request) {
    const std::string what = request.at("do").get<std::string>();
    if (what == "load") return Load(request);
    if (what == "run") return Run(request);
    return {{"error", "unknown 'do'"}};
  }

 private:
  Json Load(const Json& request) {
    EngineOptions options;
    options.model_repository = request.at("repository").get<std::string>();
    options.device = "cpu";
    options.dtype = request.at("dtype").get<std::string>();
    options.threads = request.at("threads").get<int>();
    engine_.reset();
    engine_ = Engine::Create(options, &forwards_, &logger_);
    return Json::object();
  }

  Json Run(const Json& request) {
    std::optional<Passer> passer;
    if (request.contains("session")) passer = Open(request.at("session"));
    const Json session_forwards = forwards_.Take();
    const int64_t before = AllocatedBytes();
    const auto start = SteadyClock::now();
    std::vector<std::string> ids;
    for (const Json& job : request.at("jobs")) {
      const Engine::SubmitResult submitted = engine_->Submit(JobOf(job));
      if (const Error* error = std::get_if<Error>(&submitted)) throw *error;
      ids.push_back(std::get<JobSnapshot>(submitted).id);
    }
    if (passer) {
      StepBetween(*passer, ids.front(), request.at("session").at("every").get<int64_t>());
      engine_->LeaveSessions(passer->owner);
    }
    engine_->WaitIdle(std::chrono::minutes(10));
    const double seconds = Seconds(SteadyClock::now() - start).count();
    for (const std::string& id : ids) {
      const JobSnapshot job = engine_->jobs().Get(id).value();
      if (job.state != JobState::kSucceeded) {
        return {{"error", job.error ? job.error->message : "a job did not succeed"}};
      }
    }
    const int64_t bytes = forwards_.most_bytes - before;
    return {{"seconds", seconds},
            {"allocated_bytes", bytes},
            {"forwards", forwards_.Take()},
            {"session_forwards", session_forwards}};
  }

  static constexpr int64_t kFirstSteps = 8;
  // The owner and the ID of a session that has done its first steps.
  struct Passer {
    std::shared_ptr<SessionOwner> owner = std::make_shared<SessionOwner>();
    std::string id;
  };

  static SessionReply Succeeded(SessionReply reply) {
    if (reply.error) throw *reply.error;
    return reply;
  }

  Passer Open(const Json& session) {
    Passer passer;
    const SessionReply opened = Succeeded(Waited<SessionReply>([&](auto done) {
      engine_->OpenSession(passer.owner, {JobOf(session), {}}, std::move(done));
    }));
    passer.id = opened.state.id;
    Step(passer, kFirstSteps);
    return passer;
  }

  void Step(const Passer& passer, int64_t count) {
    Succeeded(Waited<SessionReply>([&](auto done) {
      engine_->AskSession(passer.owner, passer.id, SessionStep{count}, std::move(done));
    }));
  }

  // Until the job has ended.
  void StepBetween(const Passer& passer, const std::string& job, int64_t every) {
    const auto ended = [&] { return IsTerminal(engine_->jobs().Get(job)->state); };
    while (!ended()) {
      const int64_t next = forwards_.count + every;
      while (forwards_.count < next && !ended()) std::this_thread::sleep_for(Seconds(0.002));
      if (!ended()) Step(passer, 1);
    }
  }

  Forwards forwards_;
  Logger logger_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  denoised::KeepFreedMemory();
  const std::string level = argc > 1 ? std::string(argv[1]).substr(10) : "auto";
  denoised::PinCpuIsa(denoised::CpuIsaFromName(level).value());
  denoised::Bench bench;
  denoised::AnswerLines(bench);
}
