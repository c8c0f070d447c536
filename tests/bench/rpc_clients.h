// What the clients of rpc_bench share: connections, threads, quantiles.
#ifndef DENOISED_TESTS_BENCH_RPC_CLIENTS_H_
#define DENOISED_TESTS_BENCH_RPC_CLIENTS_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

namespace denoised {

// Throws what a call failed with.
void Require(const grpc::Status& status);

// A connection of its own to the request's "target": gRPC would share one between channels of
// equal arguments.
std::shared_ptr<grpc::Channel> Connect(const nlohmann::json& request, int number);

// Runs `work` in so many threads; what one throws is thrown.
void InThreads(int count, const std::function<void(int)>& work);

double Quantile(std::vector<double> values, double share);

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_RPC_CLIENTS_H_
