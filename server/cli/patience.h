// How a command that can go on where it was waits for a server that is away.
#ifndef DENOISED_SERVER_CLI_PATIENCE_H_
#define DENOISED_SERVER_CLI_PATIENCE_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>

#include "server/flags.h"

namespace denoised::cli {

// Pauses between tries: each twice as long as the last, with chance in it, so that many clients of
// one server do not come back at once; never shorter than the server asks for.
class Patience {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;

  // `total` is waited for one absence, 0 = none is.
  explicit Patience(std::chrono::milliseconds total, uint64_t seed = std::random_device()(),
                    Clock clock = std::chrono::steady_clock::now)
      : total_(total), random_(seed), clock_(std::move(clock)) {}

  // The pause before the next try of a call that ended so; empty where none would help, or the
  // patience is over. The last one ends when that does.
  std::optional<std::chrono::milliseconds> PauseAfter(const grpc::Status& status);
  // The server is there again.
  void Renew() { away_since_.reset(); }
  bool waits() const { return away_since_.has_value(); }

 private:
  const std::chrono::milliseconds total_;
  std::mt19937_64 random_;
  const Clock clock_;
  std::optional<std::chrono::steady_clock::time_point> away_since_;
  std::chrono::milliseconds next_{0};
};

// --patience.
Flag PatienceFlag(std::chrono::milliseconds* total);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_PATIENCE_H_
