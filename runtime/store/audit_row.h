// An entry of the audit as it is kept. Torch-free.
#ifndef DENOISED_RUNTIME_STORE_AUDIT_ROW_H_
#define DENOISED_RUNTIME_STORE_AUDIT_ROW_H_

#include <cstdint>
#include <string>

#include "runtime/control_store.h"

namespace denoised {

// Everything but the number, and back. Reading throws DATA_LOSS for what WriteAuditRow cannot have
// written.
std::string WriteAuditRow(const AuditEntry& entry);
AuditEntry ReadAuditRow(uint64_t number, const std::string& text);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_AUDIT_ROW_H_
