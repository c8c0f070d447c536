// The engine with a real model, in one process: jobs, and calls between their steps. Answers a JSON
// line for each JSON line, for serving_model_rows.py.
//
//   serving_bench [--cpu_isa=LEVEL]
//   {"do": "load", "repository": .., "dtype": .., "threads": ..}
//   {"do": "run", "jobs": [{"height", "width", "frames", "steps", "decode"}, ..],
//    "calls": {"every", "shape", "text"}}   to the end of all jobs, sent at once; a Denoise call
//                                           after each so many forwards of theirs
#include <algorithm>
#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>
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

HostTensor Filled(const std::vector<int64_t>& shape, float value) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  HostTensor tensor{DType::kFloat32, shape, {}};
  for (int64_t i = 0; i < count; ++i) {
    // Not all alike: what is constant has no deviation to be normalised by.
    const float one = value + 0.01F * static_cast<float>(i % 97);
    tensor.data.append(reinterpret_cast<const char*>(&one), sizeof one);
  }
  return tensor;
}

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
    forwards_.Take();
    const int64_t before = AllocatedBytes();
    const auto start = SteadyClock::now();
    std::vector<std::string> ids;
    for (const Json& job : request.at("jobs")) {
      const Engine::SubmitResult submitted = engine_->Submit(JobOf(job));
      if (const Error* error = std::get_if<Error>(&submitted)) throw *error;
      ids.push_back(std::get<JobSnapshot>(submitted).id);
    }
    if (request.contains("calls")) CallBetween(ids.front(), request.at("calls"));
    engine_->WaitIdle(std::chrono::minutes(10));
    const double seconds = Seconds(SteadyClock::now() - start).count();
    for (const std::string& id : ids) {
      const JobSnapshot job = engine_->jobs().Get(id).value();
      if (job.state != JobState::kSucceeded) {
        return {{"error", job.error ? job.error->message : "a job did not succeed"}};
      }
    }
    const int64_t bytes = forwards_.most_bytes - before;
    return {{"seconds", seconds}, {"allocated_bytes", bytes}, {"forwards", forwards_.Take()}};
  }

  // Each of another size than the job's, so that they share no forward; until the job has ended.
  void CallBetween(const std::string& id, const Json& calls) {
    const DenoiseRequest call = [&] {
      DenoiseRequest made;
      made.latents = Filled(calls.at("shape"), 0.1F);
      made.timestep = Filled({1}, 500);
      made.encoder_hidden_states = Filled(calls.at("text"), -0.3F);
      return made;
    }();
    const auto ended = [&] { return IsTerminal(engine_->jobs().Get(id)->state); };
    while (!ended()) {
      const int64_t next = forwards_.count + calls.at("every").get<int64_t>();
      while (forwards_.count < next && !ended()) std::this_thread::sleep_for(Seconds(0.002));
      if (ended()) return;
      const auto outcome = Waited<Engine::DenoiseOutcome>([&](auto done) {
        engine_->Denoise(call, std::make_shared<CancelToken>(), std::move(done));
      });
      if (const Error* error = std::get_if<Error>(&outcome)) throw *error;
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
