#include "tests/bench/rpc_load.h"

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "denoised/v1/denoise.grpc.pb.h"
#include "denoised/v1/generation.grpc.pb.h"
#include "tests/bench/rpc_clients.h"

namespace denoised {
namespace {

using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;
using Stub = v1::GenerationService::Stub;

v1::Job RunToItsEnd(Stub& stub, const v1::GenerationRequest& request) {
  v1::Job job;
  {
    grpc::ClientContext context;
    Require(stub.SubmitJob(&context, request, &job));
  }
  v1::WatchJobRequest watch;
  watch.set_job_id(job.id());
  grpc::ClientContext context;
  const auto stream = stub.WatchJob(&context, watch);
  while (stream->Read(&job)) {
  }
  Require(stream->Finish());
  if (job.state() != v1::SUCCEEDED) throw std::runtime_error(job.error().message());
  return job;
}

std::string Fetch(Stub& stub, const std::string& id) {
  v1::FetchArtifactRequest request;
  request.set_job_id(id);
  grpc::ClientContext context;
  const auto stream = stub.FetchArtifact(&context, request);
  std::string bytes;
  for (v1::ArtifactChunk chunk; stream->Read(&chunk);) bytes += chunk.data();
  Require(stream->Finish());
  return bytes;
}

// Of texts in their order; says whether two runs gave the same, and is no more than that.
uint64_t DigestOf(const std::vector<std::string>& texts) {
  uint64_t digest = 0xcbf29ce484222325;
  for (const std::string& text : texts) {
    for (const char byte : text) digest = (digest ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
  }
  return digest;
}

v1::Tensor Noise(const std::vector<int64_t>& shape, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  v1::Tensor tensor;
  tensor.set_dtype("float32");
  int64_t count = 1;
  for (const int64_t size : shape) {
    tensor.add_shape(size);
    count *= size;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float value = normal(random);
    tensor.mutable_data()->append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return tensor;
}

}  // namespace

v1::GenerationRequest JobOf(const Json& request) {
  v1::GenerationRequest job;
  job.set_prompt("a red circle moving left");
  job.set_seed(7);
  job.set_height(request.value("height", 32));
  job.set_width(request.value("width", 32));
  job.set_num_frames(request.value("frames", 1));
  job.set_num_inference_steps(request.value("steps", 1));
  job.set_guidance_scale(request.value("guidance", 1.0));
  job.add_formats(request.value("latents", false) ? v1::SAFETENSORS : v1::NPY);
  return job;
}

Json Flood(const Json& request) {
  const v1::GenerationRequest job = JobOf(request);
  const int clients = request.value("clients", 1);
  const double rate = request.at("rate").get<double>() / clients, length = request.at("seconds");
  std::mutex mutex;
  std::vector<double> refusals;
  int64_t sent = 0, accepted = 0;
  const auto start = SteadyClock::now();
  InThreads(clients, [&](int number) {
    const auto stub = v1::GenerationService::NewStub(Connect(request, number));
    std::vector<double> refused;
    int64_t calls = 0;
    while (Since(start) < length) {
      grpc::ClientContext context;
      v1::Job reply;
      const auto begin = SteadyClock::now();
      if (!stub->SubmitJob(&context, job, &reply).ok()) refused.push_back(Since(begin));
      ++calls;
      std::this_thread::sleep_until(
          start + std::chrono::duration<double>(static_cast<double>(calls) / rate));
    }
    const std::lock_guard lock(mutex);
    sent += calls;
    accepted += calls - std::ssize(refused);
    refusals.insert(refusals.end(), refused.begin(), refused.end());
  });
  return {{"sent", sent},
          {"accepted", accepted},
          {"seconds", Since(start)},
          {"refused_p99", Quantile(std::move(refusals), 0.99)}};
}

Json Keep(const Json& request) {
  const v1::GenerationRequest job = JobOf(request);
  const double length = request.at("seconds");
  const auto start = SteadyClock::now();
  InThreads(request.at("outstanding"), [&](int number) {
    const auto stub = v1::GenerationService::NewStub(Connect(request, number));
    while (Since(start) < length) RunToItsEnd(*stub, job);
  });
  return {{"seconds", Since(start)}};
}

Json Jobs(const Json& request) {
  const int count = request.at("count");
  std::vector<std::string> ids(static_cast<size_t>(count)), latents;
  const auto start = SteadyClock::now();
  InThreads(count, [&](int number) {
    const auto stub = v1::GenerationService::NewStub(Connect(request, number));
    v1::GenerationRequest job = JobOf(request);
    job.set_seed(number + 1);
    ids[static_cast<size_t>(number)] = RunToItsEnd(*stub, job).id();
  });
  const double seconds = Since(start);
  const auto stub = v1::GenerationService::NewStub(Connect(request, 0));
  for (const std::string& id : ids) latents.push_back(Fetch(*stub, id));
  return {{"seconds", seconds}, {"digest", DigestOf(latents)}};
}

Json Calls(const Json& request) {
  const int count = request.at("count"), calls = request.at("calls");
  std::vector<v1::DenoiseRequest> requests(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    v1::DenoiseRequest& one = requests[static_cast<size_t>(i)];
    *one.mutable_latents() = Noise(request.at("shape"), static_cast<uint64_t>(i));
    *one.mutable_encoder_hidden_states() =
        Noise(request.at("text"), static_cast<uint64_t>(100 + i));
    *one.mutable_timestep() = Noise({1}, 0);
    const float timestep = 100.0F + static_cast<float>(i);
    one.mutable_timestep()->set_data(&timestep, sizeof timestep);
  }
  std::vector<std::string> answers(static_cast<size_t>(count));
  const auto start = SteadyClock::now();
  InThreads(count, [&](int number) {
    const auto stub = v1::DenoiseService::NewStub(Connect(request, number));
    for (int i = 0; i < calls; ++i) {
      grpc::ClientContext context;
      v1::DenoiseResponse reply;
      Require(stub->Denoise(&context, requests[static_cast<size_t>(number)], &reply));
      answers[static_cast<size_t>(number)] = reply.result().data();
    }
  });
  return {{"seconds", Since(start)}, {"digest", DigestOf(answers)}};
}

// ---- watchers
// ------------------------------------------------------------------------------------

namespace {

// Everybody's events: how long after the server, or after the first to hear of it, each was heard.
class Lags {
 public:
  void Note(const v1::Job& job) {
    const auto now = std::chrono::system_clock::now();
    const std::lock_guard lock(mutex_);
    ++events_;
    const auto first = first_.try_emplace({job.id(), job.sequence()}, now).first->second;
    relative_.push_back(std::chrono::duration<double>(now - first).count());
    if (job.state() < v1::SUCCEEDED) return;
    const auto& end = job.finished_at();
    const double then = static_cast<double>(end.seconds()) + end.nanos() * 1e-9;
    ends_.push_back(std::chrono::duration<double>(now.time_since_epoch()).count() - then);
  }
  Json Told() {
    const std::lock_guard lock(mutex_);
    return {{"events", events_},
            {"ends", ends_.size()},
            {"p50", Quantile(relative_, 0.5)},
            {"p99", Quantile(relative_, 0.99)},
            {"end_p99", Quantile(ends_, 0.99)}};
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<std::string, uint64_t>, std::chrono::system_clock::time_point> first_;
  std::vector<double> relative_, ends_;
  int64_t events_ = 0;
};

// A stream that reads whatever comes. gRPC's threads, then whoever joins it.
class Watcher : public grpc::ClientReadReactor<v1::Job> {
 public:
  Watcher(Stub* stub, const std::string& id, Lags* lags) : lags_(lags) {
    request_.set_job_id(id);
    stub->async()->WatchJob(&context_, &request_, this);
    StartRead(&job_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    lags_->Note(job_);
    ended_ = job_.state() >= v1::SUCCEEDED;
    StartRead(&job_);
  }
  void OnDone(const grpc::Status& status) override {
    const std::lock_guard lock(mutex_);
    done_ = true;
    ended_ = ended_ && status.ok();
    changed_.notify_all();
  }
  // Whether it saw the end.
  bool Join() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
    return ended_;
  }

 private:
  Lags* const lags_;
  grpc::ClientContext context_;
  v1::WatchJobRequest request_;
  v1::Job job_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false, ended_ = false;
};

}  // namespace

Json Watchers(const Json& request) {
  const int jobs = request.at("jobs"), watchers = request.at("watchers");
  const int connections = request.at("connections");
  std::vector<std::unique_ptr<Stub>> stubs;
  for (int i = 0; i < connections; ++i) {
    stubs.push_back(v1::GenerationService::NewStub(Connect(request, i)));
  }
  Lags lags;
  int64_t rounds = 0, lost = 0;
  const auto start = SteadyClock::now();
  for (; Since(start) < request.at("seconds"); ++rounds) {
    std::vector<std::string> ids;
    for (int i = 0; i < jobs; ++i) {
      grpc::ClientContext context;
      v1::Job job;
      Require(stubs[0]->SubmitJob(&context, JobOf(request), &job));
      ids.push_back(job.id());
    }
    std::vector<std::unique_ptr<Watcher>> all;
    for (int i = 0; i < watchers; ++i) {
      all.push_back(std::make_unique<Watcher>(stubs[static_cast<size_t>(i % connections)].get(),
                                              ids[static_cast<size_t>(i % jobs)], &lags));
    }
    for (const auto& watcher : all) lost += watcher->Join() ? 0 : 1;
  }
  Json told = lags.Told();
  told["seconds"] = Since(start);
  told["rounds"] = rounds;
  told["lost_ends"] = lost;
  return told;
}

}  // namespace denoised
