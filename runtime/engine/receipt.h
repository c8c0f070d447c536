// What stands on a receipt besides its rows: which model, machine and code, and the fingerprint
// over everything that changes the pixels.
//
// A fingerprint is the SHA-256 of a text of named fields, each with its length, so that no two
// lists of values give one text. Two results with one fingerprint are the same result, bit for bit.
// What does not change them stays out: who chose a backend (source, lease), how its parameters were
// spelt, formats, frames a second and ids. The number of threads is in: LibTorch's products may
// round differently with another (MKL's do on some CPUs).
#ifndef DENOISED_RUNTIME_ENGINE_RECEIPT_H_
#define DENOISED_RUNTIME_ENGINE_RECEIPT_H_

#include <string>
#include <vector>

#include "runtime/engine/work.h"
#include "runtime/job.h"
#include "runtime/model_info.h"
#include "runtime/session.h"

namespace denoised {

// Fills in the model's digests and dtype, the device, the numerics, the versions and the kernels.
void StampReceipt(const EngineWork& work, LinearNumerics linear, Receipt* receipt);

// What ran of work that has a planner, stamped; without fingerprint.
Receipt StampedReceipt(const EngineWork& work, LinearNumerics linear);

// Over a stamped receipt and what was asked of the model.
std::string Fingerprint(const Receipt& receipt, const GenerationRequest& request,
                        const ResolvedParameters& parameters);

// In two steps, where the request is digested long before the work is done, or once for many
// receipts: what stands for the request, and the fingerprint over it. Of a session that nothing was
// done to but steps it is that of the job with the same request; else `history` is over all that
// was.
std::string DenoiseFields(const DenoiseRequest& request);
std::string SessionFields(const GenerationRequest& request, const SessionGiven& given,
                          const ResolvedParameters& parameters);
std::string Fingerprint(const Receipt& receipt, const std::string& fields,
                        const std::string& history = "");

// Such a history, one thing longer: a step of what ran in it, or a change.
std::string AddStep(const std::string& history, const std::vector<ReceiptEntry>& ran);
std::string AddChange(const std::string& history, const SessionWrite& write, int64_t step);
std::string AddChange(const std::string& history, double guidance_scale,
                      const std::string& negative_prompt);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_RECEIPT_H_
