#include "runtime/attention/measurements.h"

#include <algorithm>
#include <ctime>
#include <limits>
#include <sstream>

namespace denoised {
namespace {

bool MayBeChosen(const MeasuredRow& row, const BackendRegistry& registry,
                 std::optional<double> auto_error) {
  const BackendRegistry::Entry* entry = registry.Find(row.backend);
  if (entry == nullptr) return false;
  return entry->automatic || (auto_error && row.relative_l2 <= *auto_error);
}

std::string IgnoredText(int64_t groups, const MeasuredOn& here, const MeasuredOn& other) {
  return std::to_string(groups) + (groups == 1 ? " measurement is" : " measurements are") +
         " ignored: of " + WhatDiffers(here, other);
}

}  // namespace

void Measurements::Open(MeasuredOn here, std::optional<double> auto_error, MeasuredTable table) {
  const std::lock_guard lock(mutex_);
  here_ = std::move(here);
  auto_error_ = auto_error;
  table_ = std::move(table);
}

std::vector<PreferredBackend> MeasuredOrder::For(const MeasuredKey& key) const {
  std::vector<PreferredBackend> preferred;
  for (const MeasuredRow& row : fastest_first) {
    preferred.push_back({row.backend, ToText(row) + ", for " + ToText(key)});
  }
  return preferred;
}

MeasuredOrder Measurements::OrderOf(const MeasuredKey& key, const BackendRegistry& registry) const {
  const std::lock_guard lock(mutex_);
  MeasuredOrder order;
  const MeasuredGroup* group = table_.Find(here_, key);
  if (group == nullptr) return order;
  for (const MeasuredRow& row : group->rows) {
    if (MayBeChosen(row, registry, auto_error_)) order.fastest_first.push_back(row);
  }
  std::ranges::stable_sort(order.fastest_first, {}, &MeasuredRow::seconds);
  order.measured_at = group->measured_at;
  return order;
}

std::string Measurements::WhyIgnored(const MeasuredKey& key) const {
  const std::lock_guard lock(mutex_);
  const auto elsewhere = table_.Elsewhere(here_, key);
  if (elsewhere.empty()) return "";
  return IgnoredText(static_cast<int64_t>(elsewhere.size()), here_, elsewhere.front()->on);
}

void Measurements::Put(MeasuredGroup group) {
  const std::lock_guard lock(mutex_);
  group.on = here_;
  group.measured_at =
      std::chrono::time_point_cast<std::chrono::seconds>(std::chrono::system_clock::now());
  table_.Put(std::move(group));
  table_.Trim(here_);
}

Measurements::Taken Measurements::Take(const MeasuredTable& table) {
  const std::lock_guard lock(mutex_);
  Taken taken;
  for (const MeasuredGroup* group : table.All()) {
    ++taken.groups;
    if (group->on != here_) {
      ++taken.ignored;
      taken.why_ignored = IgnoredText(taken.ignored, here_, group->on);
    }
    const MeasuredGroup* had = table_.Find(group->on, group->key);
    if (had == nullptr || had->measured_at <= group->measured_at) table_.Put(*group);
  }
  table_.Trim(here_);
  return taken;
}

MeasuredTable Measurements::table() const {
  const std::lock_guard lock(mutex_);
  return table_;
}

Measurements::Taken Measurements::Ignored() const {
  const std::lock_guard lock(mutex_);
  Taken all;
  for (const MeasuredGroup* group : table_.All()) {
    ++all.groups;
    if (group->on == here_) continue;
    ++all.ignored;
    all.why_ignored = IgnoredText(all.ignored, here_, group->on);
  }
  return all;
}

void Measurements::NoteMissing(const MeasureShape& shape) {
  const std::lock_guard lock(mutex_);
  if (noted_.size() >= kMaxNoted) return;
  const MeasuredKey key = KeyOf(shape.spec, shape.rows);
  if (table_.Find(here_, key) == nullptr && noted_.insert(key).second) missing_.push_back(shape);
}

std::optional<MeasureShape> Measurements::TakeMissing() {
  const std::lock_guard lock(mutex_);
  while (!missing_.empty()) {
    MeasureShape shape = std::move(missing_.front());
    missing_.erase(missing_.begin());
    if (table_.Find(here_, KeyOf(shape.spec, shape.rows)) == nullptr) return shape;
  }
  return std::nullopt;
}

bool Measurements::HasMissing() const {
  const std::lock_guard lock(mutex_);
  return !missing_.empty();
}

MeasuredOrder AutomaticOrder::Of(const AttentionSpec& spec, int64_t rows,
                                 Measurements& measurements, const BackendRegistry& registry) {
  const MeasuredKey key = KeyOf(spec, rows);
  const std::lock_guard lock(mutex_);
  const auto [place, first] = by_key_.try_emplace(ToText(key));
  if (first) {
    place->second = measurements.OrderOf(key, registry);
    if (place->second.fastest_first.empty()) measurements.NoteMissing({spec, rows});
  }
  return place->second;
}

// A line a key: its text, a tab, when that was measured, and for each backend its name, seconds and
// error.
std::string AutomaticOrder::Save() const {
  std::ostringstream text;
  text.precision(std::numeric_limits<double>::max_digits10);
  const std::lock_guard lock(mutex_);
  for (const auto& [key, order] : by_key_) {
    text << key << '\t' << std::chrono::system_clock::to_time_t(order.measured_at);
    for (const MeasuredRow& row : order.fastest_first) {
      text << ' ' << AttnBackendName(row.backend) << ' ' << row.seconds << ' ' << row.relative_l2;
    }
    text << '\n';
  }
  return text.str();
}

void AutomaticOrder::Restore(const std::string& saved) {
  const std::lock_guard lock(mutex_);
  by_key_.clear();
  std::istringstream lines(saved);
  for (std::string line; std::getline(lines, line);) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) continue;
    std::istringstream values(line.substr(tab + 1));
    std::time_t measured_at = 0;
    if (!(values >> measured_at)) continue;
    MeasuredOrder& order = by_key_[line.substr(0, tab)];
    order.measured_at = std::chrono::system_clock::from_time_t(measured_at);
    MeasuredRow row;
    for (std::string name; values >> name >> row.seconds >> row.relative_l2;) {
      const auto backend = BackendNameToEnum(name);
      if (!backend) continue;
      row.backend = *backend;
      order.fastest_first.push_back(row);
    }
  }
}

}  // namespace denoised
