#include "runtime/engine/cost_model.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

namespace denoised {
namespace {

// A guess where nothing ever ran.
constexpr double kGuessedMultiplyAdds = 2e10;  // a second
constexpr double kGuessedLeast = 1e-3;         // seconds
// The laws are made again after so many observations.
constexpr uint64_t kLawsLast = 64;

// No part holds it: parts are names and shapes.
constexpr char kBetween = '\x1f';

// Wider and wider: the shapes of one model and backend, of the model, of everybody.
std::vector<std::string> LawNames(const UnitKey& key) {
  return {key.kind + kBetween + key.model + kBetween + key.backend, key.kind + kBetween + key.model,
          key.kind};
}

UnitSize SizeOf(const UnitKey& key, int64_t rows) {
  return {
      .rows = static_cast<double>(rows), .multiply_adds = key.multiply_adds, .tokens = key.tokens};
}

}  // namespace

std::string CostModel::NameOf(const UnitKey& key) {
  return key.model + kBetween + key.kind + kBetween + key.group + kBetween + key.backend;
}

CostModel::Entry& CostModel::EntryOf(const UnitKey& key) {
  const auto [entry, is_new] = entries_.try_emplace(NameOf(key));
  entry->second.key = key;
  entry->second.used = ++observations_;
  if (is_new) laws_made_ = 0;
  return entry->second;
}

void CostModel::Observe(const UnitKey& key, int64_t rows, double seconds) {
  if (rows < 1 || !(seconds > 0) || !std::isfinite(seconds)) return;
  const std::lock_guard lock(mutex_);
  Entry& entry = EntryOf(key);
  entry.here = true;
  Add(&entry, rows, seconds);
  ForgetOldest();
}

void CostModel::Add(Entry* entry, int64_t rows, double seconds) {
  ++learnt_.times;
  learnt_.firsts += entry->times.by_rows().contains(rows) ? 0 : 1;
  entry->times.Add(rows, seconds);
}

void CostModel::ForgetOldest() {
  while (entries_.size() > max_keys_) {
    entries_.erase(std::min_element(
        entries_.begin(), entries_.end(),
        [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
  }
}

void CostModel::MakeLaws() const {
  std::map<std::string, std::vector<CostLaw::Sample>> samples;
  for (const auto& [name, entry] : entries_) {
    for (const auto& [rows, times] : entry.times.by_rows()) {
      const double weight = static_cast<double>(times.count()) / (2.0 + times.count());
      for (const std::string& law : LawNames(entry.key)) {
        samples[law].push_back({SizeOf(entry.key, rows), times.typical(), weight});
      }
    }
  }
  laws_.clear();
  for (auto& [name, of_one] : samples) laws_.emplace(name, CostLaw(std::move(of_one)));
  laws_made_ = observations_;
}

const CostLaw* CostModel::LawFor(const UnitKey& key) const {
  if (laws_made_ == 0 || observations_ - laws_made_ >= kLawsLast) MakeLaws();
  for (const std::string& name : LawNames(key)) {
    const auto law = laws_.find(name);
    if (law != laws_.end()) return &law->second;
  }
  return nullptr;
}

double CostModel::Seconds(const UnitKey& key, int64_t rows) const {
  const std::lock_guard lock(mutex_);
  const auto entry = entries_.find(NameOf(key));
  if (entry != entries_.end()) return entry->second.times.Seconds(rows);
  if (const CostLaw* law = LawFor(key)) return law->Seconds(SizeOf(key, rows));
  return std::max(kGuessedLeast,
                  static_cast<double>(rows) * key.multiply_adds / kGuessedMultiplyAdds);
}

bool CostModel::known(const UnitKey& key) const {
  const std::lock_guard lock(mutex_);
  return entries_.count(NameOf(key)) > 0 || LawFor(key) != nullptr;
}

bool CostModel::ran_here(const UnitKey& key) const {
  const std::lock_guard lock(mutex_);
  const auto entry = entries_.find(NameOf(key));
  return entry != entries_.end() && entry->second.here;
}

int64_t CostModel::WorthRows(const UnitKey& key, int64_t most) const {
  const std::lock_guard lock(mutex_);
  const auto entry = entries_.find(NameOf(key));
  return entry == entries_.end() ? 1 : entry->second.times.WorthRows(most);
}

size_t CostModel::size() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

CostModel::Learnt CostModel::learnt() const {
  const std::lock_guard lock(mutex_);
  return learnt_;
}

}  // namespace denoised
