#include "runtime/engine/cost_file.h"

#include <fstream>
#include <sstream>

#include "backends/error.h"
#include "runtime/loaders/file.h"

namespace denoised {
namespace {

std::string PathIn(const std::string& state_dir) { return state_dir + "/unit_times.json"; }

}  // namespace

void LoadCosts(const std::string& state_dir, CostModel* costs, Logger* logger) {
  if (state_dir.empty()) return;
  std::ifstream file(PathIn(state_dir), std::ios::binary);
  if (!file) return;  // a first start
  std::ostringstream text;
  text << file.rdbuf();
  const auto ignored = costs->Load(text.str());
  if (!ignored) return;
  logger->Warning("unit_times_ignored", {{"file", PathIn(state_dir)}, {"reason", *ignored}});
}

void SaveCosts(const std::string& state_dir, const CostModel& costs, Logger* logger) {
  if (state_dir.empty() || costs.size() == 0) return;
  try {
    WriteWholeFile(PathIn(state_dir), costs.Save());
  } catch (const Error& error) {
    logger->Warning("unit_times_not_kept", {{"file", PathIn(state_dir)}, {"reason", error.what()}});
  }
}

}  // namespace denoised
