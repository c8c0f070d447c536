// Options of attention and what became of them: schedules, receipts, backends. As convert.h has it.
#ifndef DENOISED_SERVER_CONVERT_ATTENTION_H_
#define DENOISED_SERVER_CONVERT_ATTENTION_H_

#include <optional>
#include <string>
#include <vector>

#include "denoised/v1/admin.pb.h"
#include "denoised/v1/types.pb.h"
#include "runtime/engine.h"

namespace denoised {

AttentionOptions FromProto(const v1::AttentionOptions& message);
SelectionMode FromProto(v1::SelectionPolicy policy, const std::string& field);
v1::SelectionPolicy ToProto(SelectionMode mode);

// Places. Whether they can hold for anything is not asked here.
Interval FromProto(const v1::Interval& message);
SigmaRange FromProto(const v1::SigmaRange& message);
AttentionRole LoopRoleFromProto(const std::string& name, const std::string& field);
v1::Interval ToProto(const Interval& interval);
v1::SigmaRange ToProto(const SigmaRange& range);

v1::Receipt ToProto(const Receipt& receipt);
v1::Backend ToProto(const BackendInfo& backend);
void FillRefusals(const std::vector<Refusal>& refusals,
                  google::protobuf::RepeatedPtrField<v1::Refusal>* out);

}  // namespace denoised

#endif  // DENOISED_SERVER_CONVERT_ATTENTION_H_
