// Loads on a server that take many clients at once. Each answers a JSON request with what it saw.
#ifndef DENOISED_TESTS_BENCH_RPC_LOAD_H_
#define DENOISED_TESTS_BENCH_RPC_LOAD_H_

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>

#include "denoised/v1/generation.pb.h"

namespace denoised {

inline double Since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The smallest job that the model takes, changed by what the request says: "height", "width",
// "frames", "steps", "guidance".
v1::GenerationRequest JobOf(const nlohmann::json& request);

// "rate" submits a second for "seconds" from "clients" connections, whatever the server says to
// each: how many were sent and accepted, and p99 of the time that a refusal took.
nlohmann::json Flood(const nlohmann::json& request);
// "outstanding" clients, each with a job of its own all the time, for "seconds".
nlohmann::json Keep(const nlohmann::json& request);
// "count" jobs of seeds 1, 2, ... at once, until all have ended: seconds, and a digest of all
// latents.
nlohmann::json Jobs(const nlohmann::json& request);
// "count" clients that each send "calls" Denoise calls of "shape" and "text" (shapes), one after
// the other: seconds, and a digest of all answers.
nlohmann::json Calls(const nlohmann::json& request);
// "watchers" streams on "connections", on "jobs" jobs that are begun anew as they end, for
// "seconds": events, their lag and lost ends.
nlohmann::json Watchers(const nlohmann::json& request);

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_RPC_LOAD_H_
