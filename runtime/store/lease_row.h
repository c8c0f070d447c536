// A lease as it is kept, and when it ends for a process that reads it later. Torch-free.
#ifndef DENOISED_RUNTIME_STORE_LEASE_ROW_H_
#define DENOISED_RUNTIME_STORE_LEASE_ROW_H_

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "runtime/selection_policy.h"
#include "runtime/store/clocks.h"

namespace denoised {
namespace stored {

// All but its end. Reading throws what nlohmann throws, or DATA_LOSS.
nlohmann::json WriteLease(const Lease& lease);
Lease ReadLease(const nlohmann::json& json);

}  // namespace stored

// With its end, on every clock.
std::string WriteLeaseRow(const Lease& lease, const ClockReading& now);

struct LeaseRow {
  Lease lease;
  bool over = false;  // its time has passed; the lease's end is unset
};
// Throws DATA_LOSS for what WriteLeaseRow cannot have written.
LeaseRow ReadLeaseRow(const std::string& text, const ClockReading& now);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_LEASE_ROW_H_
