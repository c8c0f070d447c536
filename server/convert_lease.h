// Leases and the questions about selection. As convert.h has it.
#ifndef DENOISED_SERVER_CONVERT_LEASE_H_
#define DENOISED_SERVER_CONVERT_LEASE_H_

#include <string>

#include "denoised/v1/admin.pb.h"
#include "runtime/engine.h"

namespace denoised {

// `field` names the scope in errors. Whether it can hold for anything is the policy's to say.
LeaseScope FromProto(const v1::LeaseScope& message, const std::string& field);
v1::LeaseScope ToProto(const LeaseScope& scope);
Budget FromProto(const v1::Budget& message, const std::string& field);
v1::Budget ToProto(const Budget& budget);

// Without its holder.
LeaseRequest FromProto(const v1::ForceBackendRequest& message);
LeaseRequest FromProto(const v1::HoldBackendRequest& message);
v1::Lease ToProto(const Lease& lease);

ExplainQuery FromProto(const v1::ExplainSelectionRequest& message);
v1::RoleExplanation ToProto(const Explanation& explanation);

}  // namespace denoised

#endif  // DENOISED_SERVER_CONVERT_LEASE_H_
