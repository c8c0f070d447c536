// Where to listen or to connect: HOST:PORT.
#ifndef DENOISED_SERVER_ADDRESS_H_
#define DENOISED_SERVER_ADDRESS_H_

#include <string>

namespace denoised {

// HOST:PORT, taken apart. An IPv6 host stands in brackets on the command line, without them here.
struct ListenAddress {
  std::string host;
  int port = 0;
  // As gRPC and people write it.
  std::string ToString() const;
  bool is_loopback() const;
};

// Throws UsageError that says what is wrong with the value of --`flag`. Servers may listen on port
// 0 (any free one); clients pass `lowest_port` 1.
ListenAddress ParseAddress(const std::string& flag, const std::string& text, int lowest_port = 0);

}  // namespace denoised

#endif  // DENOISED_SERVER_ADDRESS_H_
