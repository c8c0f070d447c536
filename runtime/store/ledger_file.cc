#include "runtime/store/ledger_file.h"

#include <utility>

#include "runtime/loaders/sha256.h"
#include "runtime/store/state_folder.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kApplicationId = 0x646e7364;  // "dnsd"
constexpr int64_t kVersion = 2;

// Of version 1. `digest` is over the text, and the latents behind it.
constexpr const char* kJobTables = R"(
CREATE TABLE jobs (number INTEGER PRIMARY KEY, id TEXT NOT NULL, row TEXT NOT NULL,
                   digest TEXT NOT NULL);
CREATE TABLE requests (number INTEGER PRIMARY KEY, request TEXT NOT NULL, latents BLOB NOT NULL,
                       digest TEXT NOT NULL);
CREATE TABLE quarantine (number INTEGER, id TEXT, row TEXT, request TEXT, latents BLOB, why TEXT);
CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
)";

// What a file of `version` lacks of the present one; 0: a new file.
std::string SchemaSince(int64_t version) {
  std::string sql = version < 1 ? kJobTables : "";
  if (version < 2) {
    sql += kControlTables;
    // The table that a row was put aside from.
    sql += "ALTER TABLE quarantine ADD COLUMN source TEXT NOT NULL DEFAULT 'jobs';";
  }
  sql += "PRAGMA application_id = " + std::to_string(kApplicationId);
  return sql + "; PRAGMA user_version = " + std::to_string(kVersion);
}

std::string DigestOf(const RequestRow& request) {
  Sha256 hash;
  hash.Update(request.text);
  hash.Update(request.latents);
  return ToHex(hash.Finish());
}

bool IsDamage(const Error& error) { return error.code() == StatusCode::kDataLoss; }

Error NotOurs(const fs::path& file, const std::string& why) {
  return Error(StatusCode::kFailedPrecondition, file.string() + ": " + why, "state_dir",
               "LEDGER_UNUSABLE");
}

// A name beside `file` that is free.
fs::path PlaceForDamaged(const fs::path& file) {
  for (int i = 1;; ++i) {
    const fs::path place = file.string() + ".damaged." + std::to_string(i);
    if (!fs::exists(place)) return place;
  }
}

// The same file under another name, or where a file system has no such thing, a copy.
void KeepAside(const fs::path& file, const fs::path& aside) {
  std::error_code error;
  fs::create_hard_link(file, aside, error);
  if (error) fs::copy_file(file, aside);
}

// What was put aside in the damaged file stays so, as far as it can be read.
void CopyQuarantine(Database* from, Database* to) {
  try {
    const bool of_jobs_alone = from->Number(
        "SELECT count(*) = 0 FROM pragma_table_info('quarantine') WHERE name = 'source'");
    const std::string source = of_jobs_alone ? "'jobs'" : "source";  // version 1 has no other
    Statement scan(from,
                   "SELECT number, id, row, request, latents, why, " + source + " FROM quarantine");
    while (scan.Step()) {
      Statement(to, "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?)")
          .Bind(scan.Integer(0))
          .Bind(scan.Bytes(1))
          .Bind(scan.Bytes(2))
          .Bind(scan.Bytes(3))
          .BindBlob(scan.Bytes(4))
          .Bind(scan.Bytes(5))
          .Bind(scan.Bytes(6))
          .Step();
    }
  } catch (const Error& error) {
    if (!IsDamage(error)) throw;
  }
}

struct RawRow {
  int64_t number;
  std::string first, second, digest;
};

// The rows of a table that may be damaged, in one direction, as far as it goes.
std::vector<RawRow> ReadRaw(Database* from, const std::string& columns, const std::string& table,
                            const std::string& direction) {
  std::vector<RawRow> rows;
  try {
    Statement scan(from, "SELECT number, " + columns + ", digest FROM " + table +
                             " ORDER BY number " + direction);
    while (scan.Step()) {
      rows.push_back({scan.Integer(0), scan.Bytes(1), scan.Bytes(2), scan.Bytes(3)});
    }
  } catch (const Error& error) {
    if (!IsDamage(error)) throw;
  }
  return rows;
}

