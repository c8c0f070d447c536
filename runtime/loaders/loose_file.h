// Files that belong to no model: tensors given on the command line, the server's own state. What
// loads a model must not include this (tests/layering checks it): it reads through ModelFolder.
// Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_LOOSE_FILE_H_
#define DENOISED_RUNTIME_LOADERS_LOOSE_FILE_H_

#include "runtime/loaders/file.h"

namespace denoised {

// NOT_FOUND where there is nothing; INVALID_ARGUMENT for folders, FIFOs and devices.
inline ReadOnlyFile OpenLooseFile(const std::filesystem::path& path) { return ReadOnlyFile(path); }

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_LOOSE_FILE_H_
