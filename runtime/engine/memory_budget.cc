#include "runtime/engine/memory_budget.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "backends/error.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMiB = int64_t{1} << 20;
// What a control group without a limit says, rounded down to pages: nothing real is as large.
constexpr int64_t kNoLimit = int64_t{1} << 60;

std::vector<std::string> Lines(const fs::path& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::istringstream stream(text);
  std::vector<std::string> parts;
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::optional<int64_t> NumberIn(const fs::path& path) {
  std::ifstream file(path);
  int64_t number = 0;
  if (!(file >> number) || number >= kNoLimit) return std::nullopt;  // "max" is no number
  return number;
}

// Of /proc/*/status and /proc/meminfo: "Name:   123 kB".
std::optional<int64_t> KibField(const fs::path& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    int64_t kib = 0;
    if (word == name && file >> kib) return kib * 1024;
  }
  return std::nullopt;
}

// A hierarchy of control groups that limits memory: where it is mounted, which of its groups is the
// mount's root, and the file with a group's limit.
struct Hierarchy {
  bool v2;
  fs::path mount_point;
  std::string mount_root;
  const char* file() const { return v2 ? "memory.max" : "memory.limit_in_bytes"; }
};

bool HasOption(const std::string& options, const std::string& wanted) {
  const auto all = Split(options, ',');
  return std::find(all.begin(), all.end(), wanted) != all.end();
}

// proc(5): "36 35 98:0 ROOT MOUNT_POINT options - TYPE source super_options".
std::vector<Hierarchy> Hierarchies(const fs::path& root) {
  std::vector<Hierarchy> found;
  for (const std::string& line : Lines(root / "proc/self/mountinfo")) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const auto before = Split(line.substr(0, dash), ' ');
    const auto after = Split(line.substr(dash + 3), ' ');
    if (before.size() < 5 || after.empty()) continue;
    const bool v2 = after[0] == "cgroup2";
    const bool v1 = after[0] == "cgroup" && after.size() > 2 && HasOption(after[2], "memory");
    if (v1 || v2) found.push_back({v2, root / before[4].substr(1), before[3]});
  }
  return found;
}

// The group of this process in a hierarchy, as /proc/self/cgroup names it: "4:memory:/a/b" or
// "0::/a/b".
std::optional<std::string> GroupOf(const fs::path& root, bool v2) {
  for (const std::string& line : Lines(root / "proc/self/cgroup")) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? controllers.empty() : HasOption(controllers, "memory")) return line.substr(second + 1);
  }
  return std::nullopt;
}

// From the group's folder up to the mount: every level's limit binds. A group that the mount does
// not show (a container sees its own as the root) counts from the mount itself.
std::optional<int64_t> SmallestLimit(const Hierarchy& hierarchy, const std::string& group) {
  std::string below = group;
  if (hierarchy.mount_root != "/" && below.starts_with(hierarchy.mount_root)) {
    below = below.substr(hierarchy.mount_root.size());
  }
  fs::path folder = hierarchy.mount_point / fs::path(below).relative_path();
  std::error_code ignored;
  if (!fs::exists(folder, ignored)) folder = hierarchy.mount_point;
  std::optional<int64_t> smallest;
  for (;;) {
    const auto limit = NumberIn(folder / hierarchy.file());
    if (limit) smallest = std::min(smallest.value_or(*limit), *limit);
    if (folder == hierarchy.mount_point || !folder.has_relative_path()) return smallest;
    folder = folder.parent_path();
  }
}

[[noreturn]] void RefuseSize(const std::string& text) {
  throw InvalidField("max_memory",
                     "wanted auto, none or a size such as 8GiB or 1500MiB, got '" + text + "'");
}

}  // namespace

int64_t MemoryReserve(int64_t bytes) { return std::max(bytes / 16, 64 * kMiB); }

std::string BytesText(int64_t bytes) {
  const bool large = bytes >= 1024 * kMiB;
  std::array<char, 48> text;
  std::snprintf(text.data(), text.size(), large ? "%.2f GiB" : "%.0f MiB",
                static_cast<double>(bytes) / static_cast<double>(large ? 1024 * kMiB : kMiB));
  return text.data();
}

std::optional<int64_t> ParseBytes(const std::string& text) {
  double number = 0;
  const char* const end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(number) || number < 0) return std::nullopt;
  while (rest != end && *rest == ' ') ++rest;
  const std::string unit(rest, end);
  const std::string_view prefixes = "KMGT";
  const size_t power = unit.empty() ? std::string_view::npos
                                    : prefixes.find(static_cast<char>(std::toupper(unit[0])));
  const std::string tail = power == std::string_view::npos ? unit : unit.substr(1);
  const bool plain = power == std::string_view::npos;
  if (plain ? tail != "B" : (!tail.empty() && tail != "B" && tail != "iB")) return std::nullopt;
  const double base = tail == "B" ? 1000 : 1024;
  const double bytes = plain ? number : number * std::pow(base, static_cast<double>(power) + 1);
  if (bytes >= static_cast<double>(kNoLimit)) return std::nullopt;
  return static_cast<int64_t>(bytes);
}

std::optional<int64_t> MachineMemory(const fs::path& root) {
  return KibField(root / "proc/meminfo", "MemTotal:");
}

std::optional<int64_t> CgroupMemoryLimit(const fs::path& root) {
  std::optional<int64_t> smallest;
  for (const Hierarchy& hierarchy : Hierarchies(root)) {
    const auto group = GroupOf(root, hierarchy.v2);
    if (!group) continue;
    const auto limit = SmallestLimit(hierarchy, *group);
    if (limit) smallest = std::min(smallest.value_or(*limit), *limit);
  }
  return smallest;
}

int64_t ResidentBytes() { return KibField("/proc/self/status", "VmRSS:").value_or(0); }

int64_t UnreclaimableBytes() {
  const auto anonymous = KibField("/proc/self/status", "RssAnon:");
  if (!anonymous) return ResidentBytes();  // kernels before 4.5 do not say
  // What is swapped out was not given back.
  return *anonymous + KibField("/proc/self/status", "RssShmem:").value_or(0) +
         KibField("/proc/self/status", "VmSwap:").value_or(0);
}

MemoryBudget::MemoryBudget(const std::string& text, fs::path root) : root_(std::move(root)) {
  if (text == "auto") return;
  if (text == "none" || text == "0") {
    kind_ = Kind::kNone;
    return;
  }
  const auto size = ParseBytes(text);
  if (!size || *size < kMiB) RefuseSize(text);
  kind_ = Kind::kSize;
  size_ = *size;
}

std::optional<MemoryBudget::Limit> MemoryBudget::Now() const {
  if (kind_ == Kind::kNone) return std::nullopt;
  if (kind_ == Kind::kSize) return Limit{size_, "--max_memory"};
  const auto machine = MachineMemory(root_), group = CgroupMemoryLimit(root_);
  if (!machine && !group) return std::nullopt;
  const bool by_group = group && (!machine || *group < *machine);
  const int64_t bytes = by_group ? *group : *machine;
  const std::string whose = by_group ? "the control group's limit" : "this machine's memory";
  return Limit{std::max<int64_t>(0, bytes - MemoryReserve(bytes)),
               whose + " of " + BytesText(bytes) + " less a reserve"};
}

}  // namespace denoised
