#include "tests/bench/rpc_growth.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <string>

#include "denoised/v1/generation.grpc.pb.h"
#include "tests/bench/rpc_clients.h"
#include "tests/bench/rpc_load.h"

namespace denoised {
namespace {

using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;
using Stub = v1::GenerationService::Stub;

}  // namespace

Json Fill(const Json& request) {
  const int count = request.at("count");
  v1::GenerationRequest job = JobOf(request);
  job.set_prompt(std::string(request.at("prompt_bytes").get<size_t>(), 'a'));
  std::atomic<int> sent = 0;
  const auto start = SteadyClock::now();
  InThreads(request.at("clients"), [&](int number) {
    const auto stub = v1::GenerationService::NewStub(Connect(request, number));
    while (sent++ < count) {
      grpc::ClientContext context;
      context.set_wait_for_ready(true);
      v1::Job reply;
      Require(stub->SubmitJob(&context, job, &reply));
    }
  });
  return {{"seconds", Since(start)}};
}

// ---- calls a second
// ------------------------------------------------------------------------------

namespace {

// Counts of all callers, and who still calls.
struct Tally {
  std::atomic<int64_t> answered = 0, failed = 0;
  std::mutex mutex;
  std::condition_variable changed;
  int calling = 0;

  void Ended() {
    const std::lock_guard lock(mutex);
    --calling;
    changed.notify_all();
  }
};

// One call after the other, from gRPC's threads, until the time is over.
class Caller {
 public:
  Caller(Stub* stub, const std::string& id, SteadyClock::time_point end, Tally* tally)
      : stub_(stub), end_(end), tally_(tally) {
    request_.set_job_id(id);
  }
  void Call() {
    context_ = std::make_unique<grpc::ClientContext>();
    stub_->async()->GetJob(context_.get(), &request_, &reply_, [this](const grpc::Status& status) {
      ++(status.ok() && reply_.id() == request_.job_id() ? tally_->answered : tally_->failed);
      if (SteadyClock::now() < end_) return Call();
      tally_->Ended();
    });
  }

 private:
  Stub* const stub_;
  const SteadyClock::time_point end_;
  Tally* const tally_;
  std::unique_ptr<grpc::ClientContext> context_;
  v1::GetJobRequest request_;
  v1::Job reply_;
};

}  // namespace

Json Rate(const Json& request) {
  const int connections = request.at("connections"), streams = request.at("streams");
  const auto start = SteadyClock::now();
  const auto end = start + std::chrono::duration_cast<SteadyClock::duration>(
                               std::chrono::duration<double>(request.at("seconds")));
  Tally tally;
  tally.calling = connections * streams;
  std::vector<std::unique_ptr<Stub>> stubs;
  std::vector<std::unique_ptr<Caller>> callers;
  for (int i = 0; i < connections; ++i) {
    stubs.push_back(v1::GenerationService::NewStub(Connect(request, i)));
    for (int j = 0; j < streams; ++j) {
      callers.push_back(
          std::make_unique<Caller>(stubs.back().get(), request.at("job_id"), end, &tally));
    }
  }
  for (const auto& caller : callers) caller->Call();
  std::unique_lock lock(tally.mutex);
  tally.changed.wait(lock, [&] { return tally.calling == 0; });
  return {{"answered", tally.answered.load()},
          {"failed", tally.failed.load()},
          {"seconds", Since(start)}};
}

// ---- open streams
// --------------------------------------------------------------------------------

// Hears of the job once, then of nothing.
class IdleStreams::Stream : public grpc::ClientReadReactor<v1::Job> {
 public:
  Stream(std::shared_ptr<grpc::Channel> channel, const std::string& id)
      : stub_(v1::GenerationService::NewStub(std::move(channel))) {
    request_.set_job_id(id);
    stub_->async()->WatchJob(&context_, &request_, this);
    StartRead(&job_);
    StartCall();
  }
  ~Stream() override {
    context_.TryCancel();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
  }
  void AwaitOpen() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return heard_ || done_; });
    if (done_) throw std::runtime_error("a stream ended: " + message_);
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    {
      const std::lock_guard lock(mutex_);
      heard_ = true;
      changed_.notify_all();
    }
    StartRead(&job_);
  }
  void OnDone(const grpc::Status& status) override {
    const std::lock_guard lock(mutex_);
    done_ = true;
    message_ = status.error_message();
    changed_.notify_all();
  }

 private:
  const std::unique_ptr<Stub> stub_;
  grpc::ClientContext context_;
  v1::WatchJobRequest request_;
  v1::Job job_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool heard_ = false, done_ = false;
  std::string message_;
};

IdleStreams::IdleStreams(const Json& request) {
  const int streams = request.at("streams"), each = request.at("streams_each");
  std::shared_ptr<grpc::Channel> channel;
  for (int i = 0; i < streams; ++i) {
    if (i % each == 0) channel = Connect(request, i / each);
    streams_.push_back(std::make_unique<Stream>(channel, request.at("job_id")));
  }
  for (const auto& stream : streams_) stream->AwaitOpen();
}

IdleStreams::~IdleStreams() = default;

}  // namespace denoised
