#include "runtime/engine/cost_file.h"

#include <cstdio>
#include <fstream>
#include <sstream>

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
  const std::string path = PathIn(state_dir), part = path + ".part";
  {
    std::ofstream file(part, std::ios::binary | std::ios::trunc);
    file << costs.Save();
  }
  if (std::rename(part.c_str(), path.c_str()) == 0) return;
  logger->Warning("unit_times_not_kept", {{"file", path}});
}

}  // namespace denoised
