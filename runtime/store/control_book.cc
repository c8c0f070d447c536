#include "runtime/store/control_book.h"

#include <algorithm>
#include <utility>

#include "runtime/store/audit_row.h"
#include "runtime/store/json_fields.h"
#include "runtime/store/lease_row.h"
#include "runtime/store/ledger.h"

namespace denoised {
namespace {

// A document of its own, so that it has a digest.
constexpr const char* kGeneration = "leases.generation";

std::string GenerationText(uint64_t generation) { return std::to_string(generation); }

uint64_t ReadGeneration(const std::string& text) {
  return stored::Parse(text,
                       [](const stored::Json& json) { return stored::Whole<uint64_t>(json); });
}

std::map<int64_t, std::shared_ptr<const ControlRow>> ByNumber(std::vector<ControlRow> rows) {
  std::map<int64_t, std::shared_ptr<const ControlRow>> numbered;
  for (ControlRow& row : rows) {
    const int64_t number = row.number;
    numbered[number] = std::make_shared<const ControlRow>(std::move(row));
  }
  return numbered;
}

}  // namespace

void ControlBook::Load(LedgerFile& file) {
  const ClockReading now = Now();
  leases_ = ByNumber(file.ReadControl(ControlTable::kLeases,
                                      [&](const ControlRow& row) { ReadLeaseRow(row.row, now); }));
  documents_ = ByNumber(file.ReadControl(ControlTable::kDocuments, [](const ControlRow& row) {
    if (row.id == kGeneration) ReadGeneration(row.row);
  }));
  file.ReadControl(ControlTable::kAudit, [this](const ControlRow& row) {
    audit_.push_back(ReadAuditRow(static_cast<uint64_t>(row.number), row.row));
  });
  last_number_ = tried_ =
      static_cast<uint64_t>(LastControlNumberEver(&file.database(), ControlTable::kAudit));
}

ClockReading ControlBook::Now() const { return ReadClocks(hooks_); }

// ---- leases and audit

KeptLeases ControlBook::LoadLeases() const {
  const ClockReading now = Now();
  const std::lock_guard lock(mutex_);
  KeptLeases kept;
  for (const auto& [number, row] : leases_) {
    LeaseRow read = ReadLeaseRow(row->row, now);
    (read.over ? kept.over : kept.live).push_back(std::move(read.lease));
  }
  if (const ControlRow* row = Document(kGeneration)) kept.generation = ReadGeneration(row->row);
  return kept;
}

uint64_t ControlBook::AppendAudit(std::vector<AuditRecord> records) {
  const ClockReading now = Now();
  uint64_t last = 0;
  {
    const std::lock_guard lock(mutex_);
    for (AuditRecord& record : records) {
      record.entry.number = ++last_number_;
      audit_.push_back(std::move(record.entry));
      if (audit_.size() > kMaxAudit) audit_.pop_front();
      if (record.change) Apply(*record.change, now);
    }
    last = last_number_;
  }
  Sync();
  const std::lock_guard lock(mutex_);
  tried_ = std::max(tried_, last);
  return last;
}

void ControlBook::Apply(const LeaseChange& change, const ClockReading& now) {
  const auto number = static_cast<int64_t>(change.lease.sequence);
  if (change.live && !change.lease.held) {
    leases_[number] = std::make_shared<const ControlRow>(
        MakeControlRow(number, change.lease.id, WriteLeaseRow(change.lease, now)));
  } else {
    leases_.erase(number);
  }
  Put(kGeneration, GenerationText(change.generation));
}

std::vector<AuditEntry> ControlBook::ReadAudit(uint64_t after, size_t limit) const {
  const std::lock_guard lock(mutex_);
  std::vector<AuditEntry> entries;
  auto entry = std::ranges::upper_bound(audit_, after, {}, &AuditEntry::number);
  for (; entry != audit_.end() && entries.size() < limit && entry->number <= tried_; ++entry) {
    entries.push_back(*entry);
  }
  return entries;
}

// ---- documents

void ControlBook::Keep(const std::string& name, std::string text) {
  {
    const std::lock_guard lock(mutex_);
    Put(name, std::move(text));
  }
  Sync();
}

std::optional<std::string> ControlBook::Find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const ControlRow* row = Document(name);
  return row == nullptr ? std::nullopt : std::optional(row->row);
}

void ControlBook::Put(const std::string& name, std::string text) {
  int64_t number = documents_.empty() ? 1 : documents_.rbegin()->first + 1;
  if (const ControlRow* before = Document(name)) number = before->number;
  documents_[number] =
      std::make_shared<const ControlRow>(MakeControlRow(number, name, std::move(text)));
}

const ControlRow* ControlBook::Document(const std::string& name) const {
  for (const auto& [number, row] : documents_) {
    if (row->id == name) return row.get();
  }
  return nullptr;
}

// ---- the disk

void ControlBook::Sync() {
  if (ledger_ == nullptr) return;
  ledger_->Control([this](LedgerFile& file) { WriteTo(file); });
}

// Nobody waits for the disk under the lock.
void ControlBook::WriteTo(LedgerFile& file) const {
  Database* const database = &file.database();
  const auto written = static_cast<uint64_t>(LastControlNumber(database, ControlTable::kAudit));
  const Content wanted = ContentAfter(written);
  for (const ControlRow& row : wanted.audit) {
    AppendControlRow(database, ControlTable::kAudit, row);
    TrimControlTable(database, ControlTable::kAudit,
                     row.number - static_cast<int64_t>(kMaxAudit) + 1);
  }
  WriteControlTable(database, ControlTable::kLeases, wanted.leases);
  WriteControlTable(database, ControlTable::kDocuments, wanted.documents);
}

ControlBook::Content ControlBook::ContentAfter(uint64_t number) const {
  const std::lock_guard lock(mutex_);
  Content content{leases_, documents_, {}};
  auto entry = std::ranges::upper_bound(audit_, number, {}, &AuditEntry::number);
  for (; entry != audit_.end(); ++entry) {
    content.audit.push_back(
        MakeControlRow(static_cast<int64_t>(entry->number), entry->subject, WriteAuditRow(*entry)));
  }
  return content;
}

}  // namespace denoised
