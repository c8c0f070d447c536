#include "tests/bench/rpc_clients.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

namespace denoised {

void Require(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error_message());
}

std::shared_ptr<grpc::Channel> Connect(const nlohmann::json& request, int number) {
  grpc::ChannelArguments arguments;
  arguments.SetInt("number", number);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(request.at("target").get<std::string>(),
                                   grpc::InsecureChannelCredentials(), arguments);
}

void InThreads(int count, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::string failed;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      try {
        work(i);
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        failed = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (!failed.empty()) throw std::runtime_error(failed);
}

double Quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<size_t>(share * last)];
}

}  // namespace denoised
