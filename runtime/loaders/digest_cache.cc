#include "runtime/loaders/digest_cache.h"

#include <chrono>
#include <sstream>
#include <utility>

#include "backends/error.h"
#include "runtime/loaders/loose_file.h"

namespace denoised {
namespace {

constexpr char kHeading[] = "denoised digests 1";
constexpr uint64_t kMaxBytes = 16 << 20;
constexpr size_t kHexDigits = 64;
// Some ticks of the clock that file systems stamp with.
constexpr std::chrono::milliseconds kSettled{100};

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string ReadIfThere(const std::filesystem::path& file) {
  try {
    return OpenLooseFile(file).ReadAll(kMaxBytes);
  } catch (const Error&) {
    return "";
  }
}

}  // namespace

DigestCache::DigestCache(std::filesystem::path file) : file_(std::move(file)) {
  if (file_.empty()) return;
  std::istringstream lines(ReadIfThere(file_));
  std::string line;
  if (!std::getline(lines, line) || line != kHeading) return;
  while (std::getline(lines, line)) ReadLine(line);
}

void DigestCache::ReadLine(const std::string& line) {
  std::istringstream fields(line);
  Known known;
  FileStamp& stamp = known.stamp;
  std::string path;
  fields >> known.sha256 >> stamp.device >> stamp.inode >> stamp.size >> stamp.modified_ns >>
      stamp.changed_ns;
  if (!fields || fields.get() != ' ' || known.sha256.size() != kHexDigits) return;
  if (known.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) return;
  std::getline(fields, path);
  if (!path.empty()) known_[path] = std::move(known);
}

std::optional<std::string> DigestCache::Find(const std::string& path,
                                             const FileStamp& stamp) const {
  const auto found = known_.find(path);
  if (found == known_.end() || found->second.stamp != stamp) return std::nullopt;
  return found->second.sha256;
}

void DigestCache::Put(const std::string& path, const FileStamp& stamp, const std::string& sha256) {
  const int64_t settled = std::chrono::nanoseconds(kSettled).count();
  const bool keeps = !file_.empty() && path.find('\n') == std::string::npos &&
                     stamp.changed_ns + settled < NowNs();
  if (!keeps) return;
  known_[path] = {stamp, sha256};
  changed_ = true;
}

void DigestCache::Save() {
  if (!std::exchange(changed_, false)) return;
  std::ostringstream text;
  text << kHeading << '\n';
  for (const auto& [path, known] : known_) {
    std::error_code unreadable;
    if (!std::filesystem::exists(path, unreadable)) continue;
    const FileStamp& stamp = known.stamp;
    text << known.sha256 << ' ' << stamp.device << ' ' << stamp.inode << ' ' << stamp.size << ' '
         << stamp.modified_ns << ' ' << stamp.changed_ns << ' ' << path << '\n';
  }
  WriteWholeFile(file_, text.str());
}

}  // namespace denoised
