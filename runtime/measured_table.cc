#include "runtime/measured_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>

namespace denoised {
namespace {

// The bucket's upper end.
int64_t BucketOf(int64_t count) {
  return count <= 0 ? 0 : static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count)));
}

std::string BucketText(int64_t bucket) {
  const int64_t first = bucket / 2 + 1;
  return first >= bucket ? std::to_string(bucket)
                         : std::to_string(first) + "-" + std::to_string(bucket);
}

}  // namespace

std::string_view MaskKindName(MaskKind kind) {
  constexpr std::array<std::string_view, 4> kNames = {"none", "causal", "mask", "causal_mask"};
  return kNames[static_cast<size_t>(kind)];
}

MeasuredKey KeyOf(const AttentionSpec& spec, int64_t rows) {
  MeasuredKey key;
  key.dtype = spec.dtype;
  key.head_size = spec.head_size;
  key.q_len = BucketOf(spec.q_len);
  key.kv_len = BucketOf(spec.kv_len);
  key.mask = spec.causal ? (spec.has_mask ? MaskKind::kCausalMask : MaskKind::kCausal)
                         : (spec.has_mask ? MaskKind::kMask : MaskKind::kNone);
  key.rows = BucketOf(rows);
  return key;
}

std::string ToText(const MeasuredKey& key) {
  std::string text = std::string(DTypeName(key.dtype)) + ", head size " +
                     std::to_string(key.head_size) + ", " + BucketText(key.q_len) + " queries, " +
                     BucketText(key.kv_len) + " keys, ";
  if (key.mask != MaskKind::kNone) text += std::string(MaskKindName(key.mask)) + ", ";
  return text + BucketText(key.rows) + (key.rows == 1 ? " row" : " rows");
}

std::string ToText(const MeasuredRow& row) {
  char text[80];
  std::snprintf(text, sizeof text, "%.3g s a call, error %.2g", row.seconds, row.relative_l2);
  return text;
}

void MeasuredTable::Put(MeasuredGroup group) {
  auto place = std::pair(group.on, group.key);
  groups_.insert_or_assign(std::move(place), std::move(group));
}

void MeasuredTable::Trim(const MeasuredOn& here) {
  const auto worth = [&](const auto& entry) {
    return std::pair(entry.second.on == here, entry.second.measured_at);
  };
  while (groups_.size() > kMaxGroups) groups_.erase(std::ranges::min_element(groups_, {}, worth));
}

const MeasuredGroup* MeasuredTable::Find(const MeasuredOn& on, const MeasuredKey& key) const {
  const auto found = groups_.find({on, key});
  return found == groups_.end() ? nullptr : &found->second;
}

std::vector<const MeasuredGroup*> MeasuredTable::Elsewhere(const MeasuredOn& on,
                                                           const MeasuredKey& key) const {
  std::vector<const MeasuredGroup*> groups = All();
  std::erase_if(groups, [&](const auto* group) { return group->on == on || group->key != key; });
  return groups;
}

std::vector<const MeasuredGroup*> MeasuredTable::All() const {
  std::vector<const MeasuredGroup*> groups;
  for (const auto& [place, group] : groups_) groups.push_back(&group);
  return groups;
}

std::string WhatDiffers(const MeasuredOn& here, const MeasuredOn& other) {
  std::string text;
  const auto add = [&](const char* what, const std::string& was, const std::string& is) {
    if (was == is) return;
    text += (text.empty() ? "another " : ", another ") + std::string(what) + " (" + was + ")";
  };
  add("version", other.version, here.version);
  add("device", other.device, here.device);
  add("instruction set", other.kernels, here.kernels);
  return text;
}

}  // namespace denoised
