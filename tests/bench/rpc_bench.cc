// The RPC rows: a bare echo of the GenerationService, and a client that times calls of it.
//
//   rpc_bench echo FILE   serves SubmitJob and GetJob by answering with the Job in FILE; prints its
//                         address; ends with its standard input
//   rpc_bench client      answers a JSON line for each JSON line: {"do": "sample" | "submit" |
//                         "get" | "begin", ..}, and the loads of rpc_load.h and
//                         rpc_growth.h by their names
//
// The echo does what every gRPC server must, and nothing else: it is the floor of the real one.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "denoised/v1/generation.grpc.pb.h"
#include "tests/bench/answers.h"
#include "tests/bench/rpc_clients.h"
#include "tests/bench/rpc_growth.h"
#include "tests/bench/rpc_load.h"

namespace denoised {
namespace {

using Json = nlohmann::json;
using Stub = v1::GenerationService::Stub;

class Echo final : public v1::GenerationService::CallbackService {
 public:
  explicit Echo(v1::Job job) : job_(std::move(job)) {}

  grpc::ServerUnaryReactor* SubmitJob(grpc::CallbackServerContext* context,
                                      const v1::GenerationRequest* /*request*/,
                                      v1::Job* reply) override {
    return Answer(context, reply);
  }
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context,
                                   const v1::GetJobRequest* /*request*/, v1::Job* reply) override {
    return Answer(context, reply);
  }

 private:
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, v1::Job* reply) {
    *reply = job_;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  const v1::Job job_;
};

int ServeEcho(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  v1::Job job;
  if (!job.ParseFromIstream(&file)) {
    std::cerr << path << ": not a Job\n";
    return 1;
  }
  Echo echo(std::move(job));
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&echo);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  std::cout << "127.0.0.1:" << port << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
  }
  server->Shutdown();
  return 0;
}

class Client {
 public:
  Json Answer(const Json& request) {
    const std::string what = request.at("do").get<std::string>();
    Stub& stub = StubFor(request.at("target"));
    if (what == "sample") return Sample(stub, request);
    if (what == "submit") return TimeSubmit(stub, request);
    if (what == "get") return TimeGet(stub, request);
    if (what == "begin") return Begin(stub, request);
    if (what == "flood") return Flood(request);
    if (what == "keep") return Keep(request);
    if (what == "jobs") return Jobs(request);
    if (what == "calls") return Calls(request);
    if (what == "watchers") return Watchers(request);
    if (what == "fill") return Fill(request);
    if (what == "rate") return Rate(request);
    if (what == "hold") return Hold(stub, request);
    if (what == "open") return Open(request);
    return {{"error", "unknown 'do'"}};
  }

 private:
  // Runs a job until it is put aside: nothing happens to it any more.
  static Json Hold(Stub& stub, const Json& request) {
    const std::string id = Submit(stub, JobOf(request)).id();
    v1::SuspendJobRequest suspend;
    suspend.set_job_id(id);
    grpc::ClientContext context;
    v1::Job job;
    Require(stub.SuspendJob(&context, suspend, &job));
    Await(stub, id, [](const v1::Job& job) { return job.state() == v1::SUSPENDED; });
    return {{"job_id", id}};
  }

  static void Await(Stub& stub, const std::string& id,
                    const std::function<bool(const v1::Job&)>& condition) {
    for (;;) {
      const v1::Job job = Get(stub, id);
      if (condition(job)) return;
      if (job.state() >= v1::SUCCEEDED) throw std::runtime_error("the job has ended");
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  // Streams of earlier ones are closed first.
  Json Open(const Json& request) {
    streams_.reset();
    streams_ = std::make_unique<IdleStreams>(request);
    return Json::object();
  }

  Stub& StubFor(const std::string& target) {
    std::unique_ptr<Stub>& stub = stubs_[target];
    if (!stub) {
      stub = v1::GenerationService::NewStub(
          grpc::CreateChannel(target, grpc::InsecureChannelCredentials()));
    }
    return *stub;
  }

  static v1::Job Get(Stub& stub, const std::string& id) {
    grpc::ClientContext context;
    v1::GetJobRequest request;
    request.set_job_id(id);
    v1::Job job;
    Require(stub.GetJob(&context, request, &job));
    return job;
  }

  static v1::Job Submit(Stub& stub, const v1::GenerationRequest& request) {
    grpc::ClientContext context;
    v1::Job job;
    Require(stub.SubmitJob(&context, request, &job));
    return job;
  }

  static v1::Job WaitForEnd(Stub& stub, const std::string& id) {
    for (;;) {
      v1::Job job = Get(stub, id);
      if (job.state() >= v1::SUCCEEDED) return job;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }

  // Of the smallest job, so that the server is idle again at once.
  // Writes a finished job to "file" for the echo, and names it.
  static Json Sample(Stub& stub, const Json& request) {
    const v1::Job job = WaitForEnd(stub, Submit(stub, JobOf(Json::object())).id());
    if (job.state() != v1::SUCCEEDED) throw std::runtime_error(job.error().message());
    std::ofstream file(request.at("file").get<std::string>(), std::ios::binary);
    if (!job.SerializeToOstream(&file)) throw std::runtime_error("the job could not be written");
    return {{"job_id", job.id()}, {"bytes", job.ByteSizeLong()}};
  }

  static Json TimeSubmit(Stub& stub, const Json& request) {
    const v1::GenerationRequest job = JobOf(Json::object());
    return Quantiles(request.at("calls"), [&](std::vector<double>* seconds) {
      const auto start = std::chrono::steady_clock::now();
      const std::string id = Submit(stub, job).id();
      seconds->push_back(Since(start));
      WaitForEnd(stub, id);
      // Both sides rest alike: an echo that is never idle would answer from warm caches.
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    });
  }

  static Json TimeGet(Stub& stub, const Json& request) {
    const std::string id = request.at("job_id");
    return Quantiles(request.at("calls"), [&](std::vector<double>* seconds) {
      const auto start = std::chrono::steady_clock::now();
      Get(stub, id);
      seconds->push_back(Since(start));
    });
  }

  // A job of many steps, which runs on; returns once so many of them are done.
  static Json Begin(Stub& stub, const Json& request) {
    const std::string id = Submit(stub, JobOf(request)).id();
    const int64_t done = request.value("steps_done", 0);
    Await(stub, id, [&](const v1::Job& job) { return job.step() >= done; });
    return {{"job_id", id}};
  }

  static Json Quantiles(int calls, const std::function<void(std::vector<double>*)>& call) {
    std::vector<double> seconds;
    for (int i = 0; i < calls; ++i) call(&seconds);
    std::sort(seconds.begin(), seconds.end());
    return {{"p50", seconds.at(seconds.size() / 2)},
            {"p99", seconds.at(seconds.size() * 99 / 100)}};
  }

  std::map<std::string, std::unique_ptr<Stub>> stubs_;
  std::unique_ptr<IdleStreams> streams_;
};

int RunClient() {
  Client client;
  AnswerLines(client);
  return 0;
}

}  // namespace
}  // namespace denoised

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "echo" && argc == 3) return denoised::ServeEcho(argv[2]);
  if (mode == "client" && argc == 2) return denoised::RunClient();
  std::cerr << "usage: rpc_bench echo FILE | rpc_bench client\n";
  return 2;
}
