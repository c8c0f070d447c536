#include "runtime/store/sqlite.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <new>

#include "backends/error.h"
#include "runtime/store/disk_full.h"

namespace denoised {
namespace {

StatusCode CodeOf(int code) {
  switch (code & 0xff) {
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return StatusCode::kResourceExhausted;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return StatusCode::kDataLoss;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return StatusCode::kFailedPrecondition;
    default:
      return StatusCode::kInternal;
  }
}

}  // namespace

Database::Database(const std::filesystem::path& file) : file_(file) {
  // SQLite would let others read it; its journal takes the same mode.
  const int made = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (made >= 0) close(made);
  const int code =
      sqlite3_open_v2(file.c_str(), &handle_,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  if (code == SQLITE_OK) return;
  try {
    Fail(code);
  } catch (...) {
    sqlite3_close(handle_);
    throw;
  }
}

Database::~Database() {
  for (const auto& [sql, statement] : idle_) sqlite3_finalize(statement);
  sqlite3_close(handle_);
}

void Database::Fail(int code) const {
  const StatusCode status = CodeOf(code);
  std::string message = file_.string() + ": " + sqlite3_errmsg(handle_);
  if (const int system = sqlite3_system_errno(handle_);
      status == StatusCode::kResourceExhausted && system != 0) {
    message += std::string(" (") + std::strerror(system) + ")";
  }
  if (status == StatusCode::kResourceExhausted) throw DiskFull(message);
  throw Error(status, message, file_.filename().string(),
              status == StatusCode::kDataLoss ? "LEDGER_DAMAGED" : "");
}

void Database::Execute(const std::string& sql) {
  const int code = sqlite3_exec(handle_, sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) Fail(code);
}

int64_t Database::Number(const std::string& sql) {
  Statement statement(this, sql);
  return statement.Step() ? statement.Integer(0) : 0;
}

std::string Database::Text(const std::string& sql) {
  Statement statement(this, sql);
  return statement.Step() ? statement.Bytes(0) : "";
}

void Database::Rollback() noexcept {
  // Some failures have left the transaction already.
  if (sqlite3_get_autocommit(handle_) == 0) {
    sqlite3_exec(handle_, "ROLLBACK", nullptr, nullptr, nullptr);
  }
}

sqlite3_stmt* Database::Take(const std::string& sql) {
  if (auto kept = idle_.extract(sql)) return kept.mapped();
  sqlite3_stmt* statement = nullptr;
  const int code =
      sqlite3_prepare_v2(handle_, sql.c_str(), static_cast<int>(sql.size()), &statement, nullptr);
  if (code != SQLITE_OK) Fail(code);
  return statement;
}

void Database::GiveBack(const std::string& sql, sqlite3_stmt* statement) noexcept {
  sqlite3_reset(statement);  // says again what Step said
  sqlite3_clear_bindings(statement);
  try {
    idle_.emplace(sql, statement);
  } catch (const std::bad_alloc&) {
    sqlite3_finalize(statement);
  }
}

Statement::Statement(Database* database, const std::string& sql)
    : database_(database), sql_(sql), statement_(database->Take(sql)) {}

Statement::~Statement() { database_->GiveBack(sql_, statement_); }

Statement& Statement::Bind(int64_t value) {
  const int code = sqlite3_bind_int64(statement_, ++bound_, value);
  if (code != SQLITE_OK) database_->Fail(code);
  return *this;
}

Statement& Statement::Bind(std::string_view text) {
  const int code = sqlite3_bind_text64(statement_, ++bound_, text.data(), text.size(),
                                       SQLITE_STATIC, SQLITE_UTF8);
  if (code != SQLITE_OK) database_->Fail(code);
  return *this;
}

Statement& Statement::BindBlob(std::string_view bytes) {
  const int code =
      sqlite3_bind_blob64(statement_, ++bound_, bytes.data(), bytes.size(), SQLITE_STATIC);
  if (code != SQLITE_OK) database_->Fail(code);
  return *this;
}

bool Statement::Step() {
  const int code = sqlite3_step(statement_);
  if (code != SQLITE_ROW && code != SQLITE_DONE) database_->Fail(code);
  return code == SQLITE_ROW;
}

int64_t Statement::Integer(int column) const { return sqlite3_column_int64(statement_, column); }

std::string Statement::Bytes(int column) const {
  const void* const bytes = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return bytes == nullptr ? "" : std::string(static_cast<const char*>(bytes), size);
}

}  // namespace denoised
