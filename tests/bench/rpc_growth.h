// What a server is asked for in numbers: jobs that wait, streams that are open, calls a second.
// Each answers a JSON request with what it saw.
#ifndef DENOISED_TESTS_BENCH_RPC_GROWTH_H_
#define DENOISED_TESTS_BENCH_RPC_GROWTH_H_

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

namespace denoised {

// "count" jobs with prompts of "prompt_bytes" from "clients" connections, as fast as they are
// taken; each must be.
nlohmann::json Fill(const nlohmann::json& request);

// GetJob of "job_id" for "seconds" on "connections" connections, on each "streams" calls at any
// moment: calls that were answered, and those that failed.
nlohmann::json Rate(const nlohmann::json& request);

// "streams" watchers of "job_id" on as many connections as "streams_each" wants. Open for as long
// as this lives.
class IdleStreams {
 public:
  // Returns when each has been told the job's state.
  explicit IdleStreams(const nlohmann::json& request);
  ~IdleStreams();

 private:
  class Stream;
  std::vector<std::unique_ptr<Stream>> streams_;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_RPC_GROWTH_H_
