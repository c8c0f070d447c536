#include "server/cli/patience.h"

#include <algorithm>

#include "server/convert_status.h"

namespace denoised::cli {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFirst(100), kLongest(5000);

}  // namespace

std::optional<milliseconds> Patience::PauseAfter(const grpc::Status& status) {
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return std::nullopt;
  const auto now = clock_();
  if (!away_since_) {
    away_since_ = now;
    next_ = kFirst;
  }
  const auto left = std::chrono::ceil<milliseconds>(*away_since_ + total_ - now);
  if (left <= milliseconds(0)) return std::nullopt;
  const milliseconds base = std::max(next_, RetryDelayOf(status).value_or(milliseconds(0)));
  next_ = std::min(2 * next_, kLongest);
  const milliseconds more(
      std::uniform_int_distribution<int64_t>(0, std::min(base, kLongest).count() / 2)(random_));
  return std::min(base + more, left);
}

Flag PatienceFlag(milliseconds* total) {
  return {"patience", "TIME", "60s",
          "How long to wait for a server that went away, as when it is restarted, before giving "
          "up; 0s: "
          "not at all.",
          [total](const std::string& text) { *total = ParseDuration("patience", text); }};
}

}  // namespace denoised::cli
