// Random numbers that are no model's: ids and seeds. Any thread.
#ifndef DENOISED_RUNTIME_ENGINE_IDS_H_
#define DENOISED_RUNTIME_ENGINE_IDS_H_

#include <cstdint>
#include <string>

namespace denoised {

// 128 random bits, hex: of a job or a session.
std::string NewId();

// Within what a double holds, so that JSON clients can send it back.
int64_t DrawSeed();

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_IDS_H_
