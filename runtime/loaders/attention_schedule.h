// A schedule of attention as JSON: in a model's denoised.json, on the command line, in the store.
// Torch-free.
//
// A list of rules {"steps": "0-4", "sigma": "0.2-0.9", "layers": "0-3", "role": "self",
// "backend": "FLASH_ATTN", "parameters": {...}, "strict": false}; every key but `backend` may be
// left out.
#ifndef DENOISED_RUNTIME_LOADERS_ATTENTION_SCHEDULE_H_
#define DENOISED_RUNTIME_LOADERS_ATTENTION_SCHEDULE_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/scope.h"

namespace denoised {

// Throws INVALID_ARGUMENT naming "<where>[i]: <key>" for what is no schedule.
std::vector<AttentionRule> ReadSchedule(const nlohmann::json& list, const std::string& where);
nlohmann::json WriteSchedule(const std::vector<AttentionRule>& schedule);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_ATTENTION_SCHEDULE_H_
