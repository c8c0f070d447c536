// The feed's lists of jobs: all of them, and those of each state, so that no page walks over jobs
// that it does not show.
#include <algorithm>
#include <string>

#include "runtime/store/feed.h"

namespace denoised {
namespace {

// Jobs of a page that are copied under one lock: who comes meanwhile waits for no more.
constexpr int kListedAtOnce = 64;

// A page token is the number of the last job shown, in decimal.
uint64_t ParseToken(const std::string& token) {
  if (token.empty()) return UINT64_MAX;
  const bool digits =
      std::all_of(token.begin(), token.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!digits || token.size() > 19) {
    throw InvalidField("page_token", "not a token of an earlier reply");
  }
  return std::stoull(token);
}

}  // namespace

JobPage Feed::List(std::optional<JobState> state, size_t page_size,
                   const std::string& page_token) const {
  uint64_t before = ParseToken(page_token);
  if (page_size == 0) throw InvalidField("page_size", "must be at least 1");
  JobPage page;
  // One more than was asked for tells that there are more.
  bool more = true;
  while (more && page.jobs.size() <= page_size) {
    const std::lock_guard lock(mutex_);
    const Order& order = state ? OrderOf(*state) : order_;
    auto job = order.lower_bound(before);
    for (int i = 0; i < kListedAtOnce && job != order.begin(); ++i) {
      before = (--job)->first;
      page.jobs.push_back(job->second->row.job);
      page.tokens.push_back(std::to_string(before));
      if (page.jobs.size() > page_size) break;
    }
    more = job != order.begin();
  }
  if (page.jobs.size() <= page_size) return page;
  page.jobs.pop_back();
  page.tokens.pop_back();
  page.next_page_token = page.tokens.back();
  return page;
}

void Feed::Enrol(const Record& record) {
  order_[record.row.number] = &record;
  of_state_[record.row.job.state][record.row.number] = &record;
}

void Feed::Strike(const Record& record) {
  order_.erase(record.row.number);
  of_state_[record.row.job.state].erase(record.row.number);
}

const Feed::Order& Feed::OrderOf(JobState state) const {
  static const Order nobody;
  const auto found = of_state_.find(state);
  return found == of_state_.end() ? nobody : found->second;
}

}  // namespace denoised
