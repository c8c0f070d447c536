// What ran, whoever chose it: the part of a receipt that changes the pixels. Plain values.
#ifndef DENOISED_RUNTIME_ENGINE_RAN_ROWS_H_
#define DENOISED_RUNTIME_ENGINE_RAN_ROWS_H_

#include <string>
#include <vector>

#include "runtime/job.h"

namespace denoised {

// A line for each role, kernel and parameters with the steps that it ran, and their layers where it
// were not all: "self FLASH_ATTN 0-3 4-19(layers 0-5) {}". Equal where the same kernels ran in the
// same layers and steps, however the entries divide them.
std::vector<std::string> RanRows(const std::vector<ReceiptEntry>& entries);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_RAN_ROWS_H_
