// The flags that describe a lease: of force, hold and, for a lease that is not there, explain.
#ifndef DENOISED_SERVER_CLI_LEASE_FLAGS_H_
#define DENOISED_SERVER_CLI_LEASE_FLAGS_H_

#include <functional>
#include <string>
#include <vector>

#include "denoised/v1/admin.pb.h"
#include "runtime/scope.h"
#include "server/flags.h"

namespace denoised::cli {

// Scope, parameters and strictness. Each flag's name begins with `prefix`; `request` gives what it
// sets, when it sets it.
std::vector<Flag> LeaseFlags(const std::string& prefix,
                             const std::function<v1::ForceBackendRequest*()>& request);
// Those of a lease that is made: ttl, reason, generation, budget. `request` outlives the flags.
std::vector<Flag> TermFlags(v1::ForceBackendRequest* request);

// --ttl, of a lease that is made or renewed, and --generation, of whatever changes leases.
Flag TtlFlag(std::function<google::protobuf::Duration*()> ttl);
Flag GenerationFlag(std::function<void(uint64_t)> set);

// Values of flags; UsageError naming the flag.
Interval ParseRangeFlag(const std::string& name, const std::string& text);  // "0-5", "3"
double ParsePercent(const std::string& name, const std::string& text);      // "20%", "20"

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_LEASE_FLAGS_H_
