#include "runtime/audit.h"

#include <string>
#include <utility>

#include "runtime/cut_text.h"

namespace denoised {
namespace {

using std::chrono::system_clock;

// Longer ones are a backend's parameters, which nobody reads to their end here.
constexpr size_t kMaxText = 1024;

}  // namespace

void LogAudit(const AuditEntry& entry, Logger* logger) {
  std::string ends_in = "never";
  if (entry.ends_at) {
    const auto left = *entry.ends_at - entry.time;
    ends_in = std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(left).count());
  }
  logger->Info("audit", {{"what", entry.what},
                         {"who", entry.who},
                         {"subject", entry.subject},
                         {"old", entry.old_value},
                         {"new", entry.new_value},
                         {"reason", entry.reason},
                         {"ends_in_ms", ends_in}});
}

void Audit::Write(AuditEntry entry) {
  std::vector<AuditRecord> records;
  records.push_back({std::move(entry)});
  Write(std::move(records));
}

void Audit::Write(std::vector<AuditRecord> records) {
  for (AuditRecord& record : records) {
    AuditEntry& entry = record.entry;
    entry.time = system_clock::now();
    for (std::string* text :
         {&entry.who, &entry.subject, &entry.old_value, &entry.new_value, &entry.reason}) {
      *text = CutText(*text, kMaxText);
    }
    LogAudit(entry, logger_);
  }
  store_->AppendAudit(std::move(records));
  WakeAll();
}

std::vector<AuditEntry> Audit::ReadAfter(uint64_t number, size_t limit) const {
  return store_->ReadAudit(number, limit);
}

std::shared_ptr<void> Audit::Watch(std::function<void()> wake) {
  auto watcher = std::make_shared<Watcher>(Watcher{std::move(wake)});
  const std::lock_guard lock(mutex_);
  watchers_.push_back(watcher);
  return watcher;
}

void Audit::WakeAll() {
  std::vector<std::shared_ptr<Watcher>> woken;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(watchers_, [&](const std::weak_ptr<Watcher>& weak) {
      auto watcher = weak.lock();
      if (watcher) woken.push_back(std::move(watcher));
      return weak.expired();
    });
  }
  for (const auto& watcher : woken) watcher->wake();
}

}  // namespace denoised
