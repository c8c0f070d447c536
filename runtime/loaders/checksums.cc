#include "runtime/loaders/checksums.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "backends/error.h"

namespace denoised {
namespace {

constexpr size_t kHexDigits = 64;
constexpr std::string_view kTag = "SHA256 (";
constexpr std::string_view kTagEnd = ") = ";

struct Line {
  std::string path, digest;
};

bool IsHexDigest(std::string_view text) {
  return text.size() == kHexDigits && std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return c < 0x80 && std::isxdigit(c);
         });
}

// sha256sum writes a backslash and a newline in a name as \\ and \n, and '\' before such a line.
std::string Unescaped(std::string_view name) {
  std::string out;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool escape = name[i] == '\\' && i + 1 < name.size();
    if (!escape) {
      out += name[i];
      continue;
    }
    const char next = name[++i];
    out += next == 'n' ? '\n' : next == 'r' ? '\r' : next;
  }
  return out;
}

// Empty fields where the line has no form that is known.
Line Split(std::string_view line) {
  const bool escaped = line.starts_with('\\');
  if (escaped) line.remove_prefix(1);
  std::string_view path, digest;
  if (line.starts_with(kTag)) {
    const size_t end = line.rfind(kTagEnd);
    if (end == std::string_view::npos) return {};
    path = line.substr(kTag.size(), end - kTag.size());
    digest = line.substr(end + kTagEnd.size());
  } else {
    const size_t gap = kHexDigits;
    const bool form =
        line.size() > gap + 2 && line[gap] == ' ' && (line[gap + 1] == ' ' || line[gap + 1] == '*');
    if (!form) return {};
    digest = line.substr(0, gap);
    path = line.substr(gap + 2);
  }
  if (!IsHexDigest(digest)) return {};
  std::string lower(digest);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return {escaped ? Unescaped(path) : std::string(path), lower};
}

// "./a//b" is a/b. Empty where the path is absolute or leaves the folder.
std::string BelowFolder(const std::string& path) {
  const std::filesystem::path plain = std::filesystem::path(path).lexically_normal();
  const bool leaves = plain.empty() || plain.is_absolute() || *plain.begin() == ".." ||
                      plain == "." || path.find('\0') != std::string::npos;
  return leaves ? "" : plain.generic_string();
}

}  // namespace

Checksums ParseChecksums(std::string_view text, const std::string& what) {
  Checksums sums;
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with('#')) continue;
    const auto bad = [&](const std::string& why) {
      return Error(StatusCode::kInvalidArgument,
                   what + ": line " + std::to_string(number) + ": " + why, what);
    };
    const Line entry = Split(line);
    if (entry.path.empty()) throw bad("wanted 64 hex digits, two characters and a path");
    const std::string path = BelowFolder(entry.path);
    if (path.empty()) throw bad("the path leads out of the folder: " + entry.path);
    const auto [known, fresh] = sums.emplace(path, entry.digest);
    if (!fresh && known->second != entry.digest) throw bad(path + " has two digests");
  }
  return sums;
}

}  // namespace denoised
