// SHA256SUMS: what the files of a folder should be, as sha256sum(1) writes and checks it.
// Torch-free.
#ifndef DENOISED_RUNTIME_LOADERS_CHECKSUMS_H_
#define DENOISED_RUNTIME_LOADERS_CHECKSUMS_H_

#include <map>
#include <string>
#include <string_view>

namespace denoised {

// Path below the folder -> digest in lower-case hex.
using Checksums = std::map<std::string, std::string>;

// Knows "HEX  PATH", "HEX *PATH", names escaped with a backslash in front, and the form of --tag.
// INVALID_ARGUMENT "what: line N: ..." for anything else, for a path that leaves the folder, and
// for a path with two digests.
Checksums ParseChecksums(std::string_view text, const std::string& what);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_CHECKSUMS_H_
