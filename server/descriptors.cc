#include "server/descriptors.h"

#include <sys/resource.h>

#include <algorithm>

namespace denoised {
namespace {

// Models, the log, gRPC's own wake-up and polling descriptors, and what a load opens meanwhile.
constexpr int64_t kOwnDescriptors = 128;

}  // namespace

int64_t RaiseDescriptorLimit() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  rlimit raised = limit;
  raised.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  constexpr rlim_t kPlenty = rlim_t{1} << 30;  // "unlimited" included
  return static_cast<int64_t>(std::min(limit.rlim_cur, kPlenty));
}

ConnectionCaps FitCaps(const ConnectionCaps& wanted, int64_t descriptors) {
  const int64_t room = descriptors - std::min(kOwnDescriptors, descriptors / 2);
  ConnectionCaps caps;
  caps.admin = std::min(wanted.admin, std::max<int64_t>(4, room / 8));
  caps.http = std::min(wanted.http, std::max<int64_t>(8, room / 4));
  caps.listen = std::min(wanted.listen, std::max<int64_t>(4, room - caps.admin - caps.http));
  return caps;
}

}  // namespace denoised