// From both ends, so that one bad page costs what lies on it.
size_t CopyRaw(Database* from, Database* to, const std::string& columns, const std::string& table) {
  size_t copied = 0;
  if (from->Number("SELECT count(*) FROM sqlite_schema WHERE name = '" + table + "'") == 0)
    return 0;
  for (const char* direction : {"ASC", "DESC"}) {
    for (const RawRow& row : ReadRaw(from, columns, table, direction)) {
      Statement insert(to, "INSERT OR IGNORE INTO " + table + " (number, " + columns +
                               ", digest) VALUES (?, ?, ?, ?)");
      insert.Bind(row.number).Bind(row.first);
      if (table == "requests") {
        insert.BindBlob(row.second);
      } else {
        insert.Bind(row.second);
      }
      insert.Bind(row.digest).Step();
      ++copied;
    }
  }
  return copied;
}

}  // namespace

LedgerFile::LedgerFile(const fs::path& file, Logger* logger) : file_(file), logger_(logger) {
  try {
    Open();
  } catch (const Error& error) {
    if (!IsDamage(error)) throw;
    Salvage();
    Open();
  }
}

void LedgerFile::Open() {
  database_ = std::make_unique<Database>(file_);
  try {
    // One connection, never WAL: SQLite before 3.51.3 can lose a WAL that two connections reset.
    // Debian's overwrites what is deleted, and journals it first: an end would need the room and
    // the writes of the job's tensors. FAST does so where it costs nothing.
    database_->Execute(
        "PRAGMA secure_delete = FAST; PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = "
        "TRUNCATE;"
        "PRAGMA synchronous = EXTRA; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON");
    Prepare();
    if (database_->Text("PRAGMA quick_check(1)") != "ok") {
      throw Error(StatusCode::kDataLoss, file_.string() + ": damaged", "", "LEDGER_DAMAGED");
    }
  } catch (const Error& error) {
    if (error.code() == StatusCode::kFailedPrecondition && error.reason().empty()) {
      throw NotOurs(file_, "another program has it open");
    }
    throw;
  }
}

void LedgerFile::Prepare() {
  const int64_t id = database_->Number("PRAGMA application_id");
  const int64_t version = database_->Number("PRAGMA user_version");
  const bool fresh = database_->Number("SELECT count(*) FROM sqlite_schema") == 0;
  if (id != kApplicationId && !(fresh && id == 0)) throw NotOurs(file_, "not a ledger of jobs");
  if (version > kVersion) {
    throw NotOurs(file_, "written by a newer version of this program (schema " +
                             std::to_string(version) + "; this one reads up to " +
                             std::to_string(kVersion) + ")");
  }
  database_->Execute("BEGIN EXCLUSIVE");
  if (fresh || version < kVersion) database_->Execute(SchemaSince(fresh ? 0 : version));
  database_->Commit();
}

void LedgerFile::Salvage() {
  const fs::path fresh = file_.string() + ".part", aside = PlaceForDamaged(file_);
  database_.reset();
  fs::remove(fresh);
  size_t rows = 0;
  try {
    Database from(file_), to(fresh);
    to.Execute(SchemaSince(0));
    to.Begin();
    for (const char* table : {"jobs", "leases", "audit", "documents"}) {
      rows += CopyRaw(&from, &to, "id, row", table);
    }
    if (rows == 0) throw Error(StatusCode::kDataLoss, "none of its rows can be read");
    CopyRaw(&from, &to, "request, latents", "requests");
    CopyQuarantine(&from, &to);
    to.Commit();
  } catch (const Error& error) {
    fs::remove(fresh);
    if (!IsDamage(error)) throw;
    throw NotOurs(file_, "damaged beyond reading (" + std::string(error.what()) +
                             "); move it away to begin without its jobs");
  }
  fs::remove(file_.string() + "-journal");  // it is not the new file's
  KeepAside(file_, aside);
  fs::rename(fresh, file_);  // at no moment is there no ledger
  SyncFolder(file_.parent_path());
  logger_->Error("ledger.salvaged",
                 {{"damaged", aside.string()}, {"rows_read", std::to_string(rows)}});
}

