#include "server/self_check.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "grpc/health/v1/health.grpc.pb.h"

namespace denoised {
namespace {

// Below the second that probes are given by default.
constexpr std::chrono::milliseconds kPatience{800};

std::string CheckOnce(const std::string& target) {
  using grpc::health::v1::HealthCheckResponse;
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const auto channel =
      grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
  const auto stub = grpc::health::v1::Health::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kPatience);
  HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, {}, &response);
  if (!status.ok()) return "the gRPC port does not answer";
  return response.status() == HealthCheckResponse::SERVING ? "" : "not serving";
}

}  // namespace

SelfCheck::SelfCheck(std::string target) : target_(std::move(target)), thread_([this] { Run(); }) {}

SelfCheck::~SelfCheck() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void SelfCheck::Ask(Answer answer) {
  {
    std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(answer));
  }
  changed_.notify_one();
}

void SelfCheck::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
    const bool ending = ending_;
    const std::vector<Answer> asked = std::exchange(waiting_, {});
    lock.unlock();
    const std::string wrong = asked.empty() || ending ? "stopping" : CheckOnce(target_);
    for (const Answer& answer : asked) answer(wrong);
    if (ending) return;
    lock.lock();
  }
}

}  // namespace denoised
