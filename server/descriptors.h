// How many connections each listener may hold. Together they stay below the number of descriptors
// that the process may have: a server that runs out of them can neither accept nor open a file, and
// the admin and health ports must answer most of all when the public one is crowded.
#ifndef DENOISED_SERVER_DESCRIPTORS_H_
#define DENOISED_SERVER_DESCRIPTORS_H_

#include <cstdint>

namespace denoised {

// Raises the process's soft limit to the hard one; returns what it is then.
int64_t RaiseDescriptorLimit();

struct ConnectionCaps {
  int64_t listen = 1024, admin = 32, http = 256;
};

// `wanted`, lowered to what fits below `descriptors` beside the server's own files. The public port
// is lowered most; the admin port keeps at least 4 connections, the HTTP port 8.
ConnectionCaps FitCaps(const ConnectionCaps& wanted, int64_t descriptors);

}  // namespace denoised

#endif  // DENOISED_SERVER_DESCRIPTORS_H_
