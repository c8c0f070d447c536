#include "server/cli/job_id.h"

#include <algorithm>
#include <vector>

#include "server/cli/command.h"

namespace denoised::cli {
namespace {

constexpr size_t kIdDigits = 32;
constexpr size_t kMostListed = 10;

std::vector<std::string> IdsThatBegin(const std::string& digits, const ListPage& list) {
  std::vector<std::string> ids;
  std::string token;
  do {
    const v1::ListJobsResponse page = list(token);
    for (const v1::Job& job : page.jobs()) {
      if (job.id().starts_with(digits)) ids.push_back(job.id());
    }
    token = page.next_page_token();
  } while (!token.empty());
  return ids;
}

std::string Lower(std::string digits) {
  for (char& c : digits) {
    if (c >= 'A' && c <= 'F') c = static_cast<char>(c - 'A' + 'a');
  }
  return digits;
}

std::string Listed(const std::vector<std::string>& ids) {
  std::string text;
  for (size_t i = 0; i < std::min(ids.size(), kMostListed); ++i) {
    text += (i == 0 ? "" : ", ") + ids[i];
  }
  return text + (ids.size() > kMostListed ? ", ..." : "");
}

}  // namespace

std::string ResolveJobId(const std::string& text, const ListPage& list) {
  if (text.empty()) throw UsageError("the job's ID is empty");
  const std::string digits = Lower(text);
  const bool hex = digits.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!hex || digits.size() > kIdDigits) return text;
  if (digits.size() == kIdDigits) return digits;
  const std::vector<std::string> ids = IdsThatBegin(digits, list);
  if (ids.size() == 1) return ids.front();
  if (ids.empty()) throw CommandError("NOT_FOUND: no job's ID begins with '" + text + "'");
  throw CommandError("the IDs of " + std::to_string(ids.size()) + " jobs begin with '" + text +
                     "': " + Listed(ids) + "; give more digits");
}

}  // namespace denoised::cli
