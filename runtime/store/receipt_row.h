// Receipts in the ledger's JSON. Torch-free.
#ifndef DENOISED_RUNTIME_STORE_RECEIPT_ROW_H_
#define DENOISED_RUNTIME_STORE_RECEIPT_ROW_H_

#include <nlohmann/json.hpp>

#include "runtime/job.h"

namespace denoised::stored {

nlohmann::json WriteReceipt(const Receipt& receipt);
// Throws what nlohmann does, or DATA_LOSS, for what WriteReceipt cannot have made.
Receipt ReadReceipt(const nlohmann::json& json);

}  // namespace denoised::stored

#endif  // DENOISED_RUNTIME_STORE_RECEIPT_ROW_H_
