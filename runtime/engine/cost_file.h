// The cost model between two starts of a server: a file of its own in the state folder. What it
// says is never needed, so nothing about it is an error.
#ifndef DENOISED_RUNTIME_ENGINE_COST_FILE_H_
#define DENOISED_RUNTIME_ENGINE_COST_FILE_H_

#include <string>

#include "runtime/engine/cost_model.h"
#include "runtime/log.h"

namespace denoised {

// `state_dir` "" = nothing is kept. A file that cannot be used is named in one log line.
void LoadCosts(const std::string& state_dir, CostModel* costs, Logger* logger);
// Whole or not at all.
void SaveCosts(const std::string& state_dir, const CostModel& costs, Logger* logger);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_COST_FILE_H_