std::vector<StoredJob> LedgerFile::ReadJobs(const ClockReading& now) {
  struct Raw {
    uint64_t number;
    std::string id, text, digest;
  };
  std::vector<Raw> raw;
  Statement scan(database_.get(), "SELECT number, id, row, digest FROM jobs ORDER BY number");
  while (scan.Step()) {
    raw.push_back(
        {static_cast<uint64_t>(scan.Integer(0)), scan.Bytes(1), scan.Bytes(2), scan.Bytes(3)});
  }
  std::vector<StoredJob> jobs;
  std::set<std::string> ids;
  for (const Raw& row : raw) {
    try {
      if (Sha256Hex(row.text) != row.digest) {
        throw Error(StatusCode::kDataLoss, "its digest is another one");
      }
      StoredJob job{ReadRow(row.number, row.text), std::nullopt};
      if (row.number == 0 || row.number > INT64_MAX || job.row.job.id != row.id ||
          !ids.insert(row.id).second) {
        throw Error(StatusCode::kDataLoss, "it is not in its place");
      }
      if (!IsTerminal(job.row.job.state)) job.request = ReadRequestOf(row.number, now);
      jobs.push_back(std::move(job));
    } catch (const Error& error) {
      if (!IsDamage(error)) throw;
      Quarantine(row.number, row.id, error.what());
    }
  }
  return jobs;
}

std::optional<GenerationRequest> LedgerFile::ReadRequestOf(uint64_t number,
                                                           const ClockReading& now) {
  Statement find(database_.get(), "SELECT request, latents, digest FROM requests WHERE number = ?");
  find.Bind(static_cast<int64_t>(number));
  if (!find.Step()) throw Error(StatusCode::kDataLoss, "its request is missing");
  const RequestRow request = {find.Bytes(0), find.Bytes(1)};
  if (DigestOf(request) != find.Bytes(2)) {
    throw Error(StatusCode::kDataLoss, "its request's digest is another one");
  }
  return ReadRequest(request, now);
}

void LedgerFile::Quarantine(uint64_t number, const std::string& id, const std::string& why) {
  database_->Begin();
  try {
    Statement(database_.get(),
              "INSERT INTO quarantine (number, id, row, request, latents, why) SELECT jobs.number, "
              "jobs.id, jobs.row, requests.request, requests.latents, ? FROM jobs LEFT JOIN "
              "requests USING (number) WHERE number = ?")
        .Bind(why)
        .Bind(static_cast<int64_t>(number))
        .Step();
    RemoveJob(number);
    database_->Commit();
  } catch (...) {
    database_->Rollback();
    throw;
  }
  logger_->Error("ledger.job_unreadable",
                 {{"job", id}, {"number", std::to_string(number)}, {"why", why}});
}

std::set<std::string> LedgerFile::QuarantinedIds() {
  std::set<std::string> ids;
  Statement scan(database_.get(), "SELECT id FROM quarantine WHERE source = 'jobs'");
  while (scan.Step()) ids.insert(scan.Bytes(0));
  return ids;
}

void LedgerFile::InsertJob(const JobRow& row) {
  const std::string text = WriteRow(row), digest = Sha256Hex(text);
  Statement(database_.get(), "INSERT INTO jobs (number, id, row, digest) VALUES (?, ?, ?, ?)")
      .Bind(static_cast<int64_t>(row.number))
      .Bind(row.job.id)
      .Bind(text)
      .Bind(digest)
      .Step();
}

void LedgerFile::InsertRequest(uint64_t number, const RequestRow& request) {
  const std::string digest = DigestOf(request);
  Statement(database_.get(),
            "INSERT INTO requests (number, request, latents, digest) VALUES (?, ?, ?, ?)")
      .Bind(static_cast<int64_t>(number))
      .Bind(request.text)
      .BindBlob(request.latents)
      .Bind(digest)
      .Step();
}

void LedgerFile::UpdateJob(const JobRow& row) {
  const std::string text = WriteRow(row), digest = Sha256Hex(text);
  Statement(database_.get(), "UPDATE jobs SET row = ?, digest = ? WHERE number = ?")
      .Bind(text)
      .Bind(digest)
      .Bind(static_cast<int64_t>(row.number))
      .Step();
}

void LedgerFile::RemoveRequest(uint64_t number) {
  Statement(database_.get(), "DELETE FROM requests WHERE number = ?")
      .Bind(static_cast<int64_t>(number))
      .Step();
}

void LedgerFile::RemoveJob(uint64_t number) {
  RemoveRequest(number);
  Statement(database_.get(), "DELETE FROM jobs WHERE number = ?")
      .Bind(static_cast<int64_t>(number))
      .Step();
}

void LedgerFile::Touch() {
  database_->Execute(
      "INSERT INTO marks VALUES ('probes', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1");
}

}  // namespace denoised
