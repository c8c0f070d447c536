// Schedulers from configurations as diffusers writes them.
#ifndef DENOISED_TESTS_RUNTIME_SCHEDULER_CONFIGS_H_
#define DENOISED_TESTS_RUNTIME_SCHEDULER_CONFIGS_H_

#include <memory>

#include "runtime/loaders/config.h"
#include "runtime/schedulers/scheduler.h"

namespace denoised {

using Json = nlohmann::json;

inline Json UniPc(Json more = Json::object()) {
  Json config = {{"_class_name", "UniPCMultistepScheduler"},
                 {"prediction_type", "flow_prediction"},
                 {"use_flow_sigmas", true},
                 {"flow_shift", 3.0}};
  config.update(more);
  return config;
}

inline Json Euler(double shift) {
  return {{"_class_name", "FlowMatchEulerDiscreteScheduler"}, {"shift", shift}};
}

inline std::unique_ptr<Scheduler> Make(const Json& config) {
  return Scheduler::Create(config.value("_class_name", ""),
                           ConfigReader(config, "scheduler_config.json"));
}

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_SCHEDULER_CONFIGS_H_
