// Leases as tests make them.
#ifndef DENOISED_TESTS_RUNTIME_LEASES_H_
#define DENOISED_TESTS_RUNTIME_LEASES_H_

#include <string>
#include <utility>

#include "runtime/selection_policy.h"

namespace denoised {

// A lease of everything.
inline Lease AddForce(SelectionPolicy& policy, AttnBackend backend,
                      std::optional<std::chrono::milliseconds> ttl = std::nullopt,
                      std::string reason = "", std::string holder = "test",
                      std::string parameters = "", SelectionPolicy::OnEnd on_end = {}) {
  LeaseRequest request{backend, std::move(parameters)};
  request.ttl = ttl;
  request.reason = std::move(reason);
  request.holder = std::move(holder);
  return policy.Force(std::move(request), std::move(on_end));
}

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_LEASES_H_
