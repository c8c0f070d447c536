#include "runtime/store/control_tables.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "backends/error.h"
#include "runtime/loaders/sha256.h"

namespace denoised {
namespace {

constexpr std::array<std::string_view, 3> kNames = {"leases", "audit", "documents"};

void Remove(Database* database, const std::string& name, int64_t number) {
  Statement(database, "DELETE FROM " + name + " WHERE number = ?").Bind(number).Step();
}

void Quarantine(Database* database, const std::string& name, const ControlRow& row,
                const std::string& why, Logger* logger) {
  database->Begin();
  try {
    Statement(database,
              "INSERT INTO quarantine (number, id, row, why, source) VALUES (?, ?, ?, ?, ?)")
        .Bind(row.number)
        .Bind(row.id)
        .Bind(row.row)
        .Bind(why)
        .Bind(name)
        .Step();
    Remove(database, name, row.number);
    database->Commit();
  } catch (...) {
    database->Rollback();
    throw;
  }
  logger->Error(
      "ledger.row_unreadable",
      {{"table", name}, {"number", std::to_string(row.number)}, {"id", row.id}, {"why", why}});
}

std::vector<ControlRow> ReadAll(Database* database, const std::string& name) {
  std::vector<ControlRow> rows;
  Statement scan(database, "SELECT number, id, row, digest FROM " + name + " ORDER BY number");
  while (scan.Step()) {
    rows.push_back({scan.Integer(0), scan.Bytes(1), scan.Bytes(2), scan.Bytes(3)});
  }
  return rows;
}

}  // namespace

const char* const kControlTables = R"(
CREATE TABLE leases (number INTEGER PRIMARY KEY, id TEXT NOT NULL, row TEXT NOT NULL,
                     digest TEXT NOT NULL);
CREATE TABLE audit (number INTEGER PRIMARY KEY, id TEXT NOT NULL, row TEXT NOT NULL,
                    digest TEXT NOT NULL);
CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT NOT NULL, row TEXT NOT NULL,
                        digest TEXT NOT NULL);
)";

std::string ControlTableName(ControlTable table) {
  return std::string(kNames.at(static_cast<size_t>(table)));
}

ControlRow MakeControlRow(int64_t number, std::string id, std::string row) {
  Sha256 hash;
  hash.Update(std::to_string(number) + "\n" + id + "\n");
  hash.Update(row);
  return {number, std::move(id), std::move(row), ToHex(hash.Finish())};
}

std::vector<ControlRow> ReadControlTable(Database* database, ControlTable table,
                                         const std::function<void(const ControlRow&)>& read,
                                         Logger* logger) {
  const std::string name = ControlTableName(table);
  std::vector<ControlRow> rows;
  for (ControlRow& row : ReadAll(database, name)) {
    try {
      if (MakeControlRow(row.number, row.id, row.row).digest != row.digest || row.number < 1) {
        throw Error(StatusCode::kDataLoss, "its digest is another one");
      }
      read(row);
      rows.push_back(std::move(row));
    } catch (const Error& error) {
      if (error.code() != StatusCode::kDataLoss || error.reason() == "LEDGER_DAMAGED") throw;
      Quarantine(database, name, row, error.what(), logger);
    }
  }
  return rows;
}

int64_t LastControlNumber(Database* database, ControlTable table) {
  return database->Number("SELECT max(number) FROM " + ControlTableName(table));
}

int64_t LastControlNumberEver(Database* database, ControlTable table) {
  const std::string name = ControlTableName(table),
                    aside = " FROM quarantine WHERE source = '" + name + "'";
  const int64_t last = LastControlNumber(database, table);
  const int64_t count = database->Number("SELECT count(*)" + aside);
  // A number that is damaged itself may be anything: those that were the last were as many.
  return std::max(last, std::min(database->Number("SELECT max(number)" + aside), last + count));
}

void WriteControlTable(Database* database, ControlTable table, const ControlRows& rows) {
  const std::string name = ControlTableName(table);
  std::map<int64_t, std::string> written;
  {
    Statement scan(database, "SELECT number, digest FROM " + name);
    while (scan.Step()) written[scan.Integer(0)] = scan.Bytes(1);
  }
  for (const auto& [number, digest] : written) {
    if (!rows.contains(number)) Remove(database, name, number);
  }
  for (const auto& [number, row] : rows) {
    const auto found = written.find(number);
    if (found != written.end() && found->second == row->digest) continue;
    AppendControlRow(database, table, *row);
  }
}

void AppendControlRow(Database* database, ControlTable table, const ControlRow& row) {
  Statement(database, "INSERT OR REPLACE INTO " + ControlTableName(table) +
                          " (number, id, row, digest) VALUES (?, ?, ?, ?)")
      .Bind(row.number)
      .Bind(row.id)
      .Bind(row.row)
      .Bind(row.digest)
      .Step();
}

void TrimControlTable(Database* database, ControlTable table, int64_t first) {
  Statement(database, "DELETE FROM " + ControlTableName(table) + " WHERE number < ?")
      .Bind(first)
      .Step();
}

}  // namespace denoised
