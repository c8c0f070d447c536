// The little of SQLite that the ledger needs. Torch-free; one thread at a time. What fails is an
// Error that names the file: RESOURCE_EXHAUSTED (reason DISK) where the disk takes or gives
// nothing, DATA_LOSS (reason LEDGER_DAMAGED) where the file is not what was written.
#ifndef DENOISED_RUNTIME_STORE_SQLITE_H_
#define DENOISED_RUNTIME_STORE_SQLITE_H_

#include <sqlite3.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

namespace denoised {

class Statement;

class Database {
 public:
  // Made where it is missing, readable for its owner alone.
  explicit Database(const std::filesystem::path& file);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  const std::filesystem::path& file() const { return file_; }
  // Statements without values, in their order.
  void Execute(const std::string& sql);
  int64_t Number(const std::string& sql);  // of a statement that gives one
  std::string Text(const std::string& sql);
  // A transaction that failed is left in any case.
  void Begin() { Execute("BEGIN IMMEDIATE"); }
  void Commit() { Execute("COMMIT"); }
  void Rollback() noexcept;

 private:
  friend class Statement;
  [[noreturn]] void Fail(int code) const;
  // Prepared once: what has the text `sql` and is used by nobody else; and back.
  sqlite3_stmt* Take(const std::string& sql);
  void GiveBack(const std::string& sql, sqlite3_stmt* statement) noexcept;

  const std::filesystem::path file_;
  sqlite3* handle_ = nullptr;
  std::multimap<std::string, sqlite3_stmt*> idle_;
};

// Values are bound from 1 in the order of the calls, columns are counted from 0.
class Statement {
 public:
  Statement(Database* database, const std::string& sql);
  ~Statement();
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& Bind(int64_t value);
  // Borrowed until the statement ends.
  Statement& Bind(std::string_view text);
  Statement& BindBlob(std::string_view bytes);
  // Whether there is a row.
  bool Step();
  int64_t Integer(int column) const;
  std::string Bytes(int column) const;  // of a text or a blob

 private:
  Database* const database_;
  const std::string sql_;
  sqlite3_stmt* const statement_;
  int bound_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_SQLITE_H_
