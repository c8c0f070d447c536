// The ledger's tables of what operators changed: leases, audit, documents. Torch-free; one thread.
//
// All three have rows of one kind, whose digest is over all of the row. One that does not fit goes
// into the table `quarantine`, with a line in the log.
#ifndef DENOISED_RUNTIME_STORE_CONTROL_TABLES_H_
#define DENOISED_RUNTIME_STORE_CONTROL_TABLES_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/log.h"
#include "runtime/store/sqlite.h"

namespace denoised {

enum class ControlTable : uint8_t { kLeases, kAudit, kDocuments };
std::string ControlTableName(ControlTable table);  // "leases", "audit", "documents"

// What version 2 of the ledger's schema added for them.
extern const char* const kControlTables;

struct ControlRow {
  int64_t number = 0;  // of a lease's making, an audit entry
  std::string id;      // of a lease; an audit entry's subject; a document's name
  std::string row;
  std::string digest;  // MakeControlRow fills it in
};
ControlRow MakeControlRow(int64_t number, std::string id, std::string row);

// Rows by their numbers. What MakeControlRow cannot have made, or `read` throws DATA_LOSS for, is
// put aside.
std::vector<ControlRow> ReadControlTable(Database* database, ControlTable table,
                                         const std::function<void(const ControlRow&)>& read,
                                         Logger* logger);
// The largest number that the table has; that it had before rows of it were put aside.
int64_t LastControlNumber(Database* database, ControlTable table);
int64_t LastControlNumberEver(Database* database, ControlTable table);

// Inside a transaction.
using ControlRows = std::map<int64_t, std::shared_ptr<const ControlRow>>;
// Makes the table what `rows` say; writes what differs.
void WriteControlTable(Database* database, ControlTable table, const ControlRows& rows);
void AppendControlRow(Database* database, ControlTable table, const ControlRow& row);
// Rows with smaller numbers go.
void TrimControlTable(Database* database, ControlTable table, int64_t first);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_CONTROL_TABLES_H_
