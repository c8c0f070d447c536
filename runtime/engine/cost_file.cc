#include "runtime/engine/cost_file.h"

#include <fstream>
#include <sstream>
#include <string_view>

#include "runtime/caught.h"
#include "runtime/loaders/file.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;
using SteadyClock = std::chrono::steady_clock;

constexpr char kName[] = "unit_times.json";
constexpr std::string_view kPart = "unit_times.json.part.";  // what WriteWholeFile begins with

}  // namespace

CostFile::CostFile(const fs::path& state_dir, CostModel* costs, Logger* logger, Pace pace)
    : path_(state_dir.empty() ? fs::path() : state_dir / kName),
      costs_(costs),
      logger_(logger),
      pace_(pace) {
  if (path_.empty()) return;
  RemoveParts();
  Load();
  kept_ = costs_->learnt();
  tried_at_ = SteadyClock::now();
  ticker_.emplace(pace_.look, [this] { Tick(); });
}

void CostFile::Load() {
  std::ifstream file(path_, std::ios::binary);
  if (!file) return;  // a first start
  std::ostringstream text;
  text << file.rdbuf();
  const auto ignored = costs_->Load(text.str());
  if (!ignored) return;
  logger_->Warning("unit_times_ignored", {{"file", path_.string()}, {"reason", *ignored}});
}

// Of servers that were killed while they wrote.
void CostFile::RemoveParts() const {
  Caught([this] {
    for (const auto& entry : fs::directory_iterator(path_.parent_path())) {
      if (entry.path().filename().string().starts_with(kPart)) fs::remove(entry.path());
    }
  });
}

// New units at once, since nothing else predicts them; times of known ones change little.
bool CostFile::IsDue() const {
  const CostModel::Learnt learnt = costs_->learnt();
  const std::lock_guard lock(mutex_);
  if (learnt == kept_) return false;
  const bool rested = SteadyClock::now() - tried_at_ >= pace_.rest;
  return rested || (learnt.firsts != kept_.firsts && !failed_);
}

void CostFile::JobEnded() {
  if (ticker_ && IsDue()) ticker_->Soon();
}

void CostFile::Tick() {
  if (IsDue()) Save();
}

void CostFile::Save() {
  if (path_.empty()) return;
  const std::lock_guard one_at_a_time(file_mutex_);
  const CostModel::Learnt learnt = costs_->learnt();
  if (learnt.times == 0) return;
  const auto error = Caught([&] { WriteWholeFile(path_, costs_->Save()); });
  Tell(error);
  const std::lock_guard lock(mutex_);
  if (!error) kept_ = learnt;
  failed_ = error.has_value();
  tried_at_ = SteadyClock::now();
}

// Says each trouble once, not at every try.
void CostFile::Tell(const std::optional<Error>& error) {
  {
    const std::lock_guard lock(mutex_);
    if (!error || failed_) return;
  }
  logger_->Warning("unit_times_not_kept", {{"file", path_.string()}, {"reason", error->what()}});
}

}  // namespace denoised
