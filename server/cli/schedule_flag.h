// --schedule: which backend at which steps and layers, from the command line or a file.
#ifndef DENOISED_SERVER_CLI_SCHEDULE_FLAG_H_
#define DENOISED_SERVER_CLI_SCHEDULE_FLAG_H_

#include <string>

#include "denoised/v1/types.pb.h"
#include "server/flags.h"

namespace denoised::cli {

// `options` outlives the flag.
Flag ScheduleFlag(v1::AttentionOptions* options);

// `text` is JSON (a list of rules; see runtime/loaders/attention_schedule.h) or the path of a file
// with it. Throws UsageError naming --schedule, the rule by its index and the key.
void SetSchedule(const std::string& text, v1::AttentionOptions* options);

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_SCHEDULE_FLAG_H_
